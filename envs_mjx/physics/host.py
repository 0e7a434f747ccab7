"""Physics outside of JAX, which compiled programs call once a control step."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.physics import ffi
from envs_mjx.physics.model import NamedModel
from envs_mjx.physics.state import PhysicsState, initial_state
from jaxrl import platform

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


class HostPhysics(NamedModel):
    """A compiled MuJoCo model whose worlds are stepped outside of JAX; arguments as `NamedModel`.

    The state of the worlds stays in JAX: a call has all that the simulator needs, and returns
    all that changes. So the results do not depend on the calls before.
    """

    def advance(self, inputs: Arrays, steps: int) -> Arrays:
        """Steps worlds.

        Args:
          inputs: the fields of `PhysicsState` that the model uses, "ctrl", and the worlds' own
            values of fields of the model as "model/NAME"; arrays [N, ...] float32.
          steps: number of physics steps; 0: only the kinematics.

        Returns:
          "qpos", "qvel", "qacc_warmstart", "act" and "touch" after the steps, if the model uses
          them, and the fields of `pose_rows`; arrays [N, ...]. Worlds that failed are NaN.
        """
        raise NotImplementedError

    # -- in compiled programs --------------------------------------------------------------

    def init(
        self,
        qpos: jax.Array,
        qvel: jax.Array | None = None,
        *,
        mocap_pos: jax.Array | None = None,
        fields: dict[str, jax.Array] | None = None,
    ) -> PhysicsState:
        """As `MJXPhysics.init`."""
        fields = self._with_constants(fields) if fields else None
        state = initial_state(self, qpos, qvel, mocap_pos, fields)
        if not self.pose_rows:
            return state
        # Only what the kinematics add: the rest would come back with another rounding.
        moved = self._call(state, jnp.zeros(self.model.nu), 0)
        return state.replace(poses=moved.poses)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """As `MJXPhysics.step`."""
        return self._call(state, ctrl, self.substeps)

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the model, such as "opt.gravity"."""
        owner: Any = self.model
        *sections, field = name.split(".")
        for section in sections:
            owner = getattr(owner, section)
        return jnp.asarray(getattr(owner, field), jnp.float32)

    def _with_constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Fields of the model, and with them the constants that follow from them."""
        return fields

    def _call(self, state: PhysicsState, ctrl: jax.Array, steps: int) -> PhysicsState:
        """The state after `steps` physics steps, of one world."""
        inputs = {"ctrl": ctrl, **_carried(state)}
        results = self.call(
            f"advance_{steps}",
            lambda arrays: self.advance(arrays, steps),
            inputs,
            self._result_shapes(state),
        )
        poses = {name: results.pop(name) for name in self.pose_rows}
        return state.replace(**results, poses=poses or None)

    def call(
        self, name: str, function: Any, inputs: dict[str, jax.Array], shapes: Shapes
    ) -> dict[str, jax.Array]:
        """Calls a function of arrays by name from a compiled program.

        Args:
          name: name of the function among this model's.
          function: arrays [N, ...] by name -> arrays [N, ...] by name.
          inputs: arrays of one world.
          shapes: shapes of the results of one world.
        """
        layout = {key: x.shape for key, x in inputs.items()}
        size = sum(math.prod(shape) for shape in shapes.values())

        def of_rows(rows: np.ndarray) -> np.ndarray:
            arrays = function(_split(rows, layout))
            return np.concatenate([arrays[key].reshape(len(rows), -1) for key in shapes], axis=1)

        row = jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in inputs.values()])
        if platform.target() == "cpu":
            key = f"jaxrl_{name}_{self._fingerprint(layout, shapes)}"
            result = ffi.call(key, of_rows, row, size)
        else:

            def batched(rows: Any) -> np.ndarray:
                flat = np.asarray(rows, np.float32).reshape(-1, rows.shape[-1])
                return of_rows(flat).astype(np.float32).reshape(*rows.shape[:-1], size)

            shape = jax.ShapeDtypeStruct((size,), jnp.float32)
            result = jax.pure_callback(batched, shape, row, vmap_method="broadcast_all")
        return _split(result, shapes)

    def _fingerprint(self, *layouts: Shapes) -> str:
        """Text that is the same in every process for the same model, and for no other."""
        facts = (type(self).__qualname__, vars_of(self), self.substeps, layouts)
        return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    def _result_shapes(self, state: PhysicsState) -> Shapes:
        """Shapes of what `advance` returns for one world."""
        model = self.model
        shapes: Shapes = {"qpos": (model.nq,), "qvel": (model.nv,), "qacc_warmstart": (model.nv,)}
        if state.act is not None:
            shapes["act"] = (model.na,)
        if state.touch is not None:
            shapes["touch"] = (len(self.watch),)
        for name, rows in self.pose_rows.items():
            width = {"cdof": 6, "site_xmat": 9, "xmat": 9}.get(name, 3)
            shapes[name] = (len(rows), width)
        return shapes


def vars_of(physics: NamedModel) -> tuple[Any, ...]:
    """What distinguishes a model from others."""
    watch = tuple(map(tuple, physics.watch.tolist()))
    return (
        physics.xml,
        physics.rolling_geoms,
        watch,
        physics.sites,
        physics.bodies,
        physics.jacobians,
    )


def _carried(state: PhysicsState) -> dict[str, jax.Array]:
    """The fields of a world that a simulator needs, by name."""
    fields = {
        name: value
        for name, value in vars(state).items()
        if value is not None and name not in ("touch", "poses", "model")
    }
    own = {f"model/{name}": value for name, value in sorted((state.model or {}).items())}
    return fields | own


def _split(rows: Any, shapes: Shapes) -> dict[str, Any]:
    """The arrays [..., *shape] that lie side by side in rows [..., K]."""
    arrays, start = {}, 0
    for key, shape in shapes.items():
        size = math.prod(shape)
        arrays[key] = rows[..., start : start + size].reshape(*rows.shape[:-1], *shape)
        start += size
    return arrays
