"""Errors that a user can correct."""

from __future__ import annotations

import sys
from typing import Any


class UserError(Exception):
    """An error in the user's input; the message states what was wrong, where, and what to do.

    Commands print it as one line and exit with status 2.
    """


def brief(text: object, max_length: int = 200) -> str:
    """A text, such as that of an error, as one line of at most `max_length` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= max_length else f"{line[: max_length - 3]}..."


def reason(error: Exception) -> str:
    """Why something failed, as one line; for an operating system's error without its path."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def tell(line: str) -> None:
    """Prints a line for the user to standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def no_opengl(error: Exception) -> UserError:
    """The error to raise if a renderer cannot be made; its message explains how to install one.

    Args:
      error: the exception of the OpenGL binding; each binding has its own type.
    """
    return UserError(
        "rendering needs an OpenGL library that works without a screen: install EGL "
        "(Debian: libegl1 libegl-mesa0 libgl1-mesa-dri) or OSMesa (libosmesa6), and "
        f"choose it with MUJOCO_GL=egl or osmesa ({type(error).__name__}: {error})"
    )


class Stopped(BaseException):
    """Raised when the user stops training while it waits for a world.

    Attributes:
      state: the training state that was reached; None: the state is unchanged.
    """

    state: Any = None
