"""What tasks on a `Physics` share."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from envs_mjx.physics.host import HostPhysics
from envs_mjx.physics.mjx import Physics
from jaxrl.envs import Task
from jaxrl.errors import UserError


class Simulated(Task):
    """What tasks on a `Physics` share: they can be played in other simulators."""

    physics: Physics
    simulators: ClassVar[tuple[str, ...]] = ("mjx", "mujoco")

    def on(self, simulator: str) -> Task:
        """The same task in "mjx", "mujoco" (C) or what else it knows, to judge policies in."""
        if simulator not in self.simulators:
            raise UserError(
                f"--on: got {simulator!r}, this task can be played in {', '.join(self.simulators)}"
            )
        if simulator == "mjx":
            return self
        task = dataclasses.replace(self)
        vars(task)["physics"] = self.physics_on(simulator)  # in place of the cached one
        return task

    def physics_on(self, simulator: str) -> Physics:
        """The model in a simulator other than MJX."""
        return HostPhysics(self.physics)
