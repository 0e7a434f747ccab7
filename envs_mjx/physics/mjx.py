"""MuJoCo MJX: the physics that tasks are trained on."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence

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

Data = mjx.Data  # for annotations


class Physics(NamedModel):
    """A compiled MuJoCo model, stepped by MJX.

    Args:
      xml: the model as an MJCF string.
      substeps: number of physics steps in a control step.
      rolling_geoms: names of geoms (capsules or cylinders, axis z) whose contacts
        have different friction along and across their axis, as an omniwheel has.
        MuJoCo lays a contact's two friction directions along arbitrary axes; for
        these geoms the first is turned to the rim's direction (axis x normal), the
        second to the axis. Declare their contact pairs with friction
        "rim axis ...".
      watch: pairs of geoms whose contact forces `PhysicsState.touch` contains; all of the
        model's contacts then need condim 3 and the pyramidal cone.

    Raises:
      ValueError: the model does not compile, or `watch` needs other contacts than it has.
    """

    def __init__(
        self,
        xml: str,
        *,
        substeps: int,
        rolling_geoms: Sequence[str] = (),
        watch: Sequence[tuple[str, str]] = (),
    ):
        super().__init__(mujoco.MjModel.from_xml_string(xml))
        self.substeps = substeps
        self.rolling_geoms = tuple(self.model.geom(name).id for name in rolling_geoms)
        self.watch = np.array([[self.model.geom(g).id for g in pair] for pair in watch], int)
        pyramidal = self.model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
        if watch and not (pyramidal and (self.model.pair_dim == 3).all()):
            raise ValueError("watched pairs need a pyramidal cone and condim 3 everywhere")

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

    def init(self, qpos: jax.Array, qvel: jax.Array | None = None) -> PhysicsState:
        """A world at rest or with the given velocities.

        Args:
          qpos: [nq] generalised positions.
          qvel: [nv] generalised velocities; None: zero.
        """
        model, blank = self.model, self._blank
        return PhysicsState(
            qpos=jnp.asarray(qpos, jnp.float32),
            qvel=jnp.zeros(model.nv) if qvel is None else jnp.asarray(qvel, jnp.float32),
            qacc_warmstart=jnp.zeros(model.nv),
            act=blank.act if model.na else None,
            mocap_pos=blank.mocap_pos if model.nmocap else None,
            mocap_quat=blank.mocap_quat if model.nmocap else None,
            eq_active=None if model.eq_active0.all() else blank.eq_active,
            touch=jnp.zeros(len(self.watch)) if len(self.watch) else None,
        )

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls.

        Args:
          state: one world.
          ctrl: [nu] controls in the actuators' units.
        """

        def substep(state: PhysicsState, _) -> tuple[PhysicsState, None]:
            with tuned_mjx(self.model):
                data = _step(self, self._model(state), self._data(state, ctrl))
            return self._updated(state, data), None

        return jax.lax.scan(substep, state, length=self.substeps)[0]

    # -- kinematics --------------------------------------------------------------------

    def kinematics(self, state: PhysicsState) -> mjx.Data:
        """MJX `Data` of one world with poses, sites and centres of mass filled in."""
        with tuned_mjx(self.model):
            model = self._model(state)
            return mjx.com_pos(model, mjx.kinematics(model, self._data(state)))

    def site_pose(self, data: mjx.Data, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site.

        Args:
          data: result of `kinematics`.
          name: name of the site.
        """
        index = self.model.site(name).id
        return data.site_xpos[index], data.site_xmat[index].reshape(3, 3)

    def body_pose(self, data: mjx.Data, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a body; arguments as `site_pose`."""
        index = self.body_id(name)
        return data.xpos[index], data.xmat[index].reshape(3, 3)

    def site_jacobian(self, data: mjx.Data, name: str) -> jax.Array:
        """[6, nv] Jacobian of a site in the world frame: its velocity (m/s) and angular velocity
        (rad/s) for a unit of each component of `qvel`; arguments as `site_pose`."""
        body = int(self.model.site(name).bodyid[0])
        return self._jacobian(data, self.site_pose(data, name)[0], body)

    def _jacobian(self, data: mjx.Data, point: jax.Array, body: int) -> jax.Array:
        """[6, nv] Jacobian of a point [3] that moves with a body."""
        angular, linear = data.cdof[:, :3], data.cdof[:, 3:]
        arm = point - data.subtree_com[self.model.body_rootid[body]]
        jacobian = jnp.concatenate([linear + jnp.cross(angular, arm), angular], axis=1)
        moves = self._subtree[self.model.dof_bodyid, body]
        return (jacobian * moves[:, None]).T

    # -- worlds with different models -----------------------------------------------

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the MJX model, such as "opt.gravity"."""
        return functools.reduce(getattr, name.split("."), self.mjx_model)

    def model_with(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`PhysicsState.model` for a world with other values of some fields.

        The constants that MuJoCo's compiler derives from masses, inertias, armatures and lengths
        are computed again, as in `mj_setConst`: subtree masses, and the inverse weights that
        scale constraint forces.

        Args:
          fields: new values by name, in the shapes of the nominal ones.
        """
        if not fields.keys() & _MOVE_CONSTANTS:
            return fields
        return fields | self._constants(self.mjx_model.tree_replace(fields))

    def _constants(self, model: mjx.Model) -> dict[str, jax.Array]:
        """The derived constants of a model, from its rest pose `qpos0`."""
        with tuned_mjx(self.model):
            data = mjx.kinematics(model, self._blank.replace(qpos=jnp.asarray(model.qpos0)))
            data = mjx.crb(model, mjx.com_pos(model, data))
            inertia = mjx.full_m(model, data)
        jacobians = jnp.stack(
            [self._jacobian(data, data.xipos[b], b) for b in range(self.model.nbody)]
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
        subtree = self._subtree @ model.body_mass
        return {
            "body_subtreemass": subtree,
            "body_invweight0": body,
            "dof_invweight0": jnp.asarray(group, jnp.float32) @ jnp.diag(inverse),
        }

    @functools.cached_property
    def _subtree(self) -> np.ndarray:
        """[nbody, nbody] 1 where the second body is in the subtree of the first, else 0."""
        below = np.eye(self.model.nbody, dtype=np.float32)
        for body in reversed(range(1, self.model.nbody)):
            below[self.model.body_parentid[body]] += below[body]
        return below

    def _model(self, state: PhysicsState) -> mjx.Model:
        return self.mjx_model.tree_replace(state.model) if state.model else self.mjx_model

    def _data(self, state: PhysicsState, ctrl: jax.Array | None = None) -> mjx.Data:
        fields = self._carried(state)
        if ctrl is not None:
            fields["ctrl"] = ctrl
        return self._blank.replace(**fields)

    def _carried(self, state: PhysicsState) -> dict[str, jax.Array]:
        """The fields of a state that MJX's `Data` also has."""
        return {
            name: value
            for name, value in vars(state).items()
            if value is not None and name not in ("model", "touch")
        }

    def _updated(self, state: PhysicsState, data: mjx.Data) -> PhysicsState:
        """`state` with new values of its fields from `data`."""
        carried = {name: getattr(data, name) for name in self._carried(state)}
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


# Fields from which the compiler derives constants.
_MOVE_CONSTANTS = {
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "dof_armature",
}


def _step(physics: Physics, model: mjx.Model, data: mjx.Data) -> mjx.Data:
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


def _turn_contact_frames(physics: Physics, data: mjx.Data) -> mjx.Data:
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
