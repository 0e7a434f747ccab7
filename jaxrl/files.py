"""Files that stay complete after a kill or a power cut, and folders locked by one process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxrl.errors import UserError, reason

LOCK = ".lock"


def write_text(path: Path, text: str) -> None:
    """Writes a file; if writing is interrupted, the old file is unchanged.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, in the folder of `path`. At the end the temporary file
    replaces `path`; after an error it is deleted.

    Raises:
      UserError: the file cannot be written.
    """
    part = path
    try:
        part = _temporary_path(path)
        yield part
        if part != path:
            sync(part)
            os.replace(part, path)
            sync(path.parent)
    except (OSError, ValueError) as error:  # ValueError: not a file name, such as "."
        raise _not_written(path, error) from error
    finally:
        if part != path:
            with contextlib.suppress(OSError):
                part.unlink()


def check_writable(path: Path) -> None:
    """Makes the folder of a file that will be written later, and tries to write there.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part = _temporary_path(path)
        if part != path:
            part.touch()
            part.unlink()
    except (OSError, ValueError) as error:
        raise _not_written(path, error) from error


def first_free(path: Path) -> Path:
    """The first path that does not exist yet of report.html, report-2.html, report-3.html, ..."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _temporary_path(path: Path) -> Path:
    """The path of a temporary file that will replace `path`. For a device or a link it is `path`
    itself, since replacing would destroy the device or link."""
    plain = not path.is_symlink() and (path.is_file() or not path.exists())
    return path.with_name(f"{path.stem}.part{path.suffix}") if plain else path


def _not_written(path: Path, error: Exception) -> UserError:
    shown = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    return UserError(f"cannot write {shown}: {reason(error)}")


def sync(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk itself."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock(folder: Path) -> IO[str] | None:
    """Locks a folder for this process, until the returned file is closed or the process ends, even
    if it is killed. Returns None if the system or the file system has no locks.

    Raises:
      UserError: another process has locked the folder.
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
            f"{folder}: is being trained by {owner}; wait until it ends, or choose another folder"
        ) from error
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file
