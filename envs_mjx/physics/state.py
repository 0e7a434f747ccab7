"""What a simulated world is from one physics step to the next."""

from __future__ import annotations

import jax
from flax import struct


@struct.dataclass
class PhysicsState:
    """What the next physics step needs, for one world (batch with `jax.vmap`).

    A field that the model does not use is None.

    Attributes:
      qpos: [nq] generalised positions (m, rad, unit quaternions w-first).
      qvel: [nv] generalised velocities (m/s, rad/s).
      qacc_warmstart: [nv] last accelerations, where the constraint solver starts.
      act: [na] actuator activations.
      mocap_pos: [nmocap, 3] positions of mocap bodies (m).
      mocap_quat: [nmocap, 4] their orientations.
      eq_active: [neq] bool, which equality constraints hold; only of models that have
        one which is off at the start.
      model: fields of the MJX model that this world has its own values of (by name, such
        as "body_mass"), made with `Physics.own_model`.
      touch: [K] normal forces (N) at the watched pairs of geoms in the last physics step.
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
