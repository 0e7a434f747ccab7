"""The interface through which tasks use physics, independent of the engine."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import mujoco
import numpy as np

from envs_mjx.physics.model import View
from envs_mjx.physics.state import PhysicsState


class Physics(Protocol):
    """A model of one world; batch with `jax.vmap`.

    Attributes:
      engine: name of the engine that steps it.
      substeps: number of physics steps in a control step.
      model: the compiled model, for what does not depend on the engine.
      nq, nv: sizes of `qpos` and `qvel`.
      rest: [nq] the reference pose.
    """

    engine: ClassVar[str]
    substeps: int
    model: mujoco.MjModel
    nq: int
    nv: int
    rest: np.ndarray

    # Indices by name.

    def qpos_slice(self, joint: str) -> slice:
        """The joint's coordinates in `qpos`."""

    def qvel_slice(self, joint: str) -> slice:
        """The joint's velocities in `qvel`."""

    def joint_range(self, joint: str) -> tuple[float, float]:
        """Smallest and largest position of a hinge (rad) or a slide (m)."""

    def equality_id(self, name: str) -> int:
        """Index of an equality constraint in `PhysicsState.eq_active`."""

    # Steps. Forces at watched contacts are in `PhysicsState.touch`.

    def init(
        self,
        qpos: jax.Array,
        qvel: jax.Array | None = None,
        *,
        mocap_pos: jax.Array | None = None,
        fields: dict[str, jax.Array] | None = None,
        extra: Any = None,
    ) -> PhysicsState:
        """A world at rest or with the given velocities.

        Args:
          qpos: [nq] generalised positions.
          qvel: [nv] generalised velocities; None: zero.
          mocap_pos: [nmocap, 3] positions of mocap bodies (m); None: those of the model.
          fields: values of fields of the model in this world, by name; None: the model's own. The
            constants that follow from them (as in `mj_setConst`) are computed again.
          extra: data for the model's `before_step`.
        """

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls [nu]."""

    def check(self) -> None:
        """Raises a UserError if a step since the last call was wrong, as when the engine had no
        room for all contacts."""

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the model, such as "opt.gravity"."""

    # Poses of a state from `init` or `step`, of the sites and bodies that the model was made with.

    def site_pose(self, state: PhysicsState, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site."""

    def body_pose(self, state: PhysicsState, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a body."""

    def site_jacobian(self, state: PhysicsState, name: str) -> jax.Array:
        """[6, nv] linear and angular velocity of a site for a unit of each of `qvel`."""

    def pose_in_c(self, qpos: np.ndarray, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, rotation and Jacobian of a site in one configuration, in float64."""

    # Pictures.

    def render(self, states: PhysicsState, view: View, *, stride: int = 1) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of every `stride`-th of the states, leaves [T, ...]."""
