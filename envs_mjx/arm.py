"""Common parts of the tasks with arms: joints by name, joint targets that move in small steps."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.physics import Physics, PhysicsState, Simulated
from jaxrl.envs import State


class ArmView(NamedTuple):
    """One arm as its scripted expert sees it.

    Attributes:
      targets: [n] joint targets (rad).
      q: [n] joint positions (rad).
      position: [3] position of the gripper's site (m, world).
      rotation: [3, 3] site to world.
      jacobian: [6, n] Jacobian of the site, linear above angular rows, world frame.
    """

    targets: jax.Array
    q: jax.Array
    position: jax.Array
    rotation: jax.Array
    jacobian: jax.Array


class ArmTask(Simulated):
    """Base class of tasks with arms; a task's dataclass defines the fields below as settings."""

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
        """The state as the first of an episode: its reward and its metrics are 0."""
        metrics = jax.tree.map(jnp.zeros_like, state.metrics)
        return state.replace(reward=jnp.zeros(()), metrics=metrics)


@dataclasses.dataclass(frozen=True)
class Arm:
    """The joints of an arm in a model.

    Attributes:
      physics: the model.
      joints: names of the joints, from the base outwards; all are hinges.
      site: name of the site between the gripper's fingers.
      joint_step: largest change of a joint's target in a control step (rad).
    """

    physics: Physics
    joints: tuple[str, ...]
    site: str
    joint_step: float

    @functools.cached_property
    def qpos(self) -> np.ndarray:
        """[n] indices of the joints in `qpos`."""
        return np.array([self.physics.qpos_slice(name).start for name in self.joints])

    @functools.cached_property
    def dofs(self) -> np.ndarray:
        """[n] indices of the joints in `qvel`."""
        return np.array([self.physics.qvel_slice(name).start for name in self.joints])

    @functools.cached_property
    def limits(self) -> np.ndarray:
        """[2, n] lowest and highest positions of the joints (rad)."""
        ranges = [self.physics.joint_range(name) for name in self.joints]
        return np.array(ranges, np.float32).T

    def moved(self, targets: jax.Array, action: jax.Array) -> jax.Array:
        """[n] new joint targets; the action [n] in [-1, 1] is a change of the targets."""
        change = self.joint_step * jnp.clip(action, -1.0, 1.0)
        return jnp.clip(targets + change, *self.limits)

    def approached(self, targets: jax.Array, action: jax.Array) -> jax.Array:
        """[n] new joint targets; the action [n] gives goals, -1 and 1 are the joints' limits."""
        low, high = self.limits
        goals = low + 0.5 * (high - low) * (jnp.clip(action, -1.0, 1.0) + 1.0)
        return targets + jnp.clip(goals - targets, -self.joint_step, self.joint_step)

    def view(self, state: PhysicsState, targets: jax.Array) -> ArmView:
        """The arm as its scripted expert sees it."""
        position, rotation = self.physics.site_pose(state, self.site)
        return ArmView(
            targets=targets,
            q=state.qpos[self.qpos],
            position=position,
            rotation=rotation,
            jacobian=self.physics.site_jacobian(state, self.site)[:, self.dofs],
        )

    def solve(
        self, start: np.ndarray, position: np.ndarray, rotation: np.ndarray, steps: int = 60
    ) -> np.ndarray:
        """[n] joint positions (rad) that bring the site to a pose; computed with C MuJoCo.

        Args:
          start: [n] joint positions at which the search begins (rad).
          position: [3] goal of the site (m, world).
          rotation: [3, 3] goal of the site, site to world.
          steps: largest number of steps of the search.
        """
        qpos, q = self.physics.rest.copy(), np.array(start, float)
        for _ in range(steps):
            qpos[self.qpos] = q
            actual_position, actual_rotation, jacobian = self.physics.pose_in_c(qpos, self.site)
            turn = 0.5 * np.cross(actual_rotation, rotation, axis=0).sum(1)
            error = np.concatenate([position - actual_position, turn])
            if np.abs(error).max() < 1e-9:
                break
            arm_jacobian = jacobian[:, self.dofs]
            q += arm_jacobian.T @ np.linalg.solve(
                arm_jacobian @ arm_jacobian.T + 1e-4 * np.eye(6), error
            )
            q = np.clip(q, *self.limits)
        return q
