"""Configurations and trained policies that are installed with the package."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"


def find(path: Path, kind: str) -> Path:
    """Returns `path`; if nothing is there, the path of that name among the installed files.

    Args:
      path: path or name, such as "checkpoints/ballbot" or "ballbot".
      kind: "checkpoints" or "configs".
    """
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    inside = path.relative_to(kind) if path.parts[:1] == (kind,) else path
    shipped = SHIPPED / kind / inside
    return shipped if inside.parts and shipped.exists() else path
