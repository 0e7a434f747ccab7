"""What the tasks with arms share: joints by name, targets that move a little at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.physics import Data, Physics, PhysicsState


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
        ranges = [self.physics.model.joint(name).range for name in self.joints]
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
