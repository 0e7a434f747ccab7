"""A scripted expert: a pure function of the state, without memory.

Each action follows from the present geometry, where possible with funnels in place of stages:
the better an arm is aligned above its object, the lower it goes; the better the peg is aligned
with the socket's axis, the deeper it goes. So the expert can also choose actions for states that
another policy has reached.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.aloha_insertion import model
from envs_mjx.arm import ArmView
from envs_mjx.ik import damped_least_squares, rotation_error

PITCH = np.deg2rad(75.0)  # of the grippers, down from the horizontal
# Joint targets lead the joints by this multiple of the remaining motion, as the servos lag.
LEAD = 2.0
MAX_SHIFT = 0.06  # m, larger position errors are shortened to this
MAX_TURN = 0.4  # rad, larger orientation errors are shortened to this

# Far from its grasp an arm moves in joint space to this pose above the object (rad; waist
# and wrist are turned to the object), because its wrist may be turned the wrong way round.
READY = np.array([0.0, -0.2, 0.6, 0.0, 0.9, 0.0])
FAR = (0.12, 0.2)  # m from the grasp: motion to READY begins at the first, is all at the second

HOVER = 0.06  # m, largest height over the grasp while the gripper is not yet above it
PEG_GRASP_Z = 0.007  # m above the peg's centre: the finger tips stay off the table
SOCKET_GRASP_Z = 0.0
CLOSE_WITHIN = 0.008  # m from the grasp, within which the fingers begin to close
KEEP_WITHIN = 0.025  # m from the grasp, within which fingers that hold something stay closed
HELD_SLACK = 0.003  # m of finger travel beyond the object's half width

MEET_Z = 0.17  # m, height of the insertion
SOCKET_X = -0.06  # m, x at which the socket waits
WAIT_DISTANCE = model.ENTRY_DISTANCE + 0.03  # m between centres before the insertion
# Positions at which socket and peg wait for each other (m).
MEETING = {
    "socket": np.array([SOCKET_X, model.BASE_Y, MEET_Z]),
    "peg": np.array([SOCKET_X + WAIT_DISTANCE, model.BASE_Y, MEET_Z]),
}
# Desired distance at the end: less than is possible, so that the peg stays at the pin.
PUSH_DISTANCE = model.FULL_DISTANCE - 0.0003


class Hand(NamedTuple):
    """An arm, and the coordinate [] of its finger (m)."""

    arm: ArmView
    finger: jax.Array


class View(NamedTuple):
    """The input of the expert.

    Attributes:
      left, right: the arms.
      peg, socket: [3] centres (m).
      peg_rotation, socket_rotation: [3, 3], object to world.
    """

    left: Hand
    right: Hand
    peg: jax.Array
    peg_rotation: jax.Array
    socket: jax.Array
    socket_rotation: jax.Array


def _shorten(vector: jax.Array, longest: float) -> jax.Array:
    size = jnp.sqrt(jnp.sum(vector**2) + 1e-12)
    return vector * jnp.minimum(1.0, longest / size)


def _yaw_axis(rotation: jax.Array) -> jax.Array:
    """[3] horizontal unit vector along an object's x axis, in the direction towards +x."""
    axis = rotation[:, 0] * jnp.where(rotation[0, 0] < 0, -1.0, 1.0)
    flat = axis * jnp.array([1.0, 1.0, 0.0]) + jnp.array([1e-3, 0.0, 0.0])
    return flat / jnp.linalg.norm(flat)


def grasp_rotation(axis: jax.Array, toward: float) -> jax.Array:
    """[3, 3] rotation of a gripper above an object that lies along `axis`.

    Args:
      axis: [3] horizontal unit vector.
      toward: +1: the gripper faces +x (left arm); -1: it faces -x (right arm).
    """
    ahead, down = toward * axis, jnp.array([0.0, 0.0, -1.0])
    x = np.cos(PITCH) * ahead + np.sin(PITCH) * down
    z = np.sin(PITCH) * ahead - np.cos(PITCH) * down
    return jnp.stack([x, jnp.cross(z, x), z], axis=1)


def _pose_turn(rotation: jax.Array, axis: jax.Array) -> jax.Array:
    """[3] turn (rad) that aligns an object's x axis, in either direction, with `axis`, and makes
    the nearest of its sides level."""
    x = rotation[:, 0] * jnp.where(rotation[:, 0] @ axis < 0, -1.0, 1.0)
    align = jnp.cross(x, axis)
    # Sides repeat every quarter turn about the axis; near each, sin(4 a) / 4 is the angle to it.
    side = jnp.cross(jnp.array([0.0, 0.0, 1.0]), axis)
    side = side / jnp.maximum(jnp.linalg.norm(side), 1e-3)
    up = jnp.cross(axis, side)
    y = rotation[:, 1]
    angle = jnp.arctan2(y @ up, y @ side)
    return align - axis * jnp.sin(4 * angle) / 4


def _ready(grasp: jax.Array, axis: jax.Array, toward: float) -> jax.Array:
    """[6] joint positions (rad) of an arm above the grasp of an object that lies along `axis`."""
    waist = jnp.arctan2(toward * (grasp[1] - model.BASE_Y), toward * grasp[0] + model.BASE_X)
    joints = jnp.asarray(READY).at[0].set(waist)
    return joints.at[5].set(waist - jnp.arctan2(axis[1], axis[0]))


