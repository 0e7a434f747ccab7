"""What tasks on a `Physics` share."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from envs_mjx.physics.engines import Engine
from envs_mjx.physics.protocol import Physics
from jaxrl.envs import Task
from jaxrl.errors import UserError
from jaxrl.options import option

# Engines by their names as simulators, in `--on`.
SIMULATORS = {"mjx": "mjx", "mujoco": "c"}


@dataclasses.dataclass(frozen=True)
class Simulated(Task):
    """A task on a `Physics`, which every engine can step."""

    engine: Engine = option(
        "auto",
        "physics engine: MJX in JAX (mjx), C MuJoCo on all cores (c), MuJoCo Warp in kernels of "
        "a GPU (warp), or the fastest on the device (auto)",
    )

    physics: ClassVar[Physics]
    simulators: ClassVar[tuple[str, ...]] = tuple(SIMULATORS)

    @property
    def engine_name(self) -> str:
        return self.physics.engine

    def check_engine(self) -> None:
        self.physics.check()

    def on(self, simulator: str) -> Task:
        """The same task in another simulator, to evaluate policies there."""
        if simulator not in self.simulators:
            raise UserError(
                f"--on: got {simulator!r}, this task can be played in {', '.join(self.simulators)}"
            )
        return dataclasses.replace(self, engine=SIMULATORS[simulator])
