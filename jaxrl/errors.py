"""The error a user can mend."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Wrong input. The message says what was wrong, where, and what to do.

    Commands print it as one line and exit with status 2.
    """


def brief(text: object, most: int = 200) -> str:
    """A text, such as an error, on one line that is not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def no_opengl(error: Exception) -> UserError:
    """What to do about a renderer that cannot be made.

    Args:
      error: what the OpenGL binding raised; each raises its own.
    """
    return UserError(
        "rendering needs an OpenGL library that works without a screen: install EGL "
        "(Debian: libegl1 libegl-mesa0 libgl1-mesa-dri) or OSMesa (libosmesa6), and "
        f"choose it with MUJOCO_GL=egl or osmesa ({type(error).__name__}: {error})"
    )


class Stopped(BaseException):
    """Training was line to stop while it waited for a world.

    Attributes:
      state: the training state that was reached; None: the one that was there before.
    """

    state: Any = None
