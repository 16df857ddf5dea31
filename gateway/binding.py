"""Makes and takes the sockets that the primary accepts from: bound early, so that a taken address is an early error."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping

from wscluster.addresses import Address, Inherited, Tcp, UnixPath, show_address
from wscluster.errors import ExitCode, StartError

UNIX_MODE = 0o666
"""As uvicorn makes its Unix sockets: the folder says who may connect."""
CONNECT_SECONDS = 1.0


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
                    new = [_bind_unix(path)]
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
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise StartError(f"cannot listen on {shown}: {exc}; give an address of this machine") from exc
    addresses = sorted({(info[0], info[4]) for info in found}, key=lambda item: (item[0] != socket.AF_INET, item[1]))
    bound: list[socket.socket] = []
    for family, address in addresses:
        # All of them on the port that the kernel chose for the first.
        chosen = (address[0], bound[0].getsockname()[1], *address[2:]) if bound else address
        try:
            bound.append(_bind_one(family, chosen, both=host == "::"))
        except OSError as exc:
            if bound and exc.errno == errno.EADDRNOTAVAIL:
                continue  # a name with an IPv6 address on a machine without IPv6
            for sock in bound:
                sock.close()
            hint = "; is another server running? choose another port" if exc.errno == errno.EADDRINUSE else ""
            raise StartError(f"cannot listen on {shown}: {os.strerror(exc.errno or 0)}{hint}") from exc
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


def _bind_unix(path: str) -> Bound:
    shown = f"unix:{path}"
    _remove_stale(path, shown)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        bound = Bound(sock, os.path.abspath(path))
    except OSError as exc:
        sock.close()
        raise StartError(f"cannot listen on {shown}: {exc.strerror or exc}") from exc
    try:
        os.chmod(path, UNIX_MODE)
    except OSError as exc:
        bound.close()
        raise StartError(f"cannot listen on {shown}: {exc.strerror}") from exc
    return bound


def _remove_stale(path: str, shown: str) -> None:
    """Remove the socket that a server has left behind at ``path``; nothing else.

    Raises:
        StartError: A server listens there, or it is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StartError(f"cannot listen on {shown}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(mode):
        raise StartError(
            f"cannot listen on {shown}: this is a file, a folder or a link, not a socket; it is left alone"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(CONNECT_SECONDS)
        try:
            caller.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass  # nobody listens
        except OSError as exc:  # a full backlog, another kind of socket, another user's
            raise StartError(f"cannot listen on {shown}: a socket is there, and it does not say that nobody listens: "
                             f"{exc.strerror or exc}") from exc  # fmt: skip
        else:
            raise StartError(f"cannot listen on {shown}: another server listens there")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise StartError(f"cannot listen on {shown}: the socket of an earlier server: {exc.strerror}") from exc


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
