"""Which engine steps a model."""

from __future__ import annotations

from typing import Any, Literal

from envs_mjx.physics.c import CPhysics
from envs_mjx.physics.mjx import MJXPhysics
from envs_mjx.physics.protocol import Physics
from jaxrl import platform

Engine = Literal["auto", "mjx", "c"]
ENGINES: dict[str, type] = {"mjx": MJXPhysics, "c": CPhysics}


def make_physics(xml: str, *, engine: str = "auto", **arguments: Any) -> Physics:
    """A model, stepped by an engine.

    Args:
      xml: the model as an MJCF string.
      engine: "mjx", "c", or "auto" for the fastest one on the device.
      arguments: as for `NamedModel`.
    """
    if engine == "auto":
        engine = fastest(rolling=bool(arguments.get("rolling_geoms")))
    return ENGINES[engine](xml, **arguments)


def fastest(*, rolling: bool) -> str:
    """The engine that was fastest on the device for all models (docs/physics.md).

    Args:
      rolling: whether the model has rolling geoms, which C MuJoCo can only step one world after
        the other.
    """
    return "c" if platform.target() == "cpu" and not rolling else "mjx"
