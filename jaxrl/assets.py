"""Configurations and trained policies that come with the project, also without a clone of it."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"


def find(path: Path, kind: str) -> Path:
    """The path; where there is nothing, what the project ships under that name.

    Args:
      path: such as "checkpoints/ballbot" or "ballbot".
      kind: "checkpoints" or "configs".
    """
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    inside = path.relative_to(kind) if path.parts[:1] == (kind,) else path
    shipped = SHIPPED / kind / inside
    return shipped if inside.parts and shipped.exists() else path
