"""The one package that calls MuJoCo and MJX.

Tasks hold a `Physics` (what they may ask of it: `protocol.py`) and move a `PhysicsState`, which
has only what the next step reads (a few hundred bytes a world); everything else that MJX keeps
in its `Data` is rebuilt inside the step from constants. `mjx.py` steps it with MJX, tuned by
`tuning.py`; `c.py` steps the same model in C MuJoCo, in float64, for parity tests; `host.py` lets
C, or another simulator, stand in for MJX, to judge a policy outside the simulator that it was
trained in.
"""

from envs_mjx.physics.c import CPhysics
from envs_mjx.physics.host import HostPhysics
from envs_mjx.physics.mjx import Data, Physics
from envs_mjx.physics.state import PhysicsState
from envs_mjx.physics.task import Simulated

__all__ = ["CPhysics", "Data", "HostPhysics", "Physics", "PhysicsState", "Simulated"]
