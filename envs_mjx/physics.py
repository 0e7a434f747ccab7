"""The one module that calls MuJoCo and MJX.

Tasks hold a `Physics` and move a `PhysicsState`. A `PhysicsState` has only what the
next step reads (a few hundred bytes a world); everything else that MJX keeps in its
`Data` is rebuilt inside the step from constants.

`CPhysics` steps the same model in C MuJoCo, in float64, for parity tests and for
judging a policy outside the simulator that it was trained in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import operator
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from mujoco import batch as mj_batch

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
    from mujoco import mjx
    from mujoco.mjx._src import math as _mjx_math
    from mujoco.mjx._src import scan as _mjx_scan
    from mujoco.mjx._src import solver as _mjx_solver

from jaxrl import platform
from jaxrl.envs import Task
from jaxrl.errors import UserError, no_opengl

Data = mjx.Data  # for annotations

# Largest matrix whose Cholesky factor is written out as plain arithmetic.
WRITTEN_OUT_CHOLESKY_MAX = 12
# Longest sum that is written out as additions on a GPU.
WRITTEN_OUT_SUM_MAX = 16
# Most solver iterations that are unrolled on a GPU.
UNROLLED_ITERATIONS_MAX = 5
# Kinematic trees at least this deep are compiled with barriers on a CPU.
BARRIER_MIN_DEPTH = 3


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


class Physics:
    """A compiled MuJoCo model, stepped by MJX.

    Args:
      xml: the model as an MJCF string.
      substeps: physics steps a control step.
      rolling_geoms: names of geoms (capsules or cylinders, axis z) whose contacts
        have different friction along and across their axis, as an omniwheel has.
        MuJoCo lays a contact's two friction directions along arbitrary axes; for
        these geoms the first is turned to the rim's direction (axis x normal), the
        second to the axis. Declare their contact pairs with friction
        "rim axis ...".
      watch: pairs of geoms whose contact forces `PhysicsState.touch` tells; all of the
        model's contacts then need condim 3 and the pyramidal cone.

    Raises:
      ValueError: the model does not compile, or has other contacts.
    """

    def __init__(
        self,
        xml: str,
        *,
        substeps: int,
        rolling_geoms: Sequence[str] = (),
        watch: Sequence[tuple[str, str]] = (),
    ):
        self.model = mujoco.MjModel.from_xml_string(xml)
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
        """Degrees of freedom, and rows that MJX keeps for contacts and for constraints."""
        inside = self._blank._impl
        return {
            "dof": self.model.nv,
            "contacts": len(inside.contact.dist),
            "constraint_rows": len(inside.efc_J),
        }

    # -- named access -----------------------------------------------------------

    def qpos_slice(self, joint: str) -> slice:
        """Where the joint's coordinates lie in `qpos`."""
        start = int(self.model.joint(joint).qposadr[0])
        return slice(start, start + len(self.model.joint(joint).qpos0))

    def qvel_slice(self, joint: str) -> slice:
        """Where the joint's velocities lie in `qvel`."""
        start = int(self.model.joint(joint).dofadr[0])
        width = {mujoco.mjtJoint.mjJNT_FREE: 6, mujoco.mjtJoint.mjJNT_BALL: 3}
        return slice(start, start + width.get(int(self.model.joint(joint).type[0]), 1))

    def body_id(self, name: str) -> int:
        return int(self.model.body(name).id)

    # -- stepping -----------------------------------------------------------------

    def init(self, qpos: jax.Array, qvel: jax.Array | None = None) -> PhysicsState:
        """A world at rest or with the given velocities.

        Args:
          qpos: [nq].
          qvel: [nv], zero when left out.
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
            with _tuned_mjx(self.model):
                data = _step(self, self._model(state), self._data(state, ctrl))
            return self._lean(state, data), None

        return jax.lax.scan(substep, state, length=self.substeps)[0]

    def kinematics(self, state: PhysicsState) -> mjx.Data:
        """MJX `Data` of one world with poses, sites and centres of mass filled in."""
        with _tuned_mjx(self.model):
            model = self._model(state)
            return mjx.com_pos(model, mjx.kinematics(model, self._data(state)))

    def site_pose(self, data: mjx.Data, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a site.

        Args:
          data: from `kinematics`.
          name: of the site.
        """
        index = self.model.site(name).id
        return data.site_xpos[index], data.site_xmat[index].reshape(3, 3)

    def body_pose(self, data: mjx.Data, name: str) -> tuple[jax.Array, jax.Array]:
        """Position [3] (m) and rotation [3, 3] to the world of a body; as `site_pose`."""
        index = self.body_id(name)
        return data.xpos[index], data.xmat[index].reshape(3, 3)

    def site_jacobian(self, data: mjx.Data, name: str) -> jax.Array:
        """[6, nv] velocity (m/s) and angular velocity (rad/s), in the world frame, of a site
        for a unit of each of `qvel`; arguments as `site_pose`."""
        body = int(self.model.site(name).bodyid[0])
        return self._jacobian(data, self.site_pose(data, name)[0], body)

    def _jacobian(self, data: mjx.Data, point: jax.Array, body: int) -> jax.Array:
        """[6, nv] of a point [3] that moves with a body."""
        angular, linear = data.cdof[:, :3], data.cdof[:, 3:]
        arm = point - data.subtree_com[self.model.body_rootid[body]]
        jacobian = jnp.concatenate([linear + jnp.cross(angular, arm), angular], axis=1)
        moves = self._subtree[self.model.dof_bodyid, body]
        return (jacobian * moves[:, None]).T

    # -- worlds that differ ---------------------------------------------------------

    def field(self, name: str) -> jax.Array:
        """The nominal value of a field of the MJX model, such as "opt.gravity"."""
        return functools.reduce(getattr, name.split("."), self.mjx_model)

    def own_model(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`PhysicsState.model` for a world with other values of some fields.

        What MuJoCo's compiler derives from masses, inertias, armatures and lengths is
        derived again (`mj_setConst`): subtree masses, and the inverse weights that scale
        constraint forces.

        Args:
          fields: new values by name, shaped as the nominal ones.
        """
        if not fields.keys() & _MOVE_CONSTANTS:
            return fields
        return fields | self._constants(self.mjx_model.tree_replace(fields))

    def _constants(self, model: mjx.Model) -> dict[str, jax.Array]:
        """The derived constants of a model, from its rest pose `qpos0`."""
        with _tuned_mjx(self.model):
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
        # Bodies that cannot move have weight 0; the compiler leaves them so.
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
        """[nbody, nbody] 1 where the second body hangs on the first, or is it."""
        below = np.eye(self.model.nbody, dtype=np.float32)
        for body in reversed(range(1, self.model.nbody)):
            below[self.model.body_parentid[body]] += below[body]
        return below

    def _model(self, state: PhysicsState) -> mjx.Model:
        return self.mjx_model.tree_replace(state.model) if state.model else self.mjx_model

    # -- pictures --------------------------------------------------------------------

    def render(
        self,
        states: PhysicsState,
        *,
        stride: int = 1,
        width: int = 640,
        height: int = 480,
        track: str | None = None,
        lookat: Sequence[float] = (0.0, 0.0, 0.0),
        distance: float = 1.5,
        azimuth: float = 135.0,
        elevation: float = -15.0,
    ) -> np.ndarray:
        """Pictures of a trajectory.

        Args:
          states: leaves [T, ...].
          stride: draw every so many-th state.
          width, height: pixels.
          track: body that the camera follows.
          lookat: where it looks if it follows none (m).
          distance: of the camera (m).
          azimuth, elevation: of the camera (deg).

        Returns:
          [F, height, width, 3] uint8.

        Raises:
          UserError: no OpenGL library.
        """
        data, camera = mujoco.MjData(self.model), mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
        camera.lookat[:] = lookat
        if track:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = self.body_id(track)
        frames = []
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # each OpenGL binding fails in its own way
            raise no_opengl(error) from error
        with renderer:
            for t in range(0, len(states.qpos), stride):
                data.qpos[:], data.qvel[:] = states.qpos[t], states.qvel[t]
                if states.mocap_pos is not None:
                    data.mocap_pos[:] = states.mocap_pos[t]
                    data.mocap_quat[:] = states.mocap_quat[t]
                mujoco.mj_forward(self.model, data)
                renderer.update_scene(data, camera)
                frames.append(renderer.render())
        return np.stack(frames)

    def _data(self, state: PhysicsState, ctrl: jax.Array | None = None) -> mjx.Data:
        known = self._carried(state)
        if ctrl is not None:
            known["ctrl"] = ctrl
        return self._blank.replace(**known)

    def _carried(self, state: PhysicsState) -> dict[str, jax.Array]:
        """The fields of a state that MJX's `Data` has too."""
        return {
            name: value
            for name, value in vars(state).items()
            if value is not None and name not in ("model", "touch")
        }

    def _lean(self, state: PhysicsState, data: mjx.Data) -> PhysicsState:
        """The fields of `data` that `state` carries."""
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


# Fields that the compiler derives constants from.
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
    """One physics step; MJX's own where nothing happens between its stages."""
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
    """Turns the contacts of rolling geoms: rows normal, rim, axis."""
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


# -- how MJX is compiled ---------------------------------------------------------------
#
# MJX is called as it is; a few of its helpers are replaced while a step is traced, by
# functions with the same values:
# * On a CPU, XLA fuses across the levels of a kinematic tree and computes every level's
#   ancestors again: a six-joint arm steps a hundred times slower than it need. A barrier
#   behind each tree scan keeps the levels apart. Shallow trees do not need it, and on a
#   GPU it would only split kernels.
# * Small Cholesky factors as plain arithmetic instead of library calls: on a GPU they
#   fuse with their neighbours, on a CPU they vectorise over the worlds.
# * On a GPU, where each trip of a loop costs launches and each trip of a loop that ends on
#   what it computes a wait for the host: the bounded loops of the solver and of its line
#   search, unrolled.
# * On a GPU, where XLA begins a new kernel at each reduction: sums, dot products and norms
#   of few components, as plain arithmetic.

_patch_lock = threading.RLock()


def _patches(model: mujoco.MjModel) -> list[tuple[Any, str, Any]]:
    """(owner, name, replacement) of what is replaced while a step is traced."""
    linalg = jax.scipy.linalg
    patches = [
        (linalg, "cho_factor", _small_cho_factor(linalg.cho_factor)),
        (linalg, "cho_solve", _small_cho_solve(linalg.cho_solve)),
    ]
    if platform.target() != "cpu":
        patches += _gpu_patches(model)
    elif _tree_depth(model) >= BARRIER_MIN_DEPTH:
        patches += [
            (_mjx_scan, "body_tree", _with_barrier(_mjx_scan.body_tree)),
            (_mjx_scan, "flat", _with_barrier(_mjx_scan.flat)),
        ]
    return patches


@contextlib.contextmanager
def _tuned_mjx(model: mujoco.MjModel):
    with _patch_lock:
        patches = _patches(model)
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
        for owner, name, value in patches:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in originals:
                setattr(owner, name, value)


def _gpu_patches(model: mujoco.MjModel) -> list[tuple[Any, str, Any]]:
    patches = [
        (_mjx_solver, "_while_loop_scan", _unrolled_while),
        (jnp, "sum", _small_sum(jnp.sum)),
        (jnp, "dot", _small_dot(jnp.dot)),
        (jnp, "argmin", _small_argmin(jnp.argmin)),
        (_mjx_math, "norm", _small_norm(_mjx_math.norm)),
    ]
    if model.opt.iterations <= UNROLLED_ITERATIONS_MAX:
        unrolled = _unrolled_solver(jax.lax.while_loop, model.opt.iterations)
        patches.append((jax.lax, "while_loop", unrolled))
    return patches


def _tree_depth(model: mujoco.MjModel) -> int:
    depth = np.zeros(model.nbody, int)
    for body in range(1, model.nbody):
        depth[body] = depth[model.body_parentid[body]] + 1
    return int(depth.max())


def _with_barrier(scan):
    """MJX's tree scan with a barrier behind each level and behind the whole."""
    barrier = jax.lax.optimization_barrier

    @functools.wraps(scan)
    def wrapper(model, function, *args, **kwargs):
        level = lambda *inputs: barrier(function(*inputs))  # noqa: E731
        return barrier(scan(model, level, *args, **kwargs))

    return wrapper


def _small_cho_factor(library):
    def cho_factor(a: jax.Array, lower: bool = False):
        n = a.shape[-1]
        if a.ndim != 2 or n > WRITTEN_OUT_CHOLESKY_MAX or lower:
            return library(a, lower)
        u = [[jnp.zeros(())] * n for _ in range(n)]
        for i in range(n):
            for j in range(i, n):
                rest = a[i, j] - sum(u[k][i] * u[k][j] for k in range(i))
                u[i][j] = jnp.sqrt(rest) if i == j else rest / u[i][i]
        return jnp.stack([jnp.stack(row) for row in u]), False

    return cho_factor


def _small_cho_solve(library):
    def cho_solve(factor, b: jax.Array):
        u, lower = factor
        n = u.shape[-1]
        if u.ndim != 2 or b.ndim != 1 or n > WRITTEN_OUT_CHOLESKY_MAX or lower:
            return library(factor, b)
        y: list = []
        for i in range(n):
            y.append((b[i] - sum(u[k, i] * y[k] for k in range(i))) / u[i, i])
        x: list = [None] * n
        for i in reversed(range(n)):
            x[i] = (y[i] - sum(u[i, k] * x[k] for k in range(i + 1, n))) / u[i, i]
        return jnp.stack(x)

    return cho_solve


def _unrolled_while(cond_fun, body_fun, init_val, max_iter):
    value, go_on = init_val, cond_fun(init_val)
    for _ in range(max_iter):
        new = body_fun(value)
        value = jax.tree.map(lambda a, b, keep=go_on: jnp.where(keep, b, a), value, new)
        go_on = go_on & cond_fun(value)
    return value


def _unrolled_solver(library, iterations: int):
    def while_loop(cond_fun, body_fun, init_val):
        if not isinstance(init_val, _mjx_solver.Context):
            return library(cond_fun, body_fun, init_val)
        return _unrolled_while(cond_fun, body_fun, init_val, iterations)

    return while_loop


def _small_sum(library):
    def total(a, axis=None, **kwargs):
        few = isinstance(a, jax.Array) and a.ndim and jnp.issubdtype(a.dtype, jnp.floating)
        if kwargs or not few or not (axis is None or isinstance(axis, int)):
            return library(a, axis, **kwargs)
        rows = a.ravel() if axis is None else jnp.moveaxis(a, axis, 0)
        if not 0 < len(rows) <= WRITTEN_OUT_SUM_MAX:
            return library(a, axis)
        return functools.reduce(operator.add, [rows[i] for i in range(len(rows))])

    return total


def _small_dot(library):
    def dot(a, b, **kwargs):
        vectors = jnp.ndim(a) in (1, 2) and jnp.ndim(b) == 1
        if kwargs or not vectors or len(b) > WRITTEN_OUT_SUM_MAX:
            return library(a, b, **kwargs)
        return jnp.sum(a * b, axis=-1)

    return dot


def _small_argmin(library):
    def argmin(a, axis=None, **kwargs):
        if kwargs or axis is not None or jnp.ndim(a) != 1 or len(a) > WRITTEN_OUT_SUM_MAX:
            return library(a, axis, **kwargs)
        best, least = jnp.zeros((), jnp.int32), a[0]
        for i in range(1, len(a)):
            best = jnp.where(a[i] < least, i, best)
            least = jnp.minimum(a[i], least)
        return best

    return argmin


def _small_norm(library):
    def norm(x: jax.Array, axis: int | None = None):
        if x.ndim != 1 or not 0 < len(x) <= WRITTEN_OUT_SUM_MAX:
            return library(x, axis)
        # MJX takes |x| <= 1e-8 in every component for zero.
        most = functools.reduce(jnp.maximum, [jnp.abs(x[i]) for i in range(len(x))])
        is_zero = most <= 1e-8
        square = jnp.sum(jnp.square(jnp.where(is_zero, 1.0, x)))
        return jnp.where(is_zero, 0.0, jnp.sqrt(square))

    return norm


# -- the same model in C -----------------------------------------------------------------


class CPhysics:
    """`num_worlds` worlds of the same model in C MuJoCo (float64).

    Plain models run on a thread pool (`mujoco.batch`); models with rolling geoms are
    stepped stage by stage, since their contact frames are turned between two stages.

    Args:
      physics: the model and its substeps.
      num_worlds: number of worlds.
    """

    def __init__(self, physics: Physics, num_worlds: int):
        self.physics = physics
        if physics.rolling_geoms:
            self._worlds = [mujoco.MjData(physics.model) for _ in range(num_worlds)]
        else:
            self._batch = mj_batch.Batch(physics.model, num_worlds, persistent=True)

    def reset(
        self, qpos: np.ndarray, qvel: np.ndarray, eq_active: np.ndarray | None = None
    ) -> None:
        """Sets the state: qpos [num_worlds, nq], qvel [num_worlds, nv] and, of plain models,
        which equality constraints hold [num_worlds, neq]."""
        if self.physics.rolling_geoms:
            for world, q, v in zip(self._worlds, qpos, qvel, strict=True):
                mujoco.mj_resetData(self.physics.model, world)
                world.qpos, world.qvel = q, v
        else:
            self._batch.reset()
            self._batch.bind("qpos")[:] = qpos
            self._batch.bind("qvel")[:] = qvel
            if eq_active is not None:
                self._batch.bind("eq_active")[:] = eq_active

    def step(self, ctrl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One control step under ctrl [num_worlds, nu]; returns qpos, qvel."""
        if self.physics.rolling_geoms:
            for world, u in zip(self._worlds, ctrl, strict=True):
                world.ctrl = u
                for _ in range(self.physics.substeps):
                    _c_step(self.physics, world)
            return (
                np.stack([world.qpos for world in self._worlds]),
                np.stack([world.qvel for world in self._worlds]),
            )
        self._batch.bind("ctrl")[:] = ctrl
        self._batch.step(nstep=self.physics.substeps)
        return self._batch.bind("qpos").copy(), self._batch.bind("qvel").copy()


class HostPhysics(Physics):
    """The same model as another `Physics`, stepped outside of JAX: by C MuJoCo, or by whatever
    `advance` is. A compiled program that steps it calls back to the host, so it is for judging
    policies and not for training them. Worlds with a model of their own are not supported.

    Args:
      physics: the model, its substeps and what it watches.
      advance: (qpos [N, nq], qvel [N, nv], ctrl [N, nu], eq_active [N, neq]) -> qpos, qvel
        and the watched forces [N, K] after a control step; none: C MuJoCo.
    """

    def __init__(self, physics: Physics, advance: Any = None):
        self.model, self.substeps = physics.model, physics.substeps
        self.rolling_geoms, self.watch = physics.rolling_geoms, physics.watch
        self._advance = advance or self._advance_in_c
        self._worlds: dict[int, CPhysics] = {}

    def own_model(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
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
        """The step of one world or of many, with as many axes as came."""
        batch = arrays[0].shape[:-1]
        count = math.prod(batch)
        rows = [np.asarray(x, np.float64).reshape(count, x.shape[-1]) for x in arrays]
        made = self._advance(*rows)
        return tuple(np.asarray(x, np.float32).reshape(*batch, x.shape[-1]) for x in made)

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


class Simulated(Task):
    """What tasks on a `Physics` share: they can be played in other simulators."""

    physics: Physics
    simulators: ClassVar[tuple[str, ...]] = ("mjx", "mujoco")

    def on(self, simulator: str) -> Task:
        """The same task in "mjx", "mujoco" (C) or what else it knows, to judge policies in."""
        if simulator not in self.simulators:
            raise UserError(
                f"--on: got {simulator!r}, this task can be played in {', '.join(self.simulators)}"
            )
        if simulator == "mjx":
            return self
        task = dataclasses.replace(self)
        vars(task)["physics"] = self.physics_on(simulator)  # in place of the cached one
        return task

    def physics_on(self, simulator: str) -> Physics:
        """The model in a simulator other than MJX."""
        return HostPhysics(self.physics)


def _c_step(physics: Physics, data: mujoco.MjData) -> None:
    """One physics step in C with the contact frames of rolling geoms turned."""
    model = physics.model
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_makeM(model, data)
    mujoco.mj_factorM(model, data)
    mujoco.mj_collision(model, data)
    for contact in data.contact:
        wheel = next((g for g in contact.geom if g in physics.rolling_geoms), None)
        if wheel is None:
            continue
        frame = contact.frame.reshape(3, 3)
        rim = np.cross(data.geom_xmat[wheel].reshape(3, 3)[:, 2], frame[0])
        frame[1] = rim / np.linalg.norm(rim)
        frame[2] = np.cross(frame[0], frame[1])
        contact.frame[:] = frame.ravel()
    mujoco.mj_makeConstraint(model, data)
    mujoco.mj_projectConstraint(model, data)
    mujoco.mj_transmission(model, data)
    mujoco.mj_fwdVelocity(model, data)
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_fwdAcceleration(model, data)
    mujoco.mj_fwdConstraint(model, data)
    mujoco.mj_Euler(model, data)
