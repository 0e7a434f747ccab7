"""Files that must survive a kill or a power cut, and folders that belong to one process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from jaxrl.errors import UserError

LOCK = ".lock"


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one, whatever happens meanwhile.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk itself."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock(folder: Path) -> IO[str] | None:
    """Claims a folder for this process, until the file that is returned is closed or the process
    ends, in whatever way. None where the file system knows no locks.

    Raises:
      UserError: another process has claimed it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    file = (folder / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{folder}: is being trained by {owner}; wait for its end, or choose another folder"
        ) from error
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file
