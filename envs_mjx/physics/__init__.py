"""The one package that calls MuJoCo and MJX.

Tasks hold a `Physics` (what they may ask of it: `protocol.py`) and move a `PhysicsState`, which
has only what the next step reads (a few hundred bytes a world). Engines step it: `mjx.py` with
MJX, tuned by `tuning.py`, inside the compiled program; `c.py` with C MuJoCo on all cores, and
`warp.py` with MuJoCo Warp, which the program calls once a control step (`host.py`, `ffi.py`).
`engines.py` chooses.
"""

from typing import Any

from envs_mjx.physics.c import CPhysics, CSimulation
from envs_mjx.physics.engines import make_physics
from envs_mjx.physics.model import NamedModel, View
from envs_mjx.physics.protocol import Physics
from envs_mjx.physics.state import PhysicsState
from envs_mjx.physics.task import Simulated


def __getattr__(name: str) -> Any:
    """`MJXPhysics`, which takes seconds to import, at its first use."""
    if name != "MJXPhysics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from envs_mjx.physics.mjx import MJXPhysics

    return MJXPhysics


__all__ = [
    "CPhysics",
    "CSimulation",
    "MJXPhysics",
    "NamedModel",
    "Physics",
    "PhysicsState",
    "Simulated",
    "View",
    "make_physics",
]
