"""The interface through which tasks use physics, independent of the engine."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from envs_mjx.physics.model import View
from envs_mjx.physics.state import PhysicsState


class Physics(Protocol):
    """A model of one world; batch with `jax.vmap`.

    Attributes:
      substeps: number of physics steps in a control step.
      nq, nv: sizes of `qpos` and `qvel`.
      rest: [nq] the reference pose.
    """

    substeps: int
    nq: int
    nv: int
    rest: np.ndarray

    # Indices by name.

    def qpos_slice(self, joint: str) -> slice:
        """Indices of the joint's coordinates in `qpos`."""

    def qvel_slice(self, joint: str) -> slice:
        """Indices of the joint's velocities in `qvel`."""

    def joint_range(self, joint: str) -> tuple[float, float]:
        """Lowest and highest position of a hinge (rad) or a slide (m)."""

    def equality_id(self, name: str) -> int:
        """Index of an equality constraint in `PhysicsState.eq_active`."""

    # Steps. Forces at watched contacts are in `PhysicsState.touch`.

    def init(self, qpos: jax.Array, qvel: jax.Array | None = None) -> PhysicsState:
        """A world at rest or with the given velocities."""

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls [nu]."""

    # Poses and Jacobians.

    def kinematics(self, state: PhysicsState) -> Any:
        """Poses of all bodies: the `data` argument of the next three methods."""

    def site_pose(self, data: Any, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site."""

    def body_pose(self, data: Any, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a body."""

    def site_jacobian(self, data: Any, name: str) -> jax.Array:
        """[6, nv] linear and angular velocity of a site per unit of each component of `qvel`."""

    def pose_in_c(self, qpos: np.ndarray, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, rotation and Jacobian of a site in one configuration, in float64."""

    # Worlds with different models.

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the model, such as "opt.gravity"."""

    def model_with(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`PhysicsState.model` for a world with other values of some fields."""

    # Pictures.

    def render(self, states: PhysicsState, view: View, *, stride: int = 1) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of every `stride`-th of the states, leaves [T, ...]."""
