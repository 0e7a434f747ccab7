"""Videos of episodes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs import Task
from jaxrl.errors import UserError
from jaxrl.evaluation import Actor
from jaxrl.files import check_writable, replacing


def record(env: Task, actor: Actor, params: Any, path: Path, seed: int = 0) -> None:
    """Plays one episode and writes it as a video, at the task's own speed.

    Args:
      env: the task; it must have `render`.
      actor: the actor that chooses actions.
      params: parameters of the actor.
      path: the .mp4 file.
      seed: seed of the episode.

    Raises:
      UserError: the task cannot be drawn, a library is missing, or the file cannot be written.
    """
    if path.suffix != ".mp4":
        raise UserError(f"--video: got {path}, expected a file that ends in .mp4")
    if not env.can_render:
        raise UserError(f"--video: {type(env).__name__} cannot be drawn: it has no render()")
    _imageio()  # raises an error if a library is missing
    try:
        check_writable(path)
        write(path, *film(env, actor, params, seed))
    except UserError as error:
        message = str(error)
        raise UserError(
            message if message.startswith("--video") else f"--video: {message}"
        ) from error


def film(env: Task, actor: Actor, params: Any, seed: int) -> tuple[np.ndarray, float]:
    """Pictures [F, H, W, 3] uint8 of an episode, and the pictures per second (at most 50) at which
    a video plays at the task's own speed.

    Raises:
      UserError: the task cannot be drawn.
    """
    stride = max(1, math.ceil(1 / (50 * env.control_dt) - 1e-9))
    return env.runtime().film(actor, params, seed, stride), 1 / (stride * env.control_dt)


def write(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes pictures [F, H, W, 3] uint8 as a video.

    Raises:
      UserError: a library is missing, or the file cannot be written.
    """
    imageio = _imageio()
    with replacing(path) as part, warnings.catch_warnings():
        # The encoder is another program, so the warning about forking does not apply.
        warnings.simplefilter("ignore", RuntimeWarning)
        imageio.imwrite(part, frames, fps=fps, macro_block_size=8)


def _imageio() -> Any:
    """Imports the library that writes videos, and checks that it has an encoder."""
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError as error:
        raise UserError("--video: needs `pip install 'jaxrl[video]'`") from error
    except RuntimeError as error:
        raise UserError(
            "--video: no ffmpeg program was found; `pip install --force-reinstall imageio-ffmpeg` "
            "installs it, or set IMAGEIO_FFMPEG_EXE to the path of another one"
        ) from error
    return imageio
