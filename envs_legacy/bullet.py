"""What the PyBullet environments share: a world of their own, rendering, closing."""

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
TIMESTEP = 1 / 240  # s, of every original


@functools.cache
def pybullet() -> ModuleType:
    """The simulator, or a plain word on how to get it."""
    try:
        with _silent():
            import pybullet as module
    except ImportError as error:
        raise UserError("this environment needs PyBullet: pip install 'jaxrl[pybullet]'") from error
    return module


def connect(mode: int) -> Any:
    """A new `BulletClient`: a world of its own."""
    from pybullet_utils.bullet_client import BulletClient

    # Without a screen a window ends the program; then PyBullet's last words must be heard.
    with _silent() if mode == pybullet().DIRECT else contextlib.nullcontext():
        return BulletClient(connection_mode=mode)


@contextlib.contextmanager
def _silent():
    """PyBullet tells its build time and a program's arguments, from C, in every process."""
    _flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream, was in enumerate(kept, 1):
            os.dup2(was, stream)
            os.close(was)


def _flush() -> None:
    """Writes what Python and C still hold back."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # there is none, or it is closed
            stream.flush()
    with contextlib.suppress(Exception):  # where the C library cannot be asked
        ctypes.CDLL(None).fflush(None)


@dataclasses.dataclass(frozen=True)
class Camera:
    """Where pictures are taken from: distance (m) and angles (deg) about a target (m)."""

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
    environment leaves its world behind and must be reset after unpickling.

    A class that inherits gives `observation_space`, `action_space`, `camera`, `reset`,
    `step` and `_build`, and draws random numbers from `np_random` only.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 60}
    camera: ClassVar[Camera]

    def __init__(self, render_mode: str | None = None) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise UserError(f"render_mode: got {render_mode!r}, must be None or one of {modes}")
        self.render_mode = render_mode
        self._client: Any = None
        pybullet()  # fails here, where the user can still see why

    @property
    def client(self) -> Any:
        """The world's own `BulletClient`, made and filled by `_build` when first asked for."""
        if self._client is None:
            bullet = pybullet()
            self._client = connect(bullet.GUI if self.render_mode == "human" else bullet.DIRECT)
            self._build()
        return self._client

    def _build(self) -> None:
        """Fill a new world with what every episode has."""
        raise NotImplementedError

    def _empty(self) -> None:
        """Clear the world; gravity and time step are set."""
        self._client.resetSimulation()
        self._client.setGravity(0, 0, -GRAVITY)
        self._client.setTimeStep(TIMESTEP)

    def _clipped(self, parts: list[Any]) -> np.ndarray:
        """The observation's parts in one vector, within the declared bounds."""
        space = self.observation_space
        values = np.concatenate([np.atleast_1d(np.asarray(p, np.float64)) for p in parts])
        return np.clip(values.astype(np.float32), space.low, space.high)

    def render(self) -> np.ndarray | None:
        """The picture, uint8 [height, width, 3], with `rgb_array`; otherwise None."""
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
        # Some builds answer with tuples instead of arrays.
        picture = np.asarray(pixels, np.uint8).reshape(camera.height, camera.width, 4)
        return np.ascontiguousarray(picture[:, :, :3])

    def close(self) -> None:
        """Give the world up. More than once is no harm; `reset` makes a new one."""
        client, self._client = getattr(self, "_client", None), None
        if client is not None:
            with contextlib.suppress(Exception):  # the window may be gone already
                client.disconnect()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}
