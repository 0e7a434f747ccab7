"""The state of a simulated world between physics steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

if TYPE_CHECKING:
    from envs_mjx.physics.model import NamedModel

# Fields from which the compiler derives constants.
MOVE_CONSTANTS = {
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "dof_armature",
}


@struct.dataclass
class PhysicsState:
    """The state of one world that the next physics step needs (batch with `jax.vmap`).

    Fields that the model does not use are None.

    Attributes:
      qpos: [nq] generalised positions (m, rad, unit quaternions w-first).
      qvel: [nv] generalised velocities (m/s, rad/s).
      qacc_warmstart: [nv] last accelerations, from which the constraint solver starts.
      act: [na] actuator activations.
      mocap_pos: [nmocap, 3] positions of mocap bodies (m).
      mocap_quat: [nmocap, 4] their orientations.
      eq_active: [neq] bool, which equality constraints are active; only of models with
        a constraint that is inactive at the start.
      model: this world's own values of fields of the MJX model (by name, such as
        "body_mass"), from `Physics.init`.
      touch: [K] normal forces (N) at the watched pairs of geoms in the last physics step.
      poses: kinematics at `qpos` that tasks may read, by MuJoCo's names of the fields; see
        `Physics.site_pose`.
    """

    qpos: jax.Array
    qvel: jax.Array
    qacc_warmstart: jax.Array
    act: jax.Array | None = None
    mocap_pos: jax.Array | None = None
    mocap_quat: jax.Array | None = None
    eq_active: jax.Array | None = None
    model: dict[str, jax.Array] | None = None
    touch: jax.Array | None = None
    poses: dict[str, jax.Array] | None = None


def initial_state(
    physics: NamedModel,
    qpos: jax.Array,
    qvel: jax.Array | None,
    mocap_pos: jax.Array | None,
    fields: dict[str, jax.Array] | None,
) -> PhysicsState:
    """A world's state without its poses; arguments as `Physics.init`."""
    model = physics.model
    rest_pos = model.body_pos[model.body_mocapid >= 0]
    rest_quat = jnp.asarray(model.body_quat[model.body_mocapid >= 0], jnp.float32)
    return PhysicsState(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=jnp.zeros(model.nv) if qvel is None else jnp.asarray(qvel, jnp.float32),
        qacc_warmstart=jnp.zeros(model.nv),
        act=jnp.zeros(model.na) if model.na else None,
        mocap_pos=jnp.asarray(rest_pos if mocap_pos is None else mocap_pos, jnp.float32)
        if model.nmocap
        else None,
        mocap_quat=rest_quat if model.nmocap else None,
        eq_active=None if model.eq_active0.all() else jnp.asarray(model.eq_active0, bool),
        model=fields or None,
        touch=jnp.zeros(len(physics.watch)) if len(physics.watch) else None,
    )
