"""What the tasks with arms share: joints by name, targets that move a little at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.physics import Data, Physics, PhysicsState, Simulated
from jaxrl.envs import State


class ArmView(NamedTuple):
    """One arm as its scripted expert sees it.

    Attributes:
      targets: [n] joint targets (rad).
      q: [n] joint positions (rad).
      position: [3] of the gripper's site (m, world).
      rotation: [3, 3] site to world.
      jacobian: [6, n] of the site, linear above angular, world frame.
    """

    targets: jax.Array
    q: jax.Array
    position: jax.Array
    rotation: jax.Array
    jacobian: jax.Array


class ArmTask(Simulated):
    """What tasks with arms share; their dataclasses have the fields that it reads."""

    timestep: float
    substeps: int
    episode_seconds: float

    @property
    def control_dt(self) -> float:
        return self.timestep * self.substeps

    @property
    def episode_length(self) -> int:
        return max(round(self.episode_seconds / self.control_dt), 1)

    @staticmethod
    def at_start(state: State) -> State:
        """A state that no step has led to: without reward, and metrics 0."""
        metrics = jax.tree.map(jnp.zeros_like, state.metrics)
        return state.replace(reward=jnp.zeros(()), metrics=metrics)


@dataclasses.dataclass(frozen=True)
class Arm:
    """The joints of an arm in a model.

    Attributes:
      physics: the model.
      joints: names, from the base on; hinges.
      site: name of the site between the gripper's fingers.
      joint_step: largest change of a joint's target in a control step (rad).
    """

    physics: Physics
    joints: tuple[str, ...]
    site: str
    joint_step: float

    @functools.cached_property
    def qpos(self) -> np.ndarray:
        """[n] where the joints lie in `qpos`."""
        return np.array([self.physics.qpos_slice(name).start for name in self.joints])

    @functools.cached_property
    def dofs(self) -> np.ndarray:
        """[n] where they lie in `qvel`."""
        return np.array([self.physics.qvel_slice(name).start for name in self.joints])

    @functools.cached_property
    def limits(self) -> np.ndarray:
        """[2, n] least and largest positions (rad)."""
        ranges = [self.physics.joint_range(name) for name in self.joints]
        return np.array(ranges, np.float32).T

    def moved(self, targets: jax.Array, action: jax.Array) -> jax.Array:
        """[n] targets after an action [n] in [-1, 1] that changes them."""
        change = self.joint_step * jnp.clip(action, -1.0, 1.0)
        return jnp.clip(targets + change, *self.limits)

    def approached(self, targets: jax.Array, action: jax.Array) -> jax.Array:
        """[n] targets after an action [n] in [-1, 1] that spans the joints' ranges."""
        low, high = self.limits
        wanted = low + 0.5 * (high - low) * (jnp.clip(action, -1.0, 1.0) + 1.0)
        return targets + jnp.clip(wanted - targets, -self.joint_step, self.joint_step)

    def view(self, state: PhysicsState, data: Data, targets: jax.Array) -> ArmView:
        """What an expert needs; `data` is the state's kinematics."""
        position, rotation = self.physics.site_pose(data, self.site)
        return ArmView(
            targets=targets,
            q=state.qpos[self.qpos],
            position=position,
            rotation=rotation,
            jacobian=self.physics.site_jacobian(data, self.site)[:, self.dofs],
        )

    def solve(
        self, start: np.ndarray, position: np.ndarray, rotation: np.ndarray, steps: int = 60
    ) -> np.ndarray:
        """[n] joint positions (rad) that bring the site to a pose, by C MuJoCo.

        Args:
          start: [n] where the search begins.
          position: [3] (m, world).
          rotation: [3, 3] site to world.
          steps: of the search.
        """
        qpos, q = self.physics.rest.copy(), np.array(start, float)
        for _ in range(steps):
            qpos[self.qpos] = q
            place, actual, jacobian = self.physics.pose_in_c(qpos, self.site)
            turn = 0.5 * np.cross(actual, rotation, axis=0).sum(1)
            error = np.concatenate([position - place, turn])
            own = jacobian[:, self.dofs]
            q += own.T @ np.linalg.solve(own @ own.T + 1e-4 * np.eye(6), error)
            q = np.clip(q, *self.limits)
        return q
