"""MuJoCo MJX: the physics that tasks are trained on."""

from __future__ import annotations

import contextlib
import functools
import io

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
    from mujoco import mjx
    from mujoco.mjx._src import solver as _mjx_solver

from envs_mjx.physics.model import NamedModel
from envs_mjx.physics.state import PhysicsState
from envs_mjx.physics.tuning import tuned_mjx


class MJXPhysics(NamedModel):
    """A compiled MuJoCo model, stepped by MJX; arguments as `NamedModel`."""

    engine = "mjx"

    @functools.cached_property
    def mjx_model(self) -> mjx.Model:
        with jax.ensure_compile_time_eval():
            return mjx.put_model(self.model, impl="jax")

    @functools.cached_property
    def _blank(self) -> mjx.Data:
        with jax.ensure_compile_time_eval():
            data = mjx.make_data(self.model, impl="jax")
            # Weakly typed leaves would change the step's signature after one step.
            return jax.tree.map(lambda x: jnp.asarray(x, dtype=jnp.asarray(x).dtype), data)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of degrees of freedom, and of the contacts and constraint rows in MJX's arrays."""
        impl = self._blank._impl
        return {
            "dof": self.model.nv,
            "contacts": len(impl.contact.dist),
            "constraint_rows": len(impl.efc_J),
        }

    # -- stepping -----------------------------------------------------------------

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls.

        Args:
          state: one world.
          ctrl: [nu] controls in the actuators' units.
        """

        def substep(state: PhysicsState, _) -> tuple[PhysicsState, None]:
            if self.before_step:
                state = self.before_step(state)
            with tuned_mjx(self.model):
                data = _step(self, self._model(state), self._data(state, ctrl))
            return self._updated(state, data), None

        state = jax.lax.scan(substep, state.replace(poses=None), length=self.substeps)[0]
        return self._with_poses(state) if self.pose_rows else state

    def _with_poses(self, state: PhysicsState) -> PhysicsState:
        with tuned_mjx(self.model):
            model = self._model(state)
            data = mjx.com_pos(model, mjx.kinematics(model, self._data(state)))
        fields = {name: getattr(data, name)[rows] for name, rows in self.pose_rows.items()}
        return state.replace(poses={n: x.reshape(len(x), -1) for n, x in fields.items()})

    # -- worlds with different models -----------------------------------------------

    def _constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = self.mjx_model.tree_replace(fields)  # at its rest pose `qpos0`
        with tuned_mjx(self.model):
            data = mjx.kinematics(model, self._blank.replace(qpos=jnp.asarray(model.qpos0)))
            data = mjx.crb(model, mjx.com_pos(model, data))
            inertia = mjx.full_m(model, data)
        jacobians = jnp.stack(
            [
                self.jacobian(data.cdof, data.xipos[b] - data.subtree_com[root], b)
                for b, root in enumerate(self.model.body_rootid)
            ]
        )
        inverse = jnp.linalg.inv(inertia)
        linear, angular = jnp.split(
            jnp.einsum("bci,ij,bcj->bc", jacobians, inverse, jacobians), 2, axis=1
        )
        # Bodies that cannot move have weight 0, as from the compiler.
        fixed = jnp.asarray(self.model.body_weldid == 0)
        body = jnp.where(fixed[:, None], 0.0, jnp.stack([linear.mean(1), angular.mean(1)], 1))
        # A ball joint's three dofs, and the two halves of a free joint's six, share a mean.
        group = np.zeros((self.model.nv, self.model.nv))
        for j in range(self.model.njnt):
            start, kind = self.model.jnt_dofadr[j], self.model.jnt_type[j]
            sizes = {mujoco.mjtJoint.mjJNT_FREE: (3, 3), mujoco.mjtJoint.mjJNT_BALL: (3,)}
            for size in sizes.get(mujoco.mjtJoint(kind), (1,)):
                group[start : start + size, start : start + size] = 1.0 / size
                start += size
        subtree = self.subtree @ model.body_mass
        return {
            "body_subtreemass": subtree,
            "body_invweight0": body,
            "dof_invweight0": jnp.asarray(group, jnp.float32) @ jnp.diag(inverse),
        }

    def _model(self, state: PhysicsState) -> mjx.Model:
        return self.mjx_model.tree_replace(state.model) if state.model else self.mjx_model

    def _data(self, state: PhysicsState, ctrl: jax.Array | None = None) -> mjx.Data:
        fields = state.data_fields()
        if ctrl is not None:
            fields["ctrl"] = ctrl
        return self._blank.replace(**fields)

    def _updated(self, state: PhysicsState, data: mjx.Data) -> PhysicsState:
        """`state` with new values of its fields from `data`."""
        carried = {name: getattr(data, name) for name in state.data_fields()}
        if state.touch is not None:
            carried["touch"] = self._touch(data)
        return state.replace(**carried)

    def _touch(self, data: mjx.Data) -> jax.Array:
        """[K] normal force at the watched pairs (N)."""
        geom = data._impl.contact.geom  # [C, 2]
        # Contacts come last among the constraints, four rows each; the edges of the
        # friction pyramid add up to the normal force.
        force = data._impl.efc_force[-4 * len(geom) :].reshape(-1, 4).sum(1)
        pairs = jnp.asarray(self.watch)[:, None]  # [K, 1, 2]
        same = (geom == pairs).all(2) | (geom[:, ::-1] == pairs).all(2)
        return jnp.where(same, force, 0.0).sum(1)


def _step(physics: MJXPhysics, model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """One physics step; it is MJX's own step unless the model has rolling geoms."""
    if not physics.rolling_geoms:
        return mjx.step(model, data)
    data = mjx.kinematics(model, data)
    data = mjx.com_pos(model, data)
    data = mjx.crb(model, data)
    data = mjx.factor_m(model, data)
    data = mjx.collision(model, data)
    data = _turn_contact_frames(physics, data)
    data = mjx.make_constraint(model, data)
    data = mjx.transmission(model, data)
    data = mjx.fwd_velocity(model, data)
    data = mjx.fwd_actuation(model, data)
    data = mjx.fwd_acceleration(model, data)
    data = _mjx_solver.solve(model, data)
    return mjx.euler(model, data)


def _turn_contact_frames(physics: MJXPhysics, data: mjx.Data) -> mjx.Data:
    """Turns the contact frames of rolling geoms; their rows are then normal, rim and axis."""
    contact = data._impl.contact
    rolls = np.zeros(physics.model.ngeom, bool)
    rolls[list(physics.rolling_geoms)] = True
    rolls = jnp.asarray(rolls)
    geom1, geom2 = contact.geom[:, 0], contact.geom[:, 1]
    wheel = jnp.where(rolls[geom1], geom1, geom2)
    axis = data.geom_xmat[wheel].reshape(-1, 3, 3)[:, :, 2]
    normal = contact.frame[:, 0]
    rim = jnp.cross(axis, normal)
    rim = rim / jnp.maximum(jnp.linalg.norm(rim, axis=-1, keepdims=True), 1e-6)
    turned = jnp.stack([normal, rim, jnp.cross(normal, rim)], axis=1)
    frame = jnp.where(rolls[wheel][:, None, None], turned, contact.frame)
    return data.tree_replace({"_impl.contact.frame": frame})
