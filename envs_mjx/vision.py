"""Cameras in pure JAX: rays against a model's primitive shapes, for depth and RGB images.

A ray's direction has length 1 along the camera's optical axis, so that its parameter is depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

Hit = tuple[jax.Array, jax.Array]  # depth [R], infinite where a ray hits nothing; normal [3, R]
_TINY = 1e-12
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
    height: int
    width: int

    @property
    def rays(self) -> np.ndarray:
        """[3, H * W] directions of the pixels' rays in the frame that carries the camera."""
        forward = np.array(self.look) / np.linalg.norm(self.look)
        right = np.cross(forward, self.up)
        right = right / np.linalg.norm(right)
        half = np.tan(np.deg2rad(self.fovy) / 2)
        rows = half * (1 - (2 * np.arange(self.height) + 1) / self.height)
        columns = half * ((2 * np.arange(self.width) + 1) - self.width) / self.height
        x, y = (values.ravel() for values in np.meshgrid(columns, rows))
        axes = np.stack([right, np.cross(right, forward), forward], 1)
        return (axes @ np.stack([x, y, np.ones_like(x)])).astype(np.float32)


# -- shapes: a ray from `o` [3, R] along `d` [3, R] in the shape's frame ----------------------


def _sphere(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    t = _first(o, d, size[0])
    return t, (o + _finite(t) * d) / size[0]


def _ellipsoid(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    o, d = o / size[:, None], d / size[:, None]
    t = _first(o, d, 1.0)
    return t, _unit((o + _finite(t) * d) / size[:, None])


def _capsule(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    radius, half = size[0], size[1]
    side = _first(o[:2], d[:2], radius)
    t = jnp.where(jnp.abs(o[2] + _finite(side) * d[2]) <= half, side, jnp.inf)
    for end in (-half, half):
        shift = jnp.stack([0 * end, 0 * end, end])[:, None]
        t = jnp.minimum(t, _first(o - shift, d, radius))
    at = o + _finite(t) * d
    return t, jnp.stack([at[0], at[1], at[2] - jnp.clip(at[2], -half, half)]) / radius


def _cylinder(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    radius, half = size[0], size[1]
    side = _first(o[:2], d[:2], radius)
    side = jnp.where(jnp.abs(o[2] + _finite(side) * d[2]) <= half, side, jnp.inf)
    ahead = -jnp.sign(d[2])  # the end that the ray can meet from outside
    end = (ahead * half - o[2]) / _nonzero(d[2])
    at = o[:2] + end * d[:2]
    end = jnp.where((end > 0) & ((at**2).sum(0) <= radius**2), end, jnp.inf)
    t = jnp.minimum(side, end)
    at = o + _finite(t) * d
    zero = jnp.zeros_like(t)
    normal = jnp.where(side < end, jnp.stack([at[0], at[1], zero]) / radius, 0.0)
    return t, jnp.where(side < end, normal, jnp.stack([zero, zero, ahead]))


def _box(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    size = size[:, None]
    near = (-jnp.sign(d) * size - o) / _nonzero(d)
    far = (jnp.sign(d) * size - o) / _nonzero(d)
    t = near.max(0)
    t = jnp.where((t <= far.min(0)) & (t > 0), t, jnp.inf)
    return t, -jnp.sign(d) * (near == near.max(0))


def _plane(o: jax.Array, d: jax.Array, size: jax.Array) -> Hit:
    t = -o[2] / _nonzero(d[2])
    at = o[:2] + t * d[:2]
    inside = ((jnp.abs(at) <= size[:2, None]) | (size[:2, None] <= 0)).all(0)
    t = jnp.where((t > 0) & (o[2] > 0) & inside, t, jnp.inf)
    return t, jnp.stack([0 * t, 0 * t, jnp.ones_like(t)])


def _first(o: jax.Array, d: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Depth at which rays enter a ball (or, in two dimensions, an endless cylinder)."""
    a, b = (d * d).sum(0) + _TINY, (o * d).sum(0)
    # The root from the distance between ray and centre keeps its digits far from the ball.
    away = o - b / a * d
    root = radius**2 - (away * away).sum(0)
    t = (-b - jnp.sqrt(a * jnp.maximum(root, 0.0))) / a
    return jnp.where((root >= 0) & (t > 0), t, jnp.inf)


def _finite(t: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(t), t, 0.0)


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < _TINY, _TINY, x)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt((x * x).sum(0) + _TINY)


_SHAPES: dict[int, Callable[[jax.Array, jax.Array, jax.Array], Hit]] = {
    int(mujoco.mjtGeom.mjGEOM_PLANE): _plane,
    int(mujoco.mjtGeom.mjGEOM_SPHERE): _sphere,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): _capsule,
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): _ellipsoid,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): _cylinder,
    int(mujoco.mjtGeom.mjGEOM_BOX): _box,
}


# -- scenes --------------------------------------------------------------------------------


class Scene:
    """Some primitive shapes of a model, which move with its bodies.

    Args:
      model: the compiled model.
      geoms: indices of the shapes; None: all that are not transparent.
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
        if geoms is None:
            colors = _colors(model)
            geoms = [i for i in range(model.ngeom) if colors[i, 3] > 0]
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        owners = {model.body(name).id: i for i, name in enumerate(frames)}
        self.groups: dict[int, list[int]] = {}
        for geom in geoms:
            kind = int(model.geom_type[geom])
            if kind not in _SHAPES:
                raise ValueError(f"geom {model.geom(geom).name or geom!r} is no primitive shape")
            self.groups.setdefault(kind, []).append(int(geom))
        self.frame = np.full(model.ngeom, len(frames))  # the last frame is the world
        self.pos, self.mat = data.geom_xpos.copy(), data.geom_xmat.reshape(-1, 3, 3).copy()
        for geom in geoms:
            owner = owners.get(int(model.geom_bodyid[geom]))
            if owner is not None:
                quat = np.zeros(9)
                mujoco.mju_quat2Mat(quat, model.geom_quat[geom])
                self.frame[geom] = owner
                self.pos[geom], self.mat[geom] = model.geom_pos[geom], quat.reshape(3, 3)
        self.size, self.color = model.geom_size.copy(), _colors(model)[:, :3]

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
        origin = jnp.broadcast_to(origin.reshape(3, -1), rays.shape)
        world = jnp.zeros((1, 3)), jnp.eye(3)[None]
        bodies = world
        if positions is not None and rotations is not None:
            bodies = jnp.concatenate([positions, world[0]]), jnp.concatenate([rotations, world[1]])
        best = (
            jnp.full(rays.shape[1], jnp.inf),
            jnp.zeros(rays.shape),
            jnp.zeros(rays.shape),
        )
        for kind, geoms in self.groups.items():
            frame = self.frame[geoms]
            turn = jnp.einsum("kij,kjl->kil", bodies[1][frame], self.mat[geoms])
            at = bodies[0][frame] + jnp.einsum("kij,kj->ki", bodies[1][frame], self.pos[geoms])

            def nearer(best, geom, shape=_SHAPES[kind]):
                at, turn, size, color = geom
                t, normal = shape(turn.T @ (origin - at[:, None]), turn.T @ rays, size)
                closer = t < best[0]
                found = t, turn @ normal, jnp.broadcast_to(color[:, None], normal.shape)
                return tuple(
                    jnp.where(closer, a, b) for a, b in zip(found, best, strict=True)
                ), None

            facts = (at, turn, jnp.asarray(self.size[geoms]), jnp.asarray(self.color[geoms]))
            facts = tuple(x.astype(jnp.float32) for x in facts)
            best, _ = jax.lax.scan(nearer, best, facts)
        return best

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


def _colors(model: mujoco.MjModel) -> np.ndarray:
    """[G, 4] colours of the shapes, with those of their materials."""
    colors = model.geom_rgba.copy()
    has = model.geom_matid >= 0
    colors[has] = model.mat_rgba[model.geom_matid[has]]
    return colors
