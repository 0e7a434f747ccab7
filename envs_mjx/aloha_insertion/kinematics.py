"""The arms' kinematics without MuJoCo, and the poses of arms that hold their objects."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.aloha_insertion import expert, model
from envs_mjx.ik import damped_least_squares, rotation_error

Pose = tuple[jax.Array, jax.Array]  # an arm's joints and finger, an object's centre and yaw

SQUEEZE = 0.0001  # m, how far each pad gives way in a grasp

_AXES = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
# The gripper starts here: over its object, far from the joints' limits, elbow up.
_NEAR_GRASP = np.array([0.0, 0.0, 0.7, 0.0, 0.7, 0.0])


def _rotation(axis: np.ndarray, angle: jax.Array) -> jax.Array:
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (cross @ cross)


def forward(side: str, joints: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pose of an arm's gripper site.

    Args:
      side: "left" or "right".
      joints: [6] (rad).

    Returns:
      Position [3] (m), rotation [3, 3] (site to world), Jacobian [6, 6] (linear, then
      angular velocity by joint velocity, world frame).
    """
    sign = {"left": 1.0, "right": -1.0}[side]
    rotation = jnp.diag(jnp.array([sign, sign, 1.0]))
    position = jnp.array([-sign * model.BASE_X, model.BASE_Y, 0.0])
    anchors, axes = [], []
    for i in range(6):
        position = position + rotation @ model.LINK_OFFSETS[i]
        anchors.append(position)
        axes.append(rotation @ _AXES[i])
        rotation = rotation @ _rotation(_AXES[i], joints[i])
    position = position + rotation[:, 0] * model.GRIPPER_SITE_X
    return position, rotation, expert.site_jacobian(jnp.stack(anchors), jnp.stack(axes), position)


def solve(side: str, position: jax.Array, rotation: jax.Array, *, steps: int = 25) -> jax.Array:
    """[6] joints that put a gripper site at a pose near the table's middle.

    Args:
      side: "left" or "right".
      position: [3] (m).
      rotation: [3, 3], site to world.
      steps: Newton steps; 25 reach 1e-5 m from anywhere over the table's middle.
    """

    def step(_, joints: jax.Array) -> jax.Array:
        at, turned, jacobian = forward(side, joints)
        motion = jnp.concatenate([position - at, rotation_error(rotation, turned)])
        dq = damped_least_squares(jacobian, motion, damping=0.01)
        dq = dq / jnp.maximum(1.0, jnp.max(jnp.abs(dq)) / 0.4)
        return jnp.clip(joints + dq, *model.JOINT_RANGE.T)

    return jax.lax.fori_loop(0, steps, step, jnp.asarray(_NEAR_GRASP, jnp.float32))


def holding(side: str, center: jax.Array, yaw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Joints and finger coordinate of an arm that holds its object, level.

    Args:
      side: "left" for the socket, "right" for the peg.
      center: [3] of the object (m).
      yaw: [] of the object, less than a quarter turn (rad).

    Returns:
      Joints [6] (rad), which are the joint targets as well, and the coordinate [] of both
      fingers (m), whose pads then press as they do under a closing control.
    """
    axis = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), jnp.zeros_like(yaw)])
    toward, raised, half = {
        "left": (1.0, expert.SOCKET_GRASP_Z, model.SOCKET_HALF[1]),
        "right": (-1.0, expert.PEG_GRASP_Z, model.PEG_HALF[1]),
    }[side]
    up = jnp.array([0.0, 0.0, raised])
    joints = solve(side, center + up, expert.grasp_rotation(axis, toward))
    return joints, jnp.asarray(model.FINGER_CLOSED + half - SQUEEZE)


def at_rest(left: Pose, right: Pose, peg: Pose, socket: Pose) -> tuple[jax.Array, jax.Array]:
    """[30] positions of a world at rest, and its [14] targets.

    Args:
      left, right: an arm's joints [6] and finger coordinate [].
      peg, socket: an object's centre [3] and yaw [].
    """
    qpos, target = [], []
    for joints, finger in (left, right):
        qpos += [joints, jnp.stack([finger, finger])]
        closed = finger < model.FINGER_OPEN - 0.001
        grip = jnp.where(closed, model.FINGER_CLOSED, model.FINGER_OPEN)
        target += [joints, grip[None]]
    for center, yaw in (peg, socket):
        zero = jnp.zeros_like(yaw)
        qpos += [center, jnp.stack([jnp.cos(yaw / 2), zero, zero, jnp.sin(yaw / 2)])]
    return jnp.concatenate(qpos), jnp.concatenate(target)


def at_home(peg: Pose, socket: Pose) -> tuple[jax.Array, jax.Array]:
    """Positions and targets with both arms at home, grippers open."""
    arm = (jnp.asarray(model.HOME, jnp.float32), jnp.asarray(model.FINGER_OPEN))
    return at_rest(arm, arm, peg, socket)


def grasped(peg: Pose, socket: Pose) -> tuple[jax.Array, jax.Array]:
    """Positions and targets with both objects held, on the table or in the air."""
    return at_rest(holding("left", *socket), holding("right", *peg), peg, socket)


def _matrix(q: jax.Array) -> jax.Array:
    w, v = q[0], q[1:]
    cross = jnp.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return jnp.eye(3) + 2 * w * cross + 2 * cross @ cross


def view(qpos: jax.Array, target: jax.Array) -> expert.View:
    """What the expert sees of one world.

    Args:
      qpos: [30] left arm's joints and fingers, right arm's, peg's pose, socket's pose.
      target: [14] the controls in force.
    """
    arms = {}
    for i, side in enumerate(model.SIDES):
        joints = qpos[8 * i : 8 * i + 6]
        position, rotation, jacobian = forward(side, joints)
        arms[side] = expert.Arm(
            target=target[7 * i : 7 * i + 6],
            joints=joints,
            position=position,
            rotation=rotation,
            jacobian=jacobian,
            finger=qpos[8 * i + 6],
        )
    return expert.View(
        **arms,
        peg=qpos[16:19],
        peg_rotation=_matrix(qpos[19:23]),
        socket=qpos[23:26],
        socket_rotation=_matrix(qpos[26:30]),
    )
