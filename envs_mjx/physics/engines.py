"""Which engine steps a model."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from envs_mjx.physics.c import CPhysics
from envs_mjx.physics.protocol import Physics
from jaxrl import platform
from jaxrl.errors import UserError

Engine = Literal["auto", "mjx", "c", "warp"]


def make_physics(xml: str, *, engine: str = "auto", **arguments: Any) -> Physics:
    """A model, stepped by an engine.

    Args:
      xml: the model as an MJCF string.
      engine: "mjx", "c", "warp", or "auto" for the fastest one on the device.
      arguments: as for `NamedModel`.

    Raises:
      UserError: the engine is not installed, or cannot step this model.
    """
    rolling = bool(arguments.get("rolling_geoms"))
    if engine == "auto":
        engine = fastest(rolling=rolling)
    if engine == "warp" and rolling:
        raise UserError("env.engine: warp cannot step models with rolling geoms; use mjx")
    # MJX and Warp take seconds to import.
    if engine == "warp":
        from envs_mjx.physics.warp import WarpPhysics

        return WarpPhysics(xml, **arguments)
    if engine == "mjx":
        from envs_mjx.physics.mjx import MJXPhysics

        return MJXPhysics(xml, **arguments)
    return CPhysics(xml, **arguments)


def fastest(*, rolling: bool) -> str:
    """The installed engine that was fastest on the device for all models (docs/physics.md).

    Args:
      rolling: whether the model has rolling geoms, which C MuJoCo can only step one world after
        the other, and Warp not at all.
    """
    if rolling:
        return "mjx"
    if platform.target() == "cpu":
        return "c"
    return "warp" if importlib.util.find_spec("warp") else "mjx"
