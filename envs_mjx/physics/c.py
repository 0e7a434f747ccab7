"""Steps the model of a `Physics` in C MuJoCo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np
from mujoco import batch as mj_batch

if TYPE_CHECKING:
    from envs_mjx.physics.mjx import Physics


class CPhysics:
    """`num_worlds` worlds of a model in C MuJoCo (float64).

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
                    _c_step(self.physics, world)
            return (
                np.stack([world.qpos for world in self._worlds]),
                np.stack([world.qvel for world in self._worlds]),
            )
        self._batch.bind("ctrl")[:] = ctrl
        self._batch.step(nstep=self.physics.substeps)
        return self._batch.bind("qpos").copy(), self._batch.bind("qvel").copy()


def _c_step(physics: Physics, data: mujoco.MjData) -> None:
    """One physics step in C MuJoCo that turns the contact frames of rolling geoms."""
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
