"""The state of a simulated world between physics steps."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

# The fields of a world that MuJoCo's `Data` also has.
DATA_FIELDS = ("qpos", "qvel", "qacc_warmstart", "act", "mocap_pos", "mocap_quat", "eq_active")


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
      extra: data of the task that `before_step` reads (see `NamedModel`).
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
    extra: Any = None

    def data_fields(self) -> dict[str, jax.Array]:
        """The fields that MuJoCo's `Data` also has and the model uses, by name."""
        fields = {name: getattr(self, name) for name in DATA_FIELDS}
        return {name: value for name, value in fields.items() if value is not None}
