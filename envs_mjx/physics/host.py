"""Physics that is stepped outside of JAX, to evaluate policies."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs_mjx.physics.c import CPhysics
from envs_mjx.physics.mjx import Physics
from envs_mjx.physics.model import NamedModel
from envs_mjx.physics.state import PhysicsState
from jaxrl.errors import UserError


class HostPhysics(Physics):
    """The model of another `Physics`, stepped outside of JAX by C MuJoCo or by `advance`.

    A compiled program that steps it calls back to the host; so it is meant for evaluating
    policies, not for training them. All worlds must have the same model.

    Args:
      physics: the physics to take the model, the substeps and the watched pairs from.
      advance: (qpos [N, nq], qvel [N, nv], ctrl [N, nu], eq_active [N, neq]) -> qpos, qvel
        and the watched forces [N, K] after a control step; None: C MuJoCo.
    """

    def __init__(self, physics: Physics, advance: Any = None):
        NamedModel.__init__(self, physics.model)
        self.substeps = physics.substeps
        self.rolling_geoms, self.watch = physics.rolling_geoms, physics.watch
        self._advance = advance or self._advance_in_c
        self._worlds: dict[int, CPhysics] = {}

    def model_with(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if fields:
            raise UserError(
                "--on: this task's worlds differ in their models; switch its randomisation off "
                "with --set (see docs/environments.md)"
            )
        return fields

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in (state.qpos.shape, state.qvel.shape, (len(self.watch),))
        ]
        eq_active = jnp.zeros(0) if state.eq_active is None else state.eq_active
        qpos, qvel, touch = jax.pure_callback(
            self._on_host,
            shapes,
            *(state.qpos, state.qvel, ctrl, eq_active),
            vmap_method="broadcast_all",
        )
        return state.replace(qpos=qpos, qvel=qvel, touch=None if state.touch is None else touch)

    def _on_host(self, *arrays: jax.Array) -> tuple[np.ndarray, ...]:
        """A control step of one or many worlds; results have the same batch axes as `arrays`."""
        batch = arrays[0].shape[:-1]
        count = math.prod(batch)
        rows = [np.asarray(x, np.float64).reshape(count, x.shape[-1]) for x in arrays]
        results = self._advance(*rows)
        return tuple(np.asarray(x, np.float32).reshape(*batch, x.shape[-1]) for x in results)

    def _advance_in_c(
        self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, eq_active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(qpos)
        if count not in self._worlds:
            self._worlds[count] = CPhysics(self, count)
        worlds = self._worlds[count]
        worlds.reset(qpos, qvel, eq_active if eq_active.shape[1] else None)
        qpos, qvel = worlds.step(ctrl)
        return qpos, qvel, self._touch_in_c(qpos, qvel, ctrl)

    def _touch_in_c(self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray) -> np.ndarray:
        """[N, K] normal forces (N) at the watched pairs."""
        touch, force = np.zeros((len(qpos), len(self.watch))), np.zeros(6)
        if not len(self.watch):
            return touch
        pairs = {frozenset(pair): k for k, pair in enumerate(self.watch.tolist())}
        data = mujoco.MjData(self.model)
        for n in range(len(qpos)):
            data.qpos, data.qvel, data.ctrl = qpos[n], qvel[n], ctrl[n]
            mujoco.mj_forward(self.model, data)
            for i, contact in enumerate(data.contact):
                k = pairs.get(frozenset(contact.geom.tolist()))
                if k is not None:
                    mujoco.mj_contactForce(self.model, data, i, force)
                    touch[n, k] += force[0]
        return touch
