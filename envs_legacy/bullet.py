"""Common parts of the PyBullet environments: a private world, rendering, closing."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from jaxrl.errors import UserError

GRAVITY = 9.81  # m/s^2
TIMESTEP = 1 / 240  # s, physics step of all published tasks


@functools.cache
def pybullet() -> ModuleType:
    """The module `pybullet`.

    Raises:
      UserError: PyBullet is not installed; the message names the command that installs it.
    """
    try:
        with _silent():
            import pybullet as module
    except ImportError as error:
        raise UserError("this environment needs PyBullet: pip install 'jaxrl[pybullet]'") from error
    return module


def connect(mode: int) -> Any:
    """A new `BulletClient`, which has its own world."""
    from pybullet_utils.bullet_client import BulletClient

    # Without a display, a window ends the program: PyBullet's error message must stay visible.
    with _silent() if mode == pybullet().DIRECT else contextlib.nullcontext():
        return BulletClient(connection_mode=mode)


@contextlib.contextmanager
def _silent():
    """Suppresses output: PyBullet prints its build time and arguments, from C, in each process."""
    _flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream, original in enumerate(saved, 1):
            os.dup2(original, stream)
            os.close(original)


def _flush() -> None:
    """Writes the output that Python and C have buffered."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # no such stream, or it is closed
            stream.flush()
    with contextlib.suppress(Exception):  # the C library cannot be called
        ctypes.CDLL(None).fflush(None)


@dataclasses.dataclass(frozen=True)
class Camera:
    """The camera of the pictures: its distance (m) and angles (deg) about a target (m)."""

    target: tuple[float, float, float]
    distance: float
    yaw: float = 50.0
    pitch: float = -30.0
    fov: float = 50.0
    width: int = 480  # pixels
    height: int = 360  # pixels


class BulletEnv(gym.Env[np.ndarray, np.ndarray]):
    """A Gymnasium environment with a PyBullet world that no other environment shares.

    The world is made in the first `reset`, in the process that calls it. A pickled
    environment does not contain its world and must be reset after unpickling.

    A subclass defines `observation_space`, `action_space`, `camera`, `reset`, `step` and
    `_build`, and draws random numbers from `np_random` only.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 60}
    camera: ClassVar[Camera]

    def __init__(self, render_mode: str | None = None) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise UserError(f"render_mode: got {render_mode!r}, must be None or one of {modes}")
        self.render_mode = render_mode
        self._client: Any = None
        pybullet()  # reports a missing PyBullet here rather than at the first reset

    @property
    def client(self) -> Any:
        """The world's `BulletClient`; made and filled by `_build` at its first use."""
        if self._client is None:
            bullet = pybullet()
            self._client = connect(bullet.GUI if self.render_mode == "human" else bullet.DIRECT)
            self._build()
        return self._client

    def _build(self) -> None:
        """Fills a new world with the bodies that stay there in all episodes."""
        raise NotImplementedError

    def _empty(self) -> None:
        """Clears the world, and sets gravity and time step."""
        self._client.resetSimulation()
        self._client.setGravity(0, 0, -GRAVITY)
        self._client.setTimeStep(TIMESTEP)

    def _clipped(self, parts: list[Any]) -> np.ndarray:
        """The observation's parts in one vector, clipped to the declared bounds."""
        space = self.observation_space
        values = np.concatenate([np.atleast_1d(np.asarray(p, np.float64)) for p in parts])
        return np.clip(values.astype(np.float32), space.low, space.high)

    def render(self) -> np.ndarray | None:
        """The picture, uint8 [height, width, 3], if `render_mode` is rgb_array; otherwise None."""
        if self.render_mode != "rgb_array":
            return None
        client, camera = self.client, self.camera
        view = client.computeViewMatrixFromYawPitchRoll(
            camera.target, camera.distance, camera.yaw, camera.pitch, 0, 2
        )
        lens = client.computeProjectionMatrixFOV(
            camera.fov, camera.width / camera.height, 0.05, 50.0
        )
        _, _, pixels, _, _ = client.getCameraImage(
            camera.width, camera.height, view, lens, renderer=pybullet().ER_TINY_RENDERER
        )
        # Some builds return tuples instead of arrays.
        picture = np.asarray(pixels, np.uint8).reshape(camera.height, camera.width, 4)
        return np.ascontiguousarray(picture[:, :, :3])

    def close(self) -> None:
        """Closes the world; can be called repeatedly. `reset` makes a new world."""
        client, self._client = getattr(self, "_client", None), None
        if client is not None:
            with contextlib.suppress(Exception):  # the window may be gone already
                client.disconnect()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be shutting down
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}
