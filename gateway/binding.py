"""Makes and takes the sockets that the primary accepts from: bound early, so that a taken address is an early error."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from wscluster.addresses import Address, Inherited, Tcp, UnixPath, show_address
from wscluster.errors import ExitCode, StartError
from wscluster.gateway.carried import Fd
from wscluster.gateway.state import ListenerState

UNIX_MODE = 0o666
"""As uvicorn makes its Unix sockets: the folder says who may connect."""
CONNECT_SECONDS = 1.0


TcpAddress = tuple[int, tuple[Any, ...]]
"""Address family, and the address as `socket` writes it."""


class CannotBind(StartError):
    """An address cannot be bound; ``errno`` is the system's reason."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class Bound:
    """A bound socket, and the path that it has made.

    Attributes:
        sock: It listens already where somebody else has opened it.
        name: ``host:port``, ``[v6]:port`` or ``unix:/path``.
    """

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.sock = sock
        self.name = _name(sock)
        self._path = path
        self._identity = _identity(path) if path is not None else None

    def carry(self, backlog: int) -> ListenerState:
        """Return what the next process needs to go on with this socket."""
        return ListenerState(Fd(self.sock.fileno()), self._path, self._identity, backlog)

    @classmethod
    def resume(cls, state: ListenerState) -> Bound:
        """Return the socket that the process before has bound."""
        bound = cls(socket.socket(fileno=state.fd))
        bound._path, bound._identity = state.path, state.identity
        return bound

    def is_reachable(self) -> bool:
        """Say whether the path still leads to this socket: somebody may have put another in its place."""
        return self._path is None or _identity(self._path) == self._identity

    def close(self) -> None:
        """Close the socket and remove its path. Does nothing the second time."""
        if self.sock.fileno() < 0:
            return
        self.sock.close()
        if self._path is not None and self.is_reachable():
            with contextlib.suppress(OSError):  # the folder may have been closed to us since
                os.unlink(self._path)


def take_inherited(addresses: Iterable[Address]) -> dict[int, Bound]:
    """Return the sockets that this process was started with, by their numbers.

    Call it before this process opens anything of its own: a number that nobody has opened for it may by then be that
    of the event loop.

    Raises:
        StartError: One is not open, or is nothing to accept from; all stay open.
    """
    return {address.fd: _take(address.fd) for address in addresses if isinstance(address, Inherited)}


def bind(addresses: Iterable[Address], inherited: Mapping[int, Bound]) -> list[Bound]:
    """Return sockets bound to each of ``addresses``; none that is made here listens yet.

    ``localhost`` is bound for IPv4 and IPv6, ``::`` takes both on one socket, an empty host means every interface.

    Raises:
        StartError: An address is taken, not this machine's, or none; none stays bound.
    """
    with contextlib.ExitStack() as bound:
        found: list[Bound] = []
        for address in addresses:
            match address:
                case Tcp(host, port):
                    new = _bind_tcp(host, port)
                case UnixPath(path):
                    new = [bind_unix(path)]
                case Inherited(fd):
                    new = [inherited[fd]]
            for one in new:
                bound.callback(one.close)
            found += new
        bound.pop_all()
    return found


def _bind_tcp(host: str, port: int) -> list[Bound]:
    shown = show_address(Tcp(host, port))
    try:
        found = resolve(host, port)
    except (socket.gaierror, UnicodeError) as exc:
        raise StartError(f"cannot listen on {shown}: {exc}; give an address of this machine") from exc
    return bind_tcp(found, shown, both=host == "::")


def resolve(host: str, port: int, family: int = 0, flags: int = 0) -> list[TcpAddress]:
    """Return the addresses that ``host`` means, those of IPv4 first; empty means every interface.

    Args:
        family: Restricts them; 0 for any.
        flags: For ``getaddrinfo``, beside AI_PASSIVE.

    Raises:
        socket.gaierror: It means none.
        UnicodeError: It cannot be a name.
    """
    flags |= socket.AI_PASSIVE
    found = socket.getaddrinfo(host or None, port, family=family, type=socket.SOCK_STREAM, flags=flags)
    addresses: set[TcpAddress] = {(int(info[0]), tuple(info[4])) for info in found}
    return sorted(addresses, key=lambda item: (item[0] != socket.AF_INET, item[1]))


