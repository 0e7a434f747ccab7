"""The parts of a model that do not depend on how it is stepped: names, ranges, pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

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
