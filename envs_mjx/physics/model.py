"""A model's names, ranges and pictures: what does not depend on how it is stepped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from envs_mjx.physics.state import PhysicsState
from jaxrl.errors import no_opengl


class NamedModel:
    """A compiled MuJoCo model.

    Args:
      model: the model.

    Attributes:
      nq, nv: sizes of `qpos` and `qvel`.
      rest: [nq] the reference pose (MuJoCo's `qpos0`).
    """

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        self.nq, self.nv = int(model.nq), int(model.nv)
        self.rest: np.ndarray = model.qpos0.copy()

    # -- named places ----------------------------------------------------------------------

    def qpos_slice(self, joint: str) -> slice:
        """Where the joint's coordinates lie in `qpos`."""
        start = int(self.model.joint(joint).qposadr[0])
        return slice(start, start + len(self.model.joint(joint).qpos0))

    def qvel_slice(self, joint: str) -> slice:
        """Where the joint's velocities lie in `qvel`."""
        start = int(self.model.joint(joint).dofadr[0])
        width = {mujoco.mjtJoint.mjJNT_FREE: 6, mujoco.mjtJoint.mjJNT_BALL: 3}
        return slice(start, start + width.get(int(self.model.joint(joint).type[0]), 1))

    def joint_range(self, joint: str) -> tuple[float, float]:
        """Least and largest position of a hinge (rad) or a slide (m)."""
        low, high = self.model.joint(joint).range
        return float(low), float(high)

    def equality_id(self, name: str) -> int:
        """Where an equality constraint lies in `PhysicsState.eq_active`."""
        return int(self.model.equality(name).id)

    def body_id(self, name: str) -> int:
        return int(self.model.body(name).id)

    def pose_in_c(self, qpos: np.ndarray, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position [3] (m), rotation [3, 3] to the world and Jacobian [6, nv] of a site in one
        configuration [nq], by C MuJoCo in float64: for what is worked out once."""
        data, index = mujoco.MjData(self.model), self.model.site(site).id
        jacobian = np.zeros((6, self.nv))
        data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_jacSite(self.model, data, jacobian[:3], jacobian[3:], index)
        return data.site_xpos[index].copy(), data.site_xmat[index].reshape(3, 3).copy(), jacobian

    # -- pictures ------------------------------------------------------------------------

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
        camera = mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
        camera.lookat[:] = lookat
        if track:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = self.body_id(track)
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # each OpenGL binding fails in its own way
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
