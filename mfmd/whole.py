"""Files that are there whole, or as they were before."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def writing(path, text=False):
    """A file to write into, of bytes or text. It takes the place of `path` once all of it is on the disk; where that fails nothing of it is left.

    Raises
    ------
    OSError : as open, write and fsync do
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w" if text else "wb", encoding="utf-8" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
