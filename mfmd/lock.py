"""A folder belongs to one command at a time."""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from pathlib import Path

from mfmd import Error, Note

NAME = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system that has none answers


class FolderInUse(Error):
    """Another process works in the folder, or has taken its place; names it."""


@contextlib.contextmanager
def claim(folder, command):
    """While the context lasts, the folder (made if need be) is this process's: flock(2) on its file `.lock`, which ends with the process however that ends.

    Forked children do not hold it, nor do programs that this process starts.

    Raises
    ------
    FolderInUse : another process, on this machine or another, holds it; the sentence says which
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = open(str(folder / NAME), "a+")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderInUse(f"{folder} is in use by {holder}; wait until that has ended, or take another folder") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warnings.warn(
                f"{folder}: its file system has no locks ({error.strerror}); see to it yourself that no other run uses the folder",
                Note,
                stacklevel=4,
            )
        else:
            file.truncate(0)
            file.write(f"{command}, process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        _held.append(file)
        yield
    finally:
        if file in _held:
            _held.remove(file)
        file.close()


def check(folder):
    """Before more is written to a folder that this process has claimed: it is still that folder. FolderInUse where it was removed or replaced."""
    path = str(Path(folder) / NAME)
    for file in (file for file in _held if file.name == path):
        if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise FolderInUse(f"{folder} was removed or replaced while this run used it; nothing more is written there")


_held = []


def _release_in_child():
    """A lock belongs to the open file, which a forked child shares: while it had it open, the lock would outlive its parent."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_release_in_child)