def bind_tcp(addresses: Iterable[TcpAddress], shown: str, *, both: bool = False) -> list[Bound]:
    """Return a socket bound to each of ``addresses``; with port 0 all of them to the port that the kernel chooses.

    Args:
        shown: What was asked for, as a fault names it.
        both: A socket of IPv6 takes IPv4 too.

    Raises:
        CannotBind: One is taken, not this machine's, or not allowed; none stays bound.
    """
    bound: list[socket.socket] = []
    for family, address in addresses:
        chosen = (address[0], bound[0].getsockname()[1], *address[2:]) if bound and not address[1] else address
        try:
            bound.append(_bind_one(family, chosen, both=both))
        except OSError as exc:
            if bound and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a name with an IPv6 address on a machine without IPv6
            for sock in bound:
                sock.close()
            hint = "; is another server running? choose another port" if exc.errno == errno.EADDRINUSE else ""
            number = exc.errno or errno.EINVAL
            raise CannotBind(f"cannot listen on {shown}: {os.strerror(number)}{hint}", number) from exc
    return [Bound(sock) for sock in bound]


def _bind_one(family: int, address: tuple[object, ...], *, both: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _answer_at_once(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _answer_at_once(sock: socket.socket) -> None:
    # Every accepted socket inherits it on Linux: a call less for each connection.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bind_unix(path: str, mode: int | None = UNIX_MODE) -> Bound:
    """Return a Unix socket bound to ``path``, in the abstract namespace where it begins with a NUL.

    Args:
        mode: Of the new file; None leaves it to the umask.

    Raises:
        CannotBind: A server listens there, it is no socket, or the folder does not let us.
    """
    abstract = path.startswith("\0")
    shown = f"unix:@{path[1:]}" if abstract else f"unix:{path}"
    if not abstract:
        _remove_stale(path, shown)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        bound = Bound(sock, None if abstract else os.path.abspath(path))
    except OSError as exc:
        sock.close()
        raise CannotBind(f"cannot listen on {shown}: {exc.strerror or exc}", exc.errno or errno.EINVAL) from exc
    try:
        if not abstract and mode is not None:
            os.chmod(path, mode)
    except OSError as exc:
        bound.close()
        raise CannotBind(f"cannot listen on {shown}: {exc.strerror}", exc.errno or errno.EINVAL) from exc
    return bound


def _remove_stale(path: str, shown: str) -> None:
    """Remove the socket that a server has left behind at ``path``; nothing else.

    Raises:
        CannotBind: A server listens there, or it is no socket.
    """

    def refuse(why: str, number: int | None = errno.EADDRINUSE) -> CannotBind:
        return CannotBind(f"cannot listen on {shown}: {why}", number or errno.EADDRINUSE)

    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as exc:
        number = exc.errno if isinstance(exc, OSError) else errno.EINVAL
        raise refuse((exc.strerror if isinstance(exc, OSError) else None) or str(exc), number) from exc
    if not stat.S_ISSOCK(mode):
        raise refuse("this is a file, a folder or a link, not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(CONNECT_SECONDS)
        try:
            caller.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass  # nobody listens
        except OSError as exc:  # a full backlog, another kind of socket, another user's
            why = f"a socket is there, and it does not say that nobody listens: {exc.strerror or exc}"
            raise refuse(why) from exc
        else:
            raise refuse("another server listens there")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise refuse(f"the socket of an earlier server: {exc.strerror}", exc.errno) from exc


def _take(fd: int) -> Bound:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        what = "not open" if exc.errno == errno.EBADF else "not a socket"
        raise StartError(f"cannot listen on fd:{fd}: this file descriptor is {what}", ExitCode.USAGE) from None
    if (fault := _find_fault(sock)) is not None:
        sock.detach()  # it stays open: it is whose it was
        raise StartError(f"cannot listen on fd:{fd}: {fault}", ExitCode.USAGE)
    sock.set_inheritable(False)
    if sock.family != socket.AF_UNIX:
        _answer_at_once(sock)
    return Bound(sock)


def _find_fault(sock: socket.socket) -> str | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        return "a stream socket of IPv4, IPv6 or Unix is wanted"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    with contextlib.suppress(OSError):
        sock.getpeername()
        return "this socket is a connection, not one to accept from"
    address = sock.getsockname()
    if not address or (sock.family != socket.AF_UNIX and not address[1]):
        return "this socket is not bound to an address"
    return None


def _name(sock: socket.socket) -> str:
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        # In the abstract namespace of Linux the name begins with a NUL, written as @.
        text = os.fsdecode(address)
        return f"unix:@{text[1:]}" if text.startswith("\0") else f"unix:{os.path.abspath(text)}"
    host, port = address[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
