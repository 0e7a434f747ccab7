"""Cameras in pure JAX: rays against a model's primitive shapes, for depth and RGB images.

A ray's direction has length 1 along the camera's optical axis, so that its parameter is depth.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs_mjx.scenery import text

Vector = list[jax.Array]  # components of vectors, each [R]
_TINY = 1e-12
DRAWN_GROUPS = 3  # MuJoCo draws shapes of the groups 0 to 2
SKY = np.array([0.8, 0.88, 0.96], np.float32)  # colour where a camera sees no shape
SUN = np.array([0.32, -0.24, 0.92], np.float32)  # direction to the light, of length 1
AMBIENT = 0.45  # share of the light that comes from everywhere


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels.

    Attributes:
      position: [3] position in the frame that carries it (m).
      look, up: [3] the direction of the optical axis, and a direction that is up in the image.
      fovy: vertical field of view (deg).
      height, width: size of the image (pixels).
    """

    position: tuple[float, float, float]
    look: tuple[float, float, float]
    up: tuple[float, float, float]
    fovy: float
    height: int = 64
    width: int = 64

    @property
    def axes(self) -> np.ndarray:
        """[3, 3] columns: the directions to the right and up in the image, and the optical axis."""
        forward = np.array(self.look) / np.linalg.norm(self.look)
        right = np.cross(forward, self.up)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward], 1)

    @property
    def rays(self) -> np.ndarray:
        """[3, H * W] directions of the pixels' rays in the frame that carries the camera."""
        half = np.tan(np.deg2rad(self.fovy) / 2)
        rows = half * (1 - (2 * np.arange(self.height) + 1) / self.height)
        columns = half * ((2 * np.arange(self.width) + 1) - self.width) / self.height
        x, y = (values.ravel() for values in np.meshgrid(columns, rows))
        return (self.axes @ np.stack([x, y, np.ones_like(x)])).astype(np.float32)


# -- shapes, in their frame; vectors are components [R] --------------------------------------
# Each has the depth at which rays from `o` along `d` enter it from outside (infinite: they do not),
# and the normal, of any length, at points `at` of its surface. One formula for each component,
# without reductions, is what XLA makes the fastest loop of.