def _reach(
    arm: ArmView, grasp: jax.Array, axis: jax.Array, toward: float
) -> tuple[jax.Array, jax.Array]:
    """[6] joint motion to a grasp from above, and the gripper's distance from the grasp, to which
    an orientation error adds 0.02 m/rad (m)."""
    turn = rotation_error(grasp_rotation(axis, toward), arm.rotation)
    shift = grasp - arm.position
    distance = jnp.sqrt(jnp.sum(shift**2) + 1e-12)
    aside = jnp.linalg.norm(shift[:2]) + 0.04 * jnp.linalg.norm(turn)
    height = jnp.clip(3.0 * (aside - 0.006), 0.0, HOVER)
    near = _joint_motion(arm, jnp.concatenate([shift.at[2].add(height), turn]))
    far = LEAD * (_ready(grasp, axis, toward) - arm.q)
    share = jnp.clip((distance - FAR[0]) / (FAR[1] - FAR[0]), 0.0, 1.0)
    return near + share * (far - near), distance + 0.02 * jnp.linalg.norm(turn)


def _carry(arm: ArmView, center: jax.Array, goal: jax.Array, turn: jax.Array) -> jax.Array:
    """[6] joint motion of an arm that moves the object in its gripper to `goal` and turns it."""
    shift = goal - center
    # Up first: motion sideways only in proportion to the object's height above the table.
    free = jnp.clip((center[2] - 0.03) / 0.05, 0.0, 1.0)
    shift = shift * jnp.array([1.0, 1.0, 0.0]) * free + shift * jnp.array([0.0, 0.0, 1.0])
    turn = turn * free
    lever = jnp.cross(turn, arm.position - center)
    return _joint_motion(arm, jnp.concatenate([_shorten(shift, MAX_SHIFT) + lever, turn]))


def _joint_motion(arm: ArmView, motion: jax.Array) -> jax.Array:
    """[6] joint motion that moves the gripper by `motion` [6] (m, rad), times the lead."""
    motion = jnp.concatenate([_shorten(motion[:3], MAX_SHIFT), _shorten(motion[3:], MAX_TURN)])
    return LEAD * damped_least_squares(arm.jacobian, motion, damping=0.02)


def _arm_action(arm: ArmView, dq: jax.Array, joint_step: float) -> jax.Array:
    """[6] action that moves the targets to `dq` ahead of the joints, in equal proportion."""
    change = (arm.q + dq - arm.targets) / joint_step
    return change / jnp.maximum(1.0, jnp.max(jnp.abs(change)))


def expert(view: View, *, joint_step: float) -> jax.Array:
    """[14] action in [-1, 1]: left joints, left gripper, right joints, right gripper.

    Joints: change of their targets in units of `joint_step` (rad). Grippers: -1 closed, 1
    open.
    """
    left, right = view.left.arm, view.right.arm
    x, up = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])

    reach_left, distance_left = _reach(
        left, view.socket + SOCKET_GRASP_Z * up, _yaw_axis(view.socket_rotation), 1.0
    )
    reach_right, distance_right = _reach(
        right, view.peg + PEG_GRASP_Z * up, _yaw_axis(view.peg_rotation), -1.0
    )

    gap_left = view.left.finger - model.FINGER_CLOSED - model.SOCKET_HALF[1]
    gap_right = view.right.finger - model.FINGER_CLOSED - model.PEG_HALF[1]
    held_left = (gap_left < HELD_SLACK) & (distance_left < KEEP_WITHIN)
    held_right = (gap_right < HELD_SLACK) & (distance_right < KEEP_WITHIN)

    # The socket goes to its place and stays there.
    socket_goal = jnp.asarray(MEETING["socket"])
    turn = _pose_turn(view.socket_rotation, x)
    carry_left = _carry(left, view.socket, socket_goal, turn)

    # The peg follows the socket's axis once the socket is nearly there.
    ready = held_left & (jnp.linalg.norm(socket_goal - view.socket) < 0.03)
    axis = view.socket_rotation[:, 0] * jnp.where(view.socket_rotation[0, 0] < 0, -1.0, 1.0)
    axis = jnp.where(ready, axis, x)
    origin = jnp.where(ready, view.socket, socket_goal)
    turn = _pose_turn(view.peg_rotation, axis)
    offset = view.peg - origin
    along = offset @ axis
    aside = jnp.linalg.norm(offset - along * axis) + 0.03 * jnp.linalg.norm(turn)
    allowed = jnp.where(along < model.ENTRY_DISTANCE, 0.006, 0.004)
    retreat = jnp.clip(10.0 * (aside - allowed), 0.0, WAIT_DISTANCE - PUSH_DISTANCE)
    distance = jnp.where(ready, PUSH_DISTANCE + retreat, WAIT_DISTANCE)
    carry_right = _carry(right, view.peg, origin + distance * axis, turn)

    close_left = held_left | (distance_left < CLOSE_WITHIN)
    close_right = held_right | (distance_right < CLOSE_WITHIN)
    return jnp.concatenate(
        [
            _arm_action(left, jnp.where(held_left, carry_left, reach_left), joint_step),
            jnp.where(close_left, -1.0, 1.0)[None],
            _arm_action(right, jnp.where(held_right, carry_right, reach_right), joint_step),
            jnp.where(close_right, -1.0, 1.0)[None],
        ]
    )
