"""Uneven ground: banks of height fields, and where a ball touches them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 10.0  # m, length and width of a field
POINTS = 293  # grid points along a side
SPACING = SIDE / (POINTS - 1)  # m, between grid points
# Simplex noise: grid points in one unit of the coarsest octave, and how octaves follow each other.
SCALE, OCTAVES, PERSISTENCE, LACUNARITY = 25, 4, 0.2, 2.0
# Each makes the error of the foot point smaller by the factor curvature x radius: about 0.06 for a
# ballbot on simplex noise.
FOOT_ITERATIONS = 2
# Steps of a ray to the ground, safe and by Newton's method (`HeightFields.depth`): where hardly any
# slope exceeds 0.45, and where rays pass close over crests.
GENTLE_STEPS, STEEP_STEPS = (8, 4), (24, 8)

Kind = Literal["flat", "simplex", "ramp", "hills", "steps", "sinusoid", "bowl", "ridges"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class HeightFields:
    """A bank of height fields; between grid points the surface is bicubic, beyond a field's edge
    its mirror image follows, so that every field goes on for ever without a bend.

    Attributes:
      heights: [F, P, P] float32 heights (m) at the grid points; rows along y, columns along x, the
        origin of the plane in the middle.
      spacing: distance between grid points (m).
    """

    heights: np.ndarray
    spacing: float = SPACING

    @property
    def size(self) -> float:
        """Length of a side (m)."""
        return self.spacing * (self.heights.shape[-1] - 1)

    def height(self, field: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Height (m) and its gradient [2] of the surface.

        Args:
          field: index of the field.
          place: [2] horizontal position (m).
        """
        at = self._on_grid(place)
        cell = jnp.floor(at)
        indices = self._mirrored(cell[:, None] + jnp.arange(-1, 3))  # [2, 4]
        around = jnp.asarray(self.heights)[field, indices[1][:, None], indices[0][None]]  # [4, 4]
        (x, y), (dx, dy) = _cubic(at - cell), _cubic_slope(at - cell)
        gradient = jnp.stack([y @ around @ dx, dy @ around @ x]) / self.spacing
        return y @ around @ x, gradient

    def _on_grid(self, place: jax.Array) -> jax.Array:
        """Horizontal positions (m), in grid points from the field's edge."""
        return place / self.spacing + (self.heights.shape[-1] - 1) / 2

    def _mirrored(self, index: jax.Array) -> jax.Array:
        """Indices of grid points, where those beyond the edge are of the mirror image."""
        period = 2.0 * self.heights.shape[-1] - 2.0
        index = index - period * jnp.floor(index / period)  # faster than mod of integers
        return jnp.minimum(index, period - index).astype(jnp.int32)

    def surface(
        self, field: jax.Array, scale: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The point [3] (m) of the surface at a horizontal position, and the normal [3] there.

        Args:
          field: index of the field.
          scale: factor on all heights.
          place: [2] horizontal position (m).
        """
        height, gradient = self.height(field, place)
        normal = jnp.append(-scale * gradient, 1.0)
        return jnp.append(place, scale * height), normal / jnp.linalg.norm(normal)

    def foot(
        self, field: jax.Array, scale: jax.Array, center: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `surface`, at the point that is closest to a ball.

        Args:
          field: index of the field.
          scale: factor on all heights.
          center: [3] centre of the ball (m), near the surface.
        """
        point, normal = self.surface(field, scale, center[:2])
        for _ in range(FOOT_ITERATIONS):
            place = center[:2] - normal[:2] * ((center - point) @ normal)
            point, normal = self.surface(field, scale, place)
        return point, normal

    # -- rays --------------------------------------------------------------------------

    @functools.cached_property
    def steep(self) -> float:
        """A slope that hardly any of the surface exceeds."""
        along = [np.abs(np.diff(self.heights, axis=axis)) for axis in (1, 2)]
        return float(np.hypot(*(np.percentile(x, 99.9) for x in along)) / self.spacing)

    def depth(
        self,
        field: jax.Array,
        scale: jax.Array,
        origin: jax.Array,
        rays: jax.Array,
        far: float,
    ) -> jax.Array:
        """Depth [R] at which rays meet the ground, at most `far`.

        The ground consists of flat triangles between the grid points here, as in MuJoCo's height
        fields. A ray first moves ahead as far as it can without meeting ground of the slope
        `steep`, step by step, then by Newton's method, which is exact once the triangle is found.

        Args:
          field: index of the field.
          scale: factor on all heights.
          origin: [3] or [3, R] start of the rays, above the ground (m).
          rays: [3, R] directions, of which the depth is a multiple.
          far: largest depth (m).
        """
        x, y, z = origin.reshape(3, -1)
        along, across, fall = rays[0], rays[1], -rays[2]
        safe = scale * self.steep * jnp.sqrt(along**2 + across**2) + fall
        above = z - scale * float(self.heights.max())  # no ground is higher
        depth = jnp.clip(above / jnp.maximum(fall, 1e-3), 0.0, far)
        first, last = GENTLE_STEPS if self.steep < 0.45 else STEEP_STEPS
        for i in range(first + last):
            height, dx, dy = self._triangle(field, x + depth * along, y + depth * across)
            gap = z - depth * fall - scale * height
            closing = safe
            if i >= first:
                closing = fall + scale * (dx * along + dy * across)
            depth = jnp.clip(depth + gap / jnp.maximum(closing, 1e-3), 0.0, far)
        return depth

    def _triangle(
        self, field: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Heights (m) of the triangles at horizontal positions [R] (m), and their slopes along x
        and along y. (Coordinates in arrays of their own compile to faster loops on a CPU.)"""
        x, y = self._on_grid(x), self._on_grid(y)
        column, row = jnp.floor(x), jnp.floor(y)
        x, y = x - column, y - row
        x0, x1, y0, y1 = (self._mirrored(i) for i in (column, column + 1, row, row + 1))
        heights, upper = jnp.asarray(self.heights), y > x
        first, last = heights[field, y0, x0], heights[field, y1, x1]
        other = heights[field, jnp.where(upper, y1, y0), jnp.where(upper, x0, x1)]
        before, after = other - first, last - other
        dx, dy = jnp.where(upper, after, before), jnp.where(upper, before, after)
        return first + dx * x + dy * y, dx / self.spacing, dy / self.spacing


def _cubic(t: jax.Array) -> jax.Array:
    """[..., 4] Catmull-Rom weights of the grid points at -1, 0, 1, 2 for a place t in [0, 1]."""
    return jnp.stack([1.0 + 0 * t, t, t**2, t**3], -1) @ jnp.asarray(_CATMULL_ROM)


def _cubic_slope(t: jax.Array) -> jax.Array:
    """Derivatives of `_cubic`."""
    return jnp.stack([0 * t, 1.0 + 0 * t, 2 * t, 3 * t**2], -1) @ jnp.asarray(_CATMULL_ROM)


_CATMULL_ROM = np.array(
    [[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], np.float32
) / np.float32(2)


# -- generators ----------------------------------------------------------------------------


@functools.lru_cache
def make_fields(kind: str, height: float, count: int, seed: int) -> HeightFields:
    """`count` different fields of a kind.

    Args:
      kind: one of `KINDS`.
      height: height of the terrain (m): from the lowest to the highest point, except for "ramp",
        where it is the rise within 1 m, and "steps", which are a tenth of it high.
      count: number of fields F.
      seed: seed of their random numbers.
    """
    with jax.ensure_compile_time_eval():
        make = jax.jit(_GENERATORS[kind])
        keys = jax.random.split(jax.random.key(seed), count)
        return HeightFields(np.stack([height * np.asarray(make(key)) for key in keys]))


def _grid() -> tuple[jax.Array, jax.Array]:
    """x and y [P, P] of the grid points (m)."""
    line = SPACING * (jnp.arange(POINTS) - (POINTS - 1) / 2)
    return jnp.meshgrid(line, line)


def _along(key: jax.Array) -> jax.Array:
    """[P, P] the grid points' positions along a random horizontal direction (m)."""
    x, y = _grid()
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    return x * jnp.cos(angle) + y * jnp.sin(angle)


def _normalized(heights: jax.Array) -> jax.Array:
    """The heights moved and scaled to the range 0 to 1."""
    low, high = heights.min(), heights.max()
    return (heights - low) / (high - low)


def _flat(key: jax.Array) -> jax.Array:
    return jnp.zeros((POINTS, POINTS))


def _simplex(key: jax.Array) -> jax.Array:
    """Rolling ground: several octaves of simplex noise."""
    return _normalized(_octaves(key))


def _ridges(key: jax.Array) -> jax.Array:
    """Sharp crests between hollows, where simplex noise changes its sign."""
    return _normalized(-jnp.abs(_octaves(key)))


def _ramp(key: jax.Array) -> jax.Array:
    """A plane that rises by 1 in a metre, in a random direction."""
    return _along(key)


def _hills(key: jax.Array) -> jax.Array:
    """Round hills on a plain, 0.6 to 1.2 m wide."""
    x, y = _grid()
    key_place, key_size = jax.random.split(key)
    places = jax.random.uniform(key_place, (60, 2), minval=-SIDE / 2, maxval=SIDE / 2)
    radii = jax.random.uniform(key_size, (60,), minval=0.3, maxval=0.6)

    def add(heights: jax.Array, hill: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, radius = hill
        away = ((x - place[0]) ** 2 + (y - place[1]) ** 2) / radius**2
        return jnp.maximum(heights, radius / 0.6 * jnp.exp(-2 * away)), None

    return _normalized(jax.lax.scan(add, jnp.zeros_like(x), (places, radii))[0])


def _steps(key: jax.Array) -> jax.Array:
    """Terraces of 0.75 m that go up and down at random by 0.1."""
    key_turn, key_moves = jax.random.split(key)
    moves = jax.random.rademacher(key_moves, (32,), jnp.float32)
    levels = 0.1 * jnp.concatenate([jnp.zeros(1), jnp.cumsum(moves)])
    return levels[jnp.floor((_along(key_turn) + 0.75 * SIDE) / 0.75).astype(jnp.int32)]


def _sinusoid(key: jax.Array) -> jax.Array:
    """Waves of 1.5 m across each other."""
    key_turn, key_phase = jax.random.split(key)
    x, y = _grid()
    angle = jax.random.uniform(key_turn, maxval=2 * jnp.pi)
    phase = jax.random.uniform(key_phase, (2,), maxval=2 * jnp.pi)
    c, s = 2 * jnp.pi / 1.5 * jnp.cos(angle), 2 * jnp.pi / 1.5 * jnp.sin(angle)
    waves = jnp.sin(c * x + s * y + phase[0]) + jnp.sin(c * y - s * x + phase[1])
    return _normalized(waves)


def _bowl(key: jax.Array) -> jax.Array:
    """Round hollows side by side, 2 m from one to the next."""
    x, y = _grid()
    shift = jax.random.uniform(key, (2,), maxval=2.0)
    x, y = (jnp.mod(value + move, 2.0) - 1.0 for value, move in zip((x, y), shift, strict=True))
    return (x**2 + y**2) / 2


def _octaves(key: jax.Array) -> jax.Array:
    """[P, P] simplex noise: of every octave, a random plane through noise in four dimensions.

    This is what the original's terrain is (its noise repeats after 1024 units, for which its
    library rolls the plane up in four dimensions); noise in two dimensions is 1.5 times as steep.
    """
    cells = jnp.arange(POINTS) / SCALE
    x, y = jnp.meshgrid(cells, cells)

    def octave(key: jax.Array, frequency: jax.Array, share: jax.Array) -> jax.Array:
        key_noise, key_turn, key_origin = jax.random.split(key, 3)
        a, b = frequency * jnp.exp(1j * jax.random.uniform(key_turn, (2,), maxval=2 * jnp.pi))
        plane = [x * a.real, x * a.imag, y * b.real, y * b.imag]
        origin = jax.random.uniform(key_origin, (4,), maxval=100.0)
        places = [start + along for start, along in zip(origin, plane, strict=True)]
        return share * simplex_noise(key_noise, places)

    powers = jnp.arange(OCTAVES)
    facts = jax.random.split(key, OCTAVES), LACUNARITY**powers, PERSISTENCE**powers
    return jax.lax.map(lambda each: octave(*each), facts).sum(0)


def simplex_noise(key: jax.Array, points: list[jax.Array]) -> jax.Array:
    """Simplex noise in D dimensions, with gradients in random directions.

    Source: K. Perlin, "Noise hardware" (2001); S. Gustavson, "Simplex noise demystified" (2005).

    Args:
      key: PRNG key.
      points: the D coordinates [...] of places; the noise changes over distances of about 1.

    Returns:
      [...] values around 0.
    """
    dimension = len(points)
    skew = ((dimension + 1) ** 0.5 - 1) / dimension
    unskew = (1 - (dimension + 1) ** -0.5) / dimension
    key_gradient, key_hash = jax.random.split(key)
    gradients = jax.random.normal(key_gradient, (dimension, 256))
    gradients = gradients / jnp.linalg.norm(gradients, axis=0)
    factors = 2 * jax.random.bits(key_hash, (dimension,), jnp.uint32) + 1

    cell = [jnp.floor(x + skew * sum(points)) for x in points]
    local = [x - c + unskew * sum(cell) for x, c in zip(points, cell, strict=True)]
    # Each coordinate's place in the order of all, from 0 for the smallest.
    rank = [
        sum((x > y) | ((x == y) & (i > j)) for j, y in enumerate(local) if i != j)
        for i, x in enumerate(local)
    ]
    total = jnp.zeros_like(points[0])
    for number in range(dimension + 1):
        corner = [(place >= dimension - number).astype(total.dtype) for place in rank]
        nodes = [(c + move).astype(jnp.int32) for c, move in zip(cell, corner, strict=True)]
        hashed = sum(n.astype(jnp.uint32) * f for n, f in zip(nodes, factors, strict=True))
        index = ((hashed ^ (hashed >> 15)) * jnp.uint32(0x2C1B3C6D)) >> 24
        away = [x - move + number * unskew for x, move in zip(local, corner, strict=True)]
        fall = jnp.maximum(0.6 - sum(x**2 for x in away), 0.0) ** 4
        total += fall * sum(g[index] * x for g, x in zip(gradients, away, strict=True))
    return total


_GENERATORS = {
    "flat": _flat,
    "simplex": _simplex,
    "ramp": _ramp,
    "hills": _hills,
    "steps": _steps,
    "sinusoid": _sinusoid,
    "bowl": _bowl,
    "ridges": _ridges,
}
