"""A scripted expert without memory: each action depends on the present state only.

It opens the gripper and moves above the cube, turns to the cube's nearest faces, descends
inside a cone, closes, lifts, carries and holds the cube at the target. If the cube is lost,
it is fetched again. The same function serves both variants of the grasp.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_mjx.arm import ArmView
from envs_mjx.ik import damped_least_squares, rotation_error
from envs_mjx.kuka_pick_place.model import CUBE_HALF, HOME

GAIN = 0.4  # share of the remaining way that each control step commands

HOVER = 0.08  # m, height above the cube from which the gripper descends
CONE_SLOPE = 3.0  # required height above the cube per horizontal offset from it
CONE_TIP = 0.004  # m, horizontal offset up to which no height is required
YAW_LEVER = 0.03  # m/rad, converts a yaw error to an offset
START_CLOSING = 0.006  # m, the cube's offset from the grip site at which the fingers close
KEEP_CLOSED = 0.022  # m, the offset up to which closing fingers stay closed
TOUCHING = 0.0262  # m, finger coordinate below which the cube is held
CLOSING = 0.033  # m, finger coordinate below which the fingers count as closing
OPEN_ENOUGH = 0.034  # m, finger coordinate that clears the cube's faces
CARRY_HEIGHT = 0.04  # m, height of the cube's underside above the table while it is carried


class ExpertInput(NamedTuple):
    """The input of the expert, for one world.

    Attributes:
      arm: the arm; its site's z axis points out of the gripper, the fingers move along y.
      finger: [] coordinate of the joint `finger` (m).
      cube_position: [3] (m).
      cube_rotation: [3, 3] cube to world.
      target_position: [3] (m).
    """

    arm: ArmView
    finger: jax.Array
    cube_position: jax.Array
    cube_rotation: jax.Array
    target_position: jax.Array


def cube_yaw(rotation: jax.Array) -> jax.Array:
    """[] yaw (rad) of the cube's upright faces, known up to quarter turns."""
    x, y = rotation[0], rotation[1]
    # The fourth power of x + iy is the same for axes a quarter turn apart.
    real = (x**4 - 6 * x**2 * y**2 + y**4).sum()
    imaginary = (4 * x**3 * y - 4 * x * y**3).sum()
    return jnp.arctan2(imaginary, real) / 4


def _yaw_error(world: ExpertInput) -> jax.Array:
    """[] turn about the vertical (rad) that aligns the fingers with a pair of the cube's faces.

    The nearest faces are chosen, with a bias that keeps joint 7 near the middle of its range.
    """
    fingers = world.arm.rotation[:, 1]
    error = cube_yaw(world.cube_rotation) - jnp.arctan2(fingers[1], fingers[0])
    bias = 0.3 * world.arm.q[6]
    quarter = jnp.pi / 2
    return bias + (error - bias + quarter / 2) % quarter - quarter / 2


def _pointing_down(rotation: jax.Array, turn: jax.Array) -> jax.Array:
    """[3, 3] rotation of a gripper that points down and is turned by `turn` (rad)."""
    yaw = jnp.arctan2(rotation[1, 1], rotation[0, 1]) + turn
    down, zero = jnp.array([0.0, 0.0, -1.0]), jnp.zeros(())
    fingers = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), zero])
    return jnp.stack([jnp.cross(fingers, down), fingers, down], axis=1)


def _shorten(vector: jax.Array, max_length: float) -> jax.Array:
    return vector * jnp.minimum(1.0, max_length / jnp.maximum(jnp.linalg.norm(vector), 1e-9))


def expert(world: ExpertInput, *, joint_step: float) -> jax.Array:
    """[8] action in [-1, 1]: changes of the joints' targets in units of `joint_step` (rad),
    and the desired opening of the gripper, -1 closed, 1 open."""
    grip, cube, target = world.arm.position, world.cube_position, world.target_position
    yaw_error = _yaw_error(world)
    offset = jnp.abs(world.arm.rotation.T @ (cube - grip)).max()
    upright = -world.arm.rotation[2, 2]

    closing = world.finger < CLOSING
    between = (offset < jnp.where(closing, KEEP_CLOSED, START_CLOSING)) & (upright > 0.9)
    between &= closing | (jnp.abs(yaw_error) < 0.1)
    held = between & (world.finger < TOUCHING)

    # Fetch: beside the cube the gripper rises first, above the cube it descends in the cone.
    aside = jnp.linalg.norm(cube[:2] - grip[:2])
    off_axis = aside + YAW_LEVER * jnp.abs(yaw_error) + 0.1 * (1 - upright)
    height = jnp.clip(CONE_SLOPE * (off_axis - CONE_TIP), 0.0, HOVER)
    height = jnp.where(world.finger < OPEN_ENOUGH, HOVER, height)
    rises = (aside > 0.012) & (grip[2] < cube[2] + 0.6 * HOVER)
    sideways_gain = jnp.where(rises, jnp.clip(1 - aside / 0.02, 0.0, 0.3), 1.0)
    fetch = (cube - grip) * jnp.array([1.0, 1.0, 0.0]) * sideways_gain
    fetch += jnp.array([0.0, 0.0, 1.0]) * (cube[2] + height - grip[2])
    fetch = jnp.where(between, cube - grip, fetch)

    # Carry the cube: up, across, down.
    across = jnp.linalg.norm(target[:2] - cube[:2])
    floor = CUBE_HALF + jnp.clip(1.5 * (across - 0.01), 0.0, CARRY_HEIGHT)
    carry = jnp.stack([target[0], target[1], jnp.maximum(target[2], floor)]) - cube
    lifted = jnp.clip((cube[2] - CUBE_HALF) / 0.01, 0.0, 1.0)
    carry *= jnp.stack([*[jnp.where(across < 0.02, 1.0, lifted)] * 2, jnp.ones(())])

    move = jnp.where(held, carry, fetch)
    goal_rotation = _pointing_down(world.arm.rotation, jnp.where(between, 0.0, yaw_error))
    turn = rotation_error(goal_rotation, world.arm.rotation)
    # The joints lag behind their targets: part of the motion is already commanded.
    commanded = world.arm.jacobian @ (world.arm.targets - world.arm.q)
    error = jnp.concatenate(
        [_shorten(move - commanded[:3], 0.12), _shorten(turn - commanded[3:], 0.3)]
    )
    posture = 0.03 * (jnp.asarray(HOME) - world.arm.targets)
    change = damped_least_squares(world.arm.jacobian, GAIN * error, posture=posture) / joint_step
    change /= jnp.maximum(jnp.abs(change).max(), 1.0)
    gripper = jnp.where(between, -1.0, 1.0)
    return jnp.append(change, gripper).clip(-1.0, 1.0).astype(jnp.float32)
