"""The only part of `envs_mjx` that calls MuJoCo and MJX.

A task holds a `Physics` (its interface is in `protocol.py`) and steps a `PhysicsState`, which
contains only what the next step reads (a few hundred bytes per world); the rest of MJX's `Data`
is rebuilt from constants inside the step. `mjx.py` steps a model with MJX, tuned by `tuning.py`;
`c.py` steps the same model in C MuJoCo, in float64, for parity tests; `host.py` replaces MJX by C
MuJoCo or another simulator, to evaluate a policy outside the simulator that it was trained in.
"""

from envs_mjx.physics.c import CPhysics
from envs_mjx.physics.host import HostPhysics
from envs_mjx.physics.mjx import Data, Physics
from envs_mjx.physics.model import View
from envs_mjx.physics.state import PhysicsState
from envs_mjx.physics.task import Simulated

__all__ = ["CPhysics", "Data", "HostPhysics", "Physics", "PhysicsState", "Simulated", "View"]
