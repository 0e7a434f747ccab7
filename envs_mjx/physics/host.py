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
from envs_mjx.physics.state import PhysicsState
from jaxrl import platform

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


class PackedPhysics(NamedModel):
    """A compiled MuJoCo model whose worlds are stepped outside of JAX; arguments as `NamedModel`.

    The state of the worlds stays in JAX: a call has all that the simulator needs as one row of
    numbers for each world, and returns all that changes. So the results do not depend on the
    calls before.
    """

    def _with_poses(self, state: PhysicsState) -> PhysicsState:
        # Only what the kinematics add: the rest would come back with another rounding.
        return state.replace(poses=self._call(state, jnp.zeros(self.model.nu), 0).poses)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """As `MJXPhysics.step`."""
        change = self.before_step
        if change is None:
            return self._call(state, ctrl, self.substeps)
        for _ in range(self.substeps):
            state = self._call(change(state), ctrl, 1)
        return state

    def _call(self, state: PhysicsState, ctrl: jax.Array, steps: int) -> PhysicsState:
        """The state after `steps` physics steps, of one world."""
        own = {f"model/{name}": value for name, value in sorted((state.model or {}).items())}
        inputs = {"ctrl": ctrl} | state.data_fields() | own
        results = self._results(inputs, steps, self._result_shapes(state))
        poses = {name: results.pop(name) for name in self.pose_rows}
        return state.replace(**results, poses=poses or None)

    def _results(
        self, inputs: dict[str, jax.Array], steps: int, shapes: Shapes
    ) -> dict[str, jax.Array]:
        """What has changed after some physics steps of one world.

        Args:
          inputs: the fields of `PhysicsState` that the model uses, "ctrl", and the world's own
            values of fields of the model as "model/NAME".
          steps: number of physics steps; 0: only the kinematics.
          shapes: shapes of the results: "qpos", "qvel", "qacc_warmstart", "act" and "touch"
            after the steps, if the model uses them, and the fields of `pose_rows`.
        """
        raise NotImplementedError

    def _fingerprint(self, *layouts: Shapes) -> str:
        """Text that is the same in every process for the same model, and for no other."""
        facts = (
            *(type(self).__qualname__, self.xml, self.rolling_geoms, self.watch.tolist()),
            *(self.sites, self.bodies, self.jacobians, self.substeps, layouts),
        )
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
            size = {"cdof": 6, "site_xmat": 9, "xmat": 9}.get(name, 3)
            shapes[name] = (len(rows), size)
        return shapes


class HostPhysics(PackedPhysics):
    """A compiled MuJoCo model whose worlds are stepped on the host; arguments as `NamedModel`."""

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

    def _results(
        self, inputs: dict[str, jax.Array], steps: int, shapes: Shapes
    ) -> dict[str, jax.Array]:
        advance = lambda arrays: self.advance(arrays, steps)  # noqa: E731
        return self.call(f"advance_{steps}", advance, inputs, shapes)

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
        size = width(shapes)

        def of_rows(rows: np.ndarray) -> np.ndarray:
            arrays = function(split(rows, layout))
            return np.concatenate([arrays[key].reshape(len(rows), -1) for key in shapes], axis=1)

        row = packed(inputs)
        if platform.target() == "cpu":
            key = f"jaxrl_{name}_{self._fingerprint(layout, shapes)}"
            result = ffi.call(key, of_rows, row, size)
        else:

            def batched(rows: Any) -> np.ndarray:
                flat = np.asarray(rows, np.float32).reshape(-1, rows.shape[-1])
                return of_rows(flat).astype(np.float32).reshape(*rows.shape[:-1], size)

            shape = jax.ShapeDtypeStruct((size,), jnp.float32)
            result = jax.pure_callback(batched, shape, row, vmap_method="broadcast_all")
        return split(result, shapes)


def split(rows: Any, shapes: Shapes) -> dict[str, Any]:
    """The arrays [..., *shape] that lie side by side in rows [..., K]."""
    arrays, start = {}, 0
    for key, shape in shapes.items():
        size = math.prod(shape)
        arrays[key] = rows[..., start : start + size].reshape(*rows.shape[:-1], *shape)
        start += size
    return arrays


def packed(arrays: dict[str, jax.Array]) -> jax.Array:
    """[K] float32, the arrays of one world side by side."""
    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in arrays.values()])


def width(shapes: Shapes) -> int:
    """Number of values in arrays of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
