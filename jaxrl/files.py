"""Files that must survive a kill."""

from __future__ import annotations

import os
from pathlib import Path

from jaxrl.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
