"""The base class of simulated tasks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from envs_mjx.physics.host import HostPhysics
from envs_mjx.physics.mjx import Physics
from jaxrl.envs import Task
from jaxrl.errors import UserError


class Simulated(Task):
    """Base class of tasks with a `Physics`; such a task can be played in other simulators."""

    physics: Physics
    simulators: ClassVar[tuple[str, ...]] = ("mjx", "mujoco")

    def on(self, simulator: str) -> Task:
        """The same task in another of its `simulators`, such as "mujoco" (C), for evaluation."""
        if simulator not in self.simulators:
            raise UserError(
                f"--on: got {simulator!r}, this task can be played in {', '.join(self.simulators)}"
            )
        if simulator == "mjx":
            return self
        task = dataclasses.replace(self)
        vars(task)["physics"] = self.physics_on(simulator)  # replaces the cached property
        return task

    def physics_on(self, simulator: str) -> Physics:
        """The model in a simulator other than MJX."""
        return HostPhysics(self.physics)
