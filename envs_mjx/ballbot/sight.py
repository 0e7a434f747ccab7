"""What the ballbot sees: two depth cameras that look at the ground around the ball."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.ballbot import model as m
from envs_mjx.physics import NamedModel, PhysicsState
from envs_mjx.terrain import HeightFields
from envs_mjx.vision import Camera, Scene

FAR = 1.0  # m, the largest depth that is measured
PIXELS = 64  # along each side of an image
_ANGLE = np.deg2rad(30.0)  # between the optical axes and the vertical

# One camera in each head, in the body's frame; each looks down and inward, past the ball.
CAMERAS = tuple(
    Camera(
        position=(x, y, z),
        look=(-np.sign(x) * np.sin(_ANGLE), 0.0, -np.cos(_ANGLE)),
        up=(-np.sign(x) * np.cos(_ANGLE), 0.0, np.sin(_ANGLE)),
        fovy=90.0,
        height=PIXELS,
        width=PIXELS,
    )
    for x, y, z in m.HEADS.tolist()
)

IMAGES = (PIXELS, PIXELS, len(CAMERAS))  # shape of the images


@functools.cache
def own_depth(drive: str, timestep: float) -> np.ndarray:
    """[2, R] depth at which the cameras see the ball and the wheels (m), infinite elsewhere.

    It is always the same: ball and wheels turn about their own axes, and all else is fixed to the
    body, as the cameras are.
    """
    model = NamedModel(m.mjcf(drive, timestep), substeps=1)
    geoms = [model.model.geom(name).id for name in ("ball", *m.WHEEL_GEOMS)]
    scene = Scene(model.model, geoms)
    base = model.rest[:3]
    with jax.ensure_compile_time_eval():
        cast = jax.jit(scene.cast)
        return np.stack([cast(base + c.position, jnp.asarray(c.rays))[0] for c in CAMERAS])


def depth_images(
    drive: str, timestep: float, fields: HeightFields | None, state: PhysicsState
) -> jax.Array:
    """The depth images of both cameras, [2, 64, 64] (m), at most `FAR`.

    Args:
      drive, timestep: as for `model.mjcf`.
      fields: the terrains; None on flat ground.
      state: one world.
    """
    position, rotation = state.qpos[:3], rotation_matrix(state.qpos[3:7])
    heads = jnp.stack([position + rotation @ jnp.asarray(c.position) for c in CAMERAS], 1)
    rays = jnp.concatenate([rotation @ c.rays for c in CAMERAS], axis=1)  # [3, 2 R]
    origin = jnp.repeat(heads, PIXELS**2, axis=1)
    if fields:
        depth = fields.depth(state.extra.field, state.extra.scale, origin, rays, FAR)
    else:
        depth = jnp.where(rays[2] < 0, -origin[2] / jnp.minimum(rays[2], -1e-6), FAR)
    depth = jnp.minimum(depth, jnp.minimum(own_depth(drive, timestep).ravel(), FAR))
    return depth.reshape(2, PIXELS, PIXELS)


def rotation_matrix(quat: jax.Array) -> jax.Array:
    """[3, 3] rotation to the world of a w-first unit quaternion [4]."""
    w, x, y, z = quat
    return jnp.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
