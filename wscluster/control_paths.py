"""Where the control sockets of this user's primaries are."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


class UnsafeFolder(Exception):
    """The folder of the control sockets is a link, or another user's; the text says which."""


def default_folder() -> Path:
    """Return ``$XDG_RUNTIME_DIR/wscluster``, else ``wscluster-UID`` in the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "wscluster"
    return Path(tempfile.gettempdir()) / f"wscluster-{os.getuid()}"


def default_path(pid: int) -> Path:
    """Return the default control socket of the primary ``pid``."""
    return default_folder() / f"{pid}.sock"


def check_folder(folder: Path) -> None:
    """Check that only this user can have put something into ``folder``.

    Raises:
        UnsafeFolder: It is a link, another user's, or open to others.
        FileNotFoundError: It is not there.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFolder(f"{folder} is not a folder of its own (a link?)")
    if status.st_uid != os.getuid():
        raise UnsafeFolder(f"{folder} belongs to another user")
    if status.st_mode & 0o077:
        raise UnsafeFolder(f"{folder} is open to other users: chmod 700 it")


def make_folder(folder: Path) -> None:
    """Make ``folder`` with mode 0700 where it is missing, and check it.

    Raises:
        UnsafeFolder: It is there and is not safe.
        OSError: It cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=False)
    except FileExistsError:
        if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)
    check_folder(folder)
