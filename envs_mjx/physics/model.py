"""The parts of a model that do not depend on how it is stepped: names, ranges, pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs_mjx.physics.state import PhysicsState
from jaxrl.errors import no_opengl


@dataclasses.dataclass(frozen=True)
class View:
    """The pose of the camera that takes pictures of a world.

    Attributes:
      target: [3] the point at which the camera looks (m).
      body: a body that the camera looks at and follows, instead of `target`.
      distance: distance of the camera from the target or the body (m).
      azimuth, elevation: viewing direction, about the vertical and against the horizontal (deg);
        at an elevation below 0 the camera looks down.
    """

    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    body: str | None = None
    distance: float = 1.5
    azimuth: float = 135.0
    elevation: float = -15.0


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


class NamedModel:
    """A compiled MuJoCo model, with what a task reads of its worlds.

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
      sites, bodies: names whose poses a task reads.
      jacobians: whether it reads Jacobians of these sites too.
      before_step: a function of a world's state that changes it before each physics step, such as
        the pose of a mocap body; None: nothing changes.
      max_contacts: contacts that a world has room for in Warp, of which it cannot have more; None:
        as many as there are when all its pairs of geoms touch.

    Attributes:
      nq, nv: sizes of `qpos` and `qvel`.
      rest: [nq] the reference pose (MuJoCo's `qpos0`).

    Raises:
      ValueError: the model does not compile, or `watch` needs other contacts than it has.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        xml: str,
        *,
        substeps: int,
        rolling_geoms: Sequence[str] = (),
        watch: Sequence[tuple[str, str]] = (),
        sites: Sequence[str] = (),
        bodies: Sequence[str] = (),
        jacobians: bool = False,
        before_step: Callable[[PhysicsState], PhysicsState] | None = None,
        max_contacts: int | None = None,
    ):
        self.xml, self.substeps = xml, substeps
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.nq, self.nv = int(self.model.nq), int(self.model.nv)
        self.rest: np.ndarray = self.model.qpos0.copy()
        self.rolling_geoms = tuple(self.model.geom(name).id for name in rolling_geoms)
        self.watch = np.array([[self.model.geom(g).id for g in pair] for pair in watch], int)
        pyramidal = self.model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
        if watch and not (pyramidal and (self.model.pair_dim == 3).all()):
            raise ValueError("watched pairs need a pyramidal cone and condim 3 everywhere")
        self.sites, self.bodies, self.jacobians = tuple(sites), tuple(bodies), jacobians
        self.before_step, self.max_contacts = before_step, max_contacts

    # -- worlds ----------------------------------------------------------------------------

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
          fields: values of fields of the model in this world, by name; None: the model's own.
          extra: data for `before_step`.
        """
        model = self.model
        if mocap_pos is None:
            mocap_pos = model.body_pos[model.body_mocapid >= 0]
        mocap_quat = model.body_quat[model.body_mocapid >= 0]
        state = PhysicsState(
            qpos=jnp.asarray(qpos, jnp.float32),
            qvel=jnp.zeros(model.nv) if qvel is None else jnp.asarray(qvel, jnp.float32),
            qacc_warmstart=jnp.zeros(model.nv),
            act=jnp.zeros(model.na) if model.na else None,
            mocap_pos=jnp.asarray(mocap_pos, jnp.float32) if model.nmocap else None,
            mocap_quat=jnp.asarray(mocap_quat, jnp.float32) if model.nmocap else None,
            eq_active=None if model.eq_active0.all() else jnp.asarray(model.eq_active0, bool),
            model=self._with_constants(fields) if fields else None,
            touch=jnp.zeros(len(self.watch)) if len(self.watch) else None,
            extra=extra,
        )
        if self.before_step:
            state = self.before_step(state)
        return self._with_poses(state) if self.pose_rows else state

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the model, such as "opt.gravity"."""
        return jnp.asarray(functools.reduce(getattr, name.split("."), self.model))

    def _with_constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Fields of the model, and with them the constants that follow from them."""
        return fields | self._constants(fields) if fields.keys() & MOVE_CONSTANTS else fields

    def _constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The constants that MuJoCo's compiler derives from masses, inertias, armatures and
        lengths, as in `mj_setConst`: subtree masses, and the inverse weights that scale
        constraint forces; of a model with these fields."""
        raise NotImplementedError

    def _with_poses(self, state: PhysicsState) -> PhysicsState:
        """The state with the kinematics at its positions."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises a UserError if a step since the last call was wrong, as when the engine had no
        room for all contacts."""

    # -- poses -----------------------------------------------------------------------------

    @functools.cached_property
    def pose_rows(self) -> dict[str, np.ndarray]:
        """Rows of MuJoCo's kinematic fields that worlds carry in `PhysicsState.poses`."""
        model = self.model
        sites = np.array([model.site(name).id for name in self.sites], int)
        bodies = np.array([model.body(name).id for name in self.bodies], int)
        rows = {"site_xpos": sites, "site_xmat": sites, "xpos": bodies, "xmat": bodies}
        if self.jacobians:
            rows["cdof"] = np.arange(self.nv)
            rows["subtree_com"] = model.body_rootid[model.site_bodyid[sites]]
        return {name: index for name, index in rows.items() if len(index)}

    def site_pose(self, state: PhysicsState, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site.

        Args:
          state: one world, from `init` or `step`.
          name: one of `sites`.
        """
        return self._pose(state, "site_x", _index(self.sites, "sites", name))

    def body_pose(self, state: PhysicsState, name: str) -> tuple[jax.Array, jax.Array]:
        """As `site_pose`, of one of `bodies`."""
        return self._pose(state, "x", _index(self.bodies, "bodies", name))

    @staticmethod
    def _pose(state: PhysicsState, prefix: str, row: int) -> tuple[jax.Array, jax.Array]:
        poses: Any = state.poses
        return poses[f"{prefix}pos"][row], poses[f"{prefix}mat"][row].reshape(3, 3)

    def site_jacobian(self, state: PhysicsState, name: str) -> jax.Array:
        """[6, nv] Jacobian of a site in the world frame: its velocity (m/s) and angular velocity
        (rad/s) for a unit of each component of `qvel`; arguments as `site_pose`."""
        poses: Any = state.poses
        body = int(self.model.site(name).bodyid[0])
        center = poses["subtree_com"][_index(self.sites, "sites", name)]
        return self.jacobian(poses["cdof"], self.site_pose(state, name)[0] - center, body)

    def jacobian(self, cdof: jax.Array, arm: jax.Array, body: int) -> jax.Array:
        """[6, nv] Jacobian of a point that moves with a body.

        Args:
          cdof: [nv, 6] motion axes of the degrees of freedom.
          arm: [3] the point, from the centre of mass of the kinematic tree (m).
          body: index of the body.
        """
        angular, linear = cdof[:, :3], cdof[:, 3:]
        jacobian = jnp.concatenate([linear + jnp.cross(angular, arm), angular], axis=1)
        moves = self.subtree[self.model.dof_bodyid, body]
        return (jacobian * moves[:, None]).T

    @functools.cached_property
    def subtree(self) -> np.ndarray:
        """[nbody, nbody] 1 where the second body is in the subtree of the first, else 0."""
        below = np.eye(self.model.nbody, dtype=np.float32)
        for body in reversed(range(1, self.model.nbody)):
            below[self.model.body_parentid[body]] += below[body]
        return below

    # -- indices by name -------------------------------------------------------------------

    def qpos_slice(self, joint: str) -> slice:
        """Indices of the joint's coordinates in `qpos`."""
        start = int(self.model.joint(joint).qposadr[0])
        return slice(start, start + len(self.model.joint(joint).qpos0))

    def qvel_slice(self, joint: str) -> slice:
        """Indices of the joint's velocities in `qvel`."""
        start = int(self.model.joint(joint).dofadr[0])
        width = {mujoco.mjtJoint.mjJNT_FREE: 6, mujoco.mjtJoint.mjJNT_BALL: 3}
        return slice(start, start + width.get(int(self.model.joint(joint).type[0]), 1))

    def joint_range(self, joint: str) -> tuple[float, float]:
        """Lowest and highest position of a hinge (rad) or a slide (m)."""
        low, high = self.model.joint(joint).range
        return float(low), float(high)

    def equality_id(self, name: str) -> int:
        """Index of an equality constraint in `PhysicsState.eq_active`."""
        return int(self.model.equality(name).id)

    def body_id(self, name: str) -> int:
        return int(self.model.body(name).id)

    def pose_in_c(self, qpos: np.ndarray, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position [3] (m), rotation [3, 3] to the world and Jacobian [6, nv] of a site in one
        configuration [nq], by C MuJoCo in float64; for values that are computed only once."""
        data, index = self._data_in_c, self.model.site(site).id
        jacobian = np.zeros((6, self.nv))
        data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_jacSite(self.model, data, jacobian[:3], jacobian[3:], index)
        return data.site_xpos[index].copy(), data.site_xmat[index].reshape(3, 3).copy(), jacobian

    @functools.cached_property
    def _data_in_c(self) -> mujoco.MjData:
        return mujoco.MjData(self.model)

    # -- pictures ------------------------------------------------------------------------

    def render(
        self,
        states: PhysicsState,
        view: View,
        *,
        stride: int = 1,
        width: int = 640,
        height: int = 480,
    ) -> np.ndarray:
        """Pictures of a trajectory.

        Args:
          states: leaves [T, ...].
          view: pose of the camera.
          stride: every `stride`-th state is drawn.
          width, height: size of a picture (pixels).

        Returns:
          [F, height, width, 3] uint8.

        Raises:
          UserError: there is no OpenGL library that works.
        """
        camera = mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation = (
            view.distance,
            view.azimuth,
            view.elevation,
        )
        if view.body:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = self.body_id(view.body)
        else:
            camera.lookat[:] = view.target
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # each OpenGL binding raises other exceptions
            raise no_opengl(error) from error
        with renderer:
            return np.stack(list(self._pictures(renderer, camera, states, stride)))

    def _pictures(
        self, renderer: Any, camera: Any, states: PhysicsState, stride: int
    ) -> Iterator[np.ndarray]:
        """[H, W, 3] pictures of every `stride`-th state."""
        data = mujoco.MjData(self.model)
        for t in range(0, len(states.qpos), stride):
            data.qpos[:], data.qvel[:] = states.qpos[t], states.qvel[t]
            if states.mocap_pos is not None:
                data.mocap_pos[:] = states.mocap_pos[t]
                data.mocap_quat[:] = states.mocap_quat[t]
            mujoco.mj_forward(self.model, data)
            renderer.update_scene(data, camera)
            yield renderer.render()


def _index(names: tuple[str, ...], argument: str, name: str) -> int:
    """The name's place among those that the model was made with.

    Raises:
      ValueError: it is none of them.
    """
    if name not in names:
        raise ValueError(f"{name!r} is not carried: make the model with {argument}=({name!r},)")
    return names.index(name)
