"""What a task may ask of physics, whatever engine is behind it."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from envs_mjx.physics.state import PhysicsState


class Physics(Protocol):
    """A model of one world; batch with `jax.vmap`.

    Attributes:
      substeps: physics steps a control step.
      nq, nv: sizes of `qpos` and `qvel`.
      rest: [nq] the reference pose.
    """

    substeps: int
    nq: int
    nv: int
    rest: np.ndarray

    # Places by name.

    def qpos_slice(self, joint: str) -> slice:
        """Where the joint's coordinates lie in `qpos`."""

    def qvel_slice(self, joint: str) -> slice:
        """Where the joint's velocities lie in `qvel`."""

    def joint_range(self, joint: str) -> tuple[float, float]:
        """Least and largest position of a hinge (rad) or a slide (m)."""

    def equality_id(self, name: str) -> int:
        """Where an equality constraint lies in `PhysicsState.eq_active`."""

    # Steps. Forces at watched contacts are in `PhysicsState.touch`.

    def init(self, qpos: jax.Array, qvel: jax.Array | None = None) -> PhysicsState:
        """A world at rest or with the given velocities."""

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls [nu]."""

    # Poses and Jacobians.

    def kinematics(self, state: PhysicsState) -> Any:
        """What the three below read."""

    def site_pose(self, data: Any, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site."""

    def body_pose(self, data: Any, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a body."""

    def site_jacobian(self, data: Any, name: str) -> jax.Array:
        """[6, nv] linear and angular velocity of a site for a unit of each of `qvel`."""

    def pose_in_c(self, qpos: np.ndarray, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, rotation and Jacobian of a site in one configuration, in float64."""

    # Worlds that differ.

    def field(self, name: str) -> jax.Array:
        """The nominal value of a number of the model, such as "opt.gravity"."""

    def own_model(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`PhysicsState.model` for a world with other values of some fields."""

    # Pictures.

    def render(self, states: PhysicsState, *, stride: int = 1, **camera: Any) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of every `stride`-th of the states, leaves [T, ...]."""
