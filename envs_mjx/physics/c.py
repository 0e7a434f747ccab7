"""C MuJoCo: many worlds at once, on all cores of the CPU."""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import jax
import mujoco
import numpy as np
from mujoco import batch as mj_batch

from envs_mjx.physics.host import Arrays, HostPhysics
from envs_mjx.physics.model import NamedModel
from jaxrl import platform

WORLDS_OF_A_THREAD = 4  # at least, if there is more than one thread
# Contacts of a watched pair whose forces are added up: two boxes have at most eight.
CONTACTS = 8
_POSITION = int(mujoco.mjtStage.mjSTAGE_POS)
# What `mj_setConst` derives.
_CONSTANTS = ("body_subtreemass", "body_invweight0", "dof_invweight0")
# A function of the C library that does nothing with a text: Python would need its own lock.
_IGNORE = ctypes.CDLL(None).strlen
# MuJoCo's clock (a public variable of its C library), which it reads some twenty times in each
# step for `mjData.timer`: a sixth of the time of a small model's step.
_clock = ctypes.c_void_p.in_dll(ctypes.CDLL(mujoco._functions.__file__), "mjcb_time")
_lock = threading.Lock()  # programs may call from several threads; each call uses all cores


class CPhysics(HostPhysics):
    """A compiled MuJoCo model, stepped by C MuJoCo in float64; arguments as `NamedModel`."""

    engine = "c"

    def advance(self, inputs: Arrays, steps: int) -> Arrays:
        with _lock:
            warn, clock = mujoco.get_mju_user_warning(), _clock.value
            # MuJoCo would write to a file that a world is unstable; this is counted elsewhere.
            mujoco.set_mju_user_warning(_IGNORE)
            _clock.value = None
            try:
                return self._advance(inputs, steps)
            finally:
                mujoco.set_mju_user_warning(warn)
                _clock.value = clock

    def _advance(self, inputs: Arrays, steps: int) -> Arrays:
        fields = tuple(name for name in inputs if name.startswith("model/"))
        batch = self._batch(len(inputs["qpos"]), fields)
        for name, values in inputs.items():
            if name in fields:
                batch.expand(name.removeprefix("model/"))[...] = values
            else:
                batch.bind(name)[...] = values
        failed: Any = np.zeros(0, int)
        try:
            if steps and self.rolling_geoms:
                self._step_rolling(batch, steps)
            elif steps:
                batch.step(nstep=steps, stage=_POSITION)
            else:
                batch.forward(stage=_POSITION)
        except mj_batch.SimulationError as error:
            failed = error.ids
        names = ("qpos", "qvel", "qacc_warmstart", *(["act"] if "act" in inputs else []))
        results = {name: batch.bind(name).copy() for name in names}
        if len(self.watch):
            forces = batch.bind("sensordata")[:, -3 * CONTACTS * len(self.watch) :]
            results["touch"] = forces.reshape(-1, len(self.watch), CONTACTS, 3)[..., 0].sum(2)
        for name, rows in self.pose_rows.items():
            results[name] = batch.bind(name)[:, rows]
        for values in results.values():
            values[failed] = np.nan
        return results

    def _constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shapes = {name: getattr(self.model, name).shape for name in _CONSTANTS}
        return self.call("constants", self._set_const, dict(sorted(fields.items())), shapes)

    def _set_const(self, fields: Arrays) -> Arrays:
        """`_constants` of many models."""
        count = len(next(iter(fields.values())))
        batch = mj_batch.Batch(self._c_model, count, self._threads(count))
        for name, values in fields.items():
            batch.expand(name)[...] = values
        batch.set_const()
        return {name: batch.expand(name) for name in _CONSTANTS}

    @functools.cached_property
    def _c_model(self) -> mujoco.MjModel:
        """The model with sensors of the watched pairs' forces."""
        sensors = "".join(
            f'<contact geom1="{self.model.geom(a).name}" geom2="{self.model.geom(b).name}" '
            f'data="force" num="{CONTACTS}"/>'
            for a, b in self.watch
        )
        xml = self.xml.replace("</mujoco>", f"<sensor>{sensors}</sensor></mujoco>")
        model = mujoco.MjModel.from_xml_string(xml)
        # A world that diverges stays so, and is counted; MuJoCo would reset it silently.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        return model

    @functools.cached_property
    def _batches(self) -> dict[tuple[int, tuple[str, ...]], mj_batch.Batch]:
        return {}

    def _batch(self, count: int, fields: tuple[str, ...]) -> mj_batch.Batch:
        """`count` simulations whose models differ in these fields."""
        key = count, fields
        if key not in self._batches:
            batch = self._batches[key] = mj_batch.Batch(self._c_model, count, self._threads(count))
            for name in self.pose_rows:  # bound before a call, which then computes them
                batch.bind(name)
            if len(self.watch):
                batch.bind("sensordata")
        return self._batches[key]

    def _threads(self, count: int) -> int:
        """Number of threads for so many worlds; with a few worlds, more would only wait."""
        return min(platform.cores(), -(-count // WORLDS_OF_A_THREAD))

    @functools.cached_property
    def _rolling_data(self) -> mujoco.MjData:
        return mujoco.MjData(self._c_model)

    def _step_rolling(self, batch: mj_batch.Batch, steps: int) -> None:
        """Steps the worlds of a model with rolling geoms, one after the other."""
        data = self._rolling_data
        for i in range(batch.nsim):
            batch.get_data(i, data)
            for _ in range(steps):
                step_rolling(self, self._c_model, data)
            for name in ("qpos", "qvel", "qacc_warmstart"):
                batch.bind(name)[i] = getattr(data, name)


class CSimulation:
    """`num_worlds` worlds of a model in C MuJoCo that keep their own state in float64, to compare
    with.

    Args:
      physics: the model and its substeps.
      num_worlds: number of worlds.
    """

    def __init__(self, physics: NamedModel, num_worlds: int):
        self.physics = physics
        if physics.rolling_geoms:
            self._worlds = [mujoco.MjData(physics.model) for _ in range(num_worlds)]
        else:
            self._batch = mj_batch.Batch(physics.model, num_worlds, persistent=True)

    def reset(
        self, qpos: np.ndarray, qvel: np.ndarray, eq_active: np.ndarray | None = None
    ) -> None:
        """Sets the state: qpos [num_worlds, nq], qvel [num_worlds, nv] and, for plain models,
        which equality constraints are active [num_worlds, neq]."""
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
                    step_rolling(self.physics, self.physics.model, world)
            return (
                np.stack([world.qpos for world in self._worlds]),
                np.stack([world.qvel for world in self._worlds]),
            )
        self._batch.bind("ctrl")[:] = ctrl
        self._batch.step(nstep=self.physics.substeps)
        return self._batch.bind("qpos").copy(), self._batch.bind("qvel").copy()


def step_rolling(physics: NamedModel, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """One physics step in C MuJoCo that turns the contact frames of rolling geoms."""
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