def _sphere(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    return _first(o, d, size[0])


def _sphere_normal(at: Vector, size: jax.Array) -> Vector:
    return at


def _ellipsoid(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    o, d = (
        [x / r for x, r in zip(o, size, strict=True)],
        [x / r for x, r in zip(d, size, strict=True)],
    )
    return _first(o, d, 1.0)


def _ellipsoid_normal(at: Vector, size: jax.Array) -> Vector:
    return [x / r**2 for x, r in zip(at, size, strict=True)]


def _capsule(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    radius, half = size[0], size[1]
    t = _side(o, d, size)
    for end in (-half, half):
        t = jnp.minimum(t, _first([o[0], o[1], o[2] - end], d, radius))
    return t


def _capsule_normal(at: Vector, size: jax.Array) -> Vector:
    return [at[0], at[1], at[2] - jnp.clip(at[2], -size[1], size[1])]


def _cylinder(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    end = (-jnp.sign(d[2]) * size[1] - o[2]) / _nonzero(d[2])  # the end that is met from outside
    inside = (o[0] + end * d[0]) ** 2 + (o[1] + end * d[1]) ** 2 <= size[0] ** 2
    return jnp.minimum(_side(o, d, size), jnp.where((end > 0) & inside, end, jnp.inf))


def _cylinder_normal(at: Vector, size: jax.Array) -> Vector:
    on_side = jnp.hypot(at[0], at[1]) - size[0] > jnp.abs(at[2]) - size[1]
    return [x * on_side for x in at[:2]] + [at[2] * ~on_side]


def _box(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    slopes = [1.0 / _nonzero(y) for y in d]
    ends = [
        ((-r - x) * slope, (r - x) * slope) for x, slope, r in zip(o, slopes, size, strict=True)
    ]
    enters = functools.reduce(jnp.maximum, [jnp.minimum(*pair) for pair in ends])
    leaves = functools.reduce(jnp.minimum, [jnp.maximum(*pair) for pair in ends])
    return jnp.where((enters <= leaves) & (enters > 0), enters, jnp.inf)


def _box_normal(at: Vector, size: jax.Array) -> Vector:
    outside = [jnp.abs(x) - r for x, r in zip(at, size, strict=True)]
    most = functools.reduce(jnp.maximum, outside)
    return [jnp.sign(x) * (y == most) for x, y in zip(at, outside, strict=True)]


def _plane(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    t = -o[2] / _nonzero(d[2])
    hit = (t > 0) & (o[2] > 0)
    for i in range(2):
        hit &= (jnp.abs(o[i] + t * d[i]) <= size[i]) | (size[i] <= 0)
    return jnp.where(hit, t, jnp.inf)


def _plane_normal(at: Vector, size: jax.Array) -> Vector:
    return [jnp.zeros_like(at[0]), jnp.zeros_like(at[0]), jnp.ones_like(at[0])]


def _side(o: Vector, d: Vector, size: jax.Array) -> jax.Array:
    """Depth at which rays enter the side of a cylinder or a capsule."""
    t = _first(o[:2], d[:2], size[0])
    return jnp.where(jnp.abs(o[2] + _finite(t) * d[2]) <= size[1], t, jnp.inf)


def _first(o: Vector, d: Vector, radius: jax.Array | float) -> jax.Array:
    """Depth at which rays enter a ball (or, in two dimensions, an endless cylinder)."""
    a, b = _dot(d, d) + _TINY, _dot(o, d)
    # The root from the distance between ray and centre keeps its digits far from the ball.
    away = [x - b / a * y for x, y in zip(o, d, strict=True)]
    root = radius**2 - _dot(away, away)
    t = (-b - jnp.sqrt(a * jnp.maximum(root, 0.0))) / a
    return jnp.where((root >= 0) & (t > 0), t, jnp.inf)


def _dot(a: Vector, b: Vector) -> jax.Array:
    return sum((x * y for x, y in zip(a[1:], b[1:], strict=True)), start=a[0] * b[0])


def _turned(turn: jax.Array, v: Vector) -> Vector:
    """A vector, turned by the rotation [3, 3, ...]."""
    return [_dot(list(row), v) for row in turn]


def _finite(t: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(t), t, 0.0)


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < _TINY, _TINY, x)


_SHAPES = {
    int(mujoco.mjtGeom.mjGEOM_PLANE): (_plane, _plane_normal),
    int(mujoco.mjtGeom.mjGEOM_SPHERE): (_sphere, _sphere_normal),
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): (_capsule, _capsule_normal),
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): (_ellipsoid, _ellipsoid_normal),
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): (_cylinder, _cylinder_normal),
    int(mujoco.mjtGeom.mjGEOM_BOX): (_box, _box_normal),
}


# -- scenes --------------------------------------------------------------------------------


class Attached:
    """Shapes that are attached to bodies.

    Args:
      model: the compiled model.
      geoms: indices of the shapes.
      frames: names of the bodies whose poses are given later, in this order; shapes of other bodies
        must not move.
    """

    def __init__(self, model: mujoco.MjModel, geoms: Sequence[int], frames: Sequence[str]):
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        owners = {model.body(name).id: i for i, name in enumerate(frames)}
        world = len(frames)  # comes after the bodies
        bodies = model.geom_bodyid[list(geoms)]
        self.frames = tuple(frames)
        self._owner = np.array([owners.get(int(body), world) for body in bodies], int)
        pos, mat = data.geom_xpos[list(geoms)], data.geom_xmat[list(geoms)].reshape(-1, 3, 3)
        for i in np.flatnonzero(self._owner != world):
            quat = np.zeros(9)
            mujoco.mju_quat2Mat(quat, model.geom_quat[geoms[i]])
            pos[i], mat[i] = model.geom_pos[geoms[i]], quat.reshape(3, 3)
        self._pos, self._mat = np.float32(pos), np.float32(mat)

    def poses(
        self, positions: jax.Array | None, rotations: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Positions [G, 3] of the shapes (m), and their rotations to the world [G, 3, 3].

        Args:
          positions: [B, 3] positions of the bodies (m); None if no shape moves.
          rotations: [B, 3, 3] their rotations to the world.
        """
        if positions is None or rotations is None:
            return jnp.asarray(self._pos), jnp.asarray(self._mat)
        positions = jnp.concatenate([positions, jnp.zeros((1, 3))])[self._owner]
        rotations = jnp.concatenate([rotations, jnp.eye(3)[None]])[self._owner]
        at = positions + (rotations * self._pos[:, None]).sum(2)
        return at, (rotations[..., None] * self._mat[:, None]).sum(2)


class Scene:
    """Some primitive shapes of a model, which move with its bodies.

    Args:
      model: the compiled model.
      geoms: indices of the shapes; None: all that MuJoCo's own pictures show.
      frames: names of the bodies whose poses `cast` receives, in this order; shapes of other
        bodies must not move.

    Raises:
      ValueError: a shape is not a primitive.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        geoms: Sequence[int] | None = None,
        frames: Sequence[str] = (),
    ):
        geoms = np.flatnonzero(_drawn(model)).tolist() if geoms is None else geoms
        for geom in geoms:
            if int(model.geom_type[geom]) not in _SHAPES:
                raise ValueError(f"geom {model.geom(geom).name or geom!r} is no primitive shape")
        order = sorted(geoms, key=lambda geom: model.geom_type[geom])
        kinds = model.geom_type[order].tolist()
        self.groups = {  # for each kind of shape, its place in the arrays below
            kind: slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind))
            for kind in sorted(set(kinds))
        }
        self.shapes = Attached(model, order, frames)
        self.size = np.float32(model.geom_size[order])
        self.color = np.float32(_colors(model)[order, :3])

    def cast(
        self,
        origin: jax.Array,
        rays: jax.Array,
        positions: jax.Array | None = None,
        rotations: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Depth [R] at which rays first hit a shape (infinite: none), the normal [3, R] there in
        the world, and the shape's colour [3, R] (0 to 1).

        Args:
          origin: [3] or [3, R] start of the rays in the world (m).
          rays: [3, R] directions in the world.
          positions: [B, 3] positions of the bodies (m).
          rotations: [B, 3, 3] their rotations to the world.
        """
        origin = origin.reshape(3, -1)
        at, turn = self.shapes.poses(positions, rotations)
        hit = jnp.full(rays.shape[1], jnp.inf), jnp.zeros(rays.shape[1], jnp.int32)
        for kind, geoms in self.groups.items():

            def nearer(hit, geom, depth=_SHAPES[kind][0]):
                index, at, turn, size = geom
                t = depth(
                    _turned(turn.T, list(origin - at[:, None])), _turned(turn.T, list(rays)), size
                )
                closer = t < hit[0]
                return (jnp.where(closer, t, hit[0]), jnp.where(closer, index, hit[1])), None

            rows = (at[geoms], turn[geoms], jnp.asarray(self.size[geoms]))
            hit, _ = jax.lax.scan(nearer, hit, (jnp.arange(geoms.start, geoms.stop), *rows))
        depth, index = hit
        # Facts about the shape that each ray hits, [18, R].
        facts = jnp.concatenate([at, self.size, self.color, turn.reshape(-1, 9)], axis=1)
        facts = facts.T @ jax.nn.one_hot(index, len(facts), axis=0)
        at, size, color, turn = facts[:3], facts[3:6], facts[6:9], facts[9:].reshape(3, 3, -1)
        local = _turned(turn.swapaxes(0, 1), list(origin + _finite(depth) * rays - at))
        normal = [jnp.zeros(rays.shape[1])] * 3
        for kind, geoms in self.groups.items():
            of_kind = (geoms.start <= index) & (index < geoms.stop)
            normals = _SHAPES[kind][1](local, size)
            normal = [jnp.where(of_kind, a, b) for a, b in zip(normals, normal, strict=True)]
        length = jnp.sqrt(_dot(normal, normal) + _TINY)
        return depth, jnp.stack(_turned(turn, normal)) / length, color

    def picture(
        self,
        camera: Camera,
        positions: jax.Array | None = None,
        rotations: jax.Array | None = None,
        *,
        shadows: bool = False,
    ) -> jax.Array:
        """[H, W, 3] colours (0 to 1) that a camera in the world sees, with matt surfaces.

        Args:
          camera: the camera.
          positions, rotations: poses of the bodies, as for `cast`.
          shadows: whether shapes cast shadows, which needs a second ray for each pixel.
        """
        origin, rays = jnp.asarray(camera.position, jnp.float32), jnp.asarray(camera.rays)
        depth, normal, color = self.cast(origin, rays, positions, rotations)
        sun = jnp.asarray(SUN)
        bright = jnp.maximum(sun @ normal, 0.0)
        if shadows:
            surface = origin[:, None] + _finite(depth) * rays + 1e-3 * normal
            towards = jnp.broadcast_to(sun[:, None], rays.shape)
            away, _, _ = self.cast(surface, towards, positions, rotations)
            bright = jnp.where(jnp.isfinite(away), 0.0, bright)
        lit = color * (AMBIENT + (1 - AMBIENT) * bright)
        seen = jnp.where(jnp.isfinite(depth), lit, jnp.asarray(SKY)[:, None])
        return jnp.moveaxis(seen.reshape(3, camera.height, camera.width), 0, 2)


def as_mjcf(cameras: Sequence[Camera]) -> str:
    """Cameras in the world, as elements of MJCF."""
    elements = ""
    for camera in cameras:
        pos, axes = text(camera.position), text(camera.axes.T[:2])
        elements += f'<camera pos="{pos}" xyaxes="{axes}" fovy="{camera.fovy}"/>'
    return elements


def moving_bodies(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the bodies that move and have shapes that MuJoCo's own pictures show."""
    bodies = np.unique(model.geom_bodyid[_drawn(model)])
    moves = (model.body_weldid[bodies] != 0) | (model.body_mocapid[bodies] >= 0)
    return tuple(model.body(body).name for body in bodies[moves])


def _drawn(model: mujoco.MjModel) -> np.ndarray:
    """[G] bool: the shapes that MuJoCo's own pictures show."""
    return (_colors(model)[:, 3] > 0) & (model.geom_group < DRAWN_GROUPS)


def _colors(model: mujoco.MjModel) -> np.ndarray:
    """[G, 4] colours of the shapes, with those of their materials."""
    colors = model.geom_rgba.copy()
    has = model.geom_matid >= 0
    colors[has] = model.mat_rgba[model.geom_matid[has]]
    return colors
