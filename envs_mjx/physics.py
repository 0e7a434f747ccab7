"""The one module that calls MuJoCo and MJX.

Tasks hold a `Physics` and move a `PhysicsState`. A `PhysicsState` has only what the
next step reads (a few hundred bytes a world); everything else that MJX keeps in its
`Data` is rebuilt inside the step from constants.

`CPhysics` steps the same model in C MuJoCo, in float64, for parity tests and for
judging a policy outside the simulator that it was trained in.
"""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import threading
from collections.abc import Sequence
from typing import Any

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
from jaxrl.errors import no_opengl

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
    """

    qpos: jax.Array
    qvel: jax.Array
    qacc_warmstart: jax.Array
    act: jax.Array | None = None
    mocap_pos: jax.Array | None = None
    mocap_quat: jax.Array | None = None


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

    Raises:
      ValueError: the model does not compile.
    """

    def __init__(
        self,
        xml: str,
        *,
        substeps: int,
        rolling_geoms: Sequence[str] = (),
    ):
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.substeps = substeps
        self.rolling_geoms = tuple(self.model.geom(name).id for name in rolling_geoms)

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
        )

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Advances one world by `substeps` physics steps under constant controls.

        Args:
          state: one world.
          ctrl: [nu] controls in the actuators' units.
        """

        def substep(state: PhysicsState, _) -> tuple[PhysicsState, None]:
            with _tuned_mjx(self.model):
                data = _step(self, self._data(state, ctrl))
            return _lean(state, data), None

        return jax.lax.scan(substep, state, length=self.substeps)[0]

    def kinematics(self, state: PhysicsState) -> mjx.Data:
        """MJX `Data` of one world with poses, sites and centres of mass filled in."""
        with _tuned_mjx(self.model):
            data = mjx.kinematics(self.mjx_model, self._data(state))
            return mjx.com_pos(self.mjx_model, data)

    def render(
        self,
        states: PhysicsState,
        *,
        stride: int = 1,
        width: int = 640,
        height: int = 480,
        track: str | None = None,
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
          distance: of the camera (m).
          azimuth, elevation: of the camera (deg).

        Returns:
          [F, height, width, 3] uint8.

        Raises:
          UserError: no OpenGL library.
        """
        data, camera = mujoco.MjData(self.model), mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
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
                mujoco.mj_forward(self.model, data)
                renderer.update_scene(data, camera)
                frames.append(renderer.render())
        return np.stack(frames)

    def _data(self, state: PhysicsState, ctrl: jax.Array | None = None) -> mjx.Data:
        known = {name: value for name, value in vars(state).items() if value is not None}
        if ctrl is not None:
            known["ctrl"] = ctrl
        return self._blank.replace(**known)


def _lean(state: PhysicsState, data: mjx.Data) -> PhysicsState:
    """The fields of `data` that `state` carries."""
    return PhysicsState(
        **{
            name: None if value is None else getattr(data, name)
            for name, value in vars(state).items()
        }
    )


def _step(physics: Physics, data: mjx.Data) -> mjx.Data:
    """One physics step; MJX's own where nothing happens between its stages."""
    model = physics.mjx_model
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

    def reset(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Sets the state: qpos [num_worlds, nq], qvel [num_worlds, nv]."""
        if self.physics.rolling_geoms:
            for world, q, v in zip(self._worlds, qpos, qvel, strict=True):
                mujoco.mj_resetData(self.physics.model, world)
                world.qpos, world.qvel = q, v
        else:
            self._batch.reset()
            self._batch.bind("qpos")[:] = qpos
            self._batch.bind("qvel")[:] = qvel

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
