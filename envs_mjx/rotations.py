"""Rotations as w-first unit quaternions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def tilted(
    yaw: jax.Array, tilt: jax.Array | float = 0.0, about: jax.Array | float = 0.0
) -> jax.Array:
    """[..., 4] quaternions: tilt about the horizontal axis at angle `about`, then yaw (rad)."""
    w, s = jnp.cos(tilt / 2), jnp.sin(tilt / 2)
    x, y = s * jnp.cos(about), s * jnp.sin(about)
    cy, sy = jnp.cos(yaw / 2), jnp.sin(yaw / 2)
    return jnp.stack([cy * w, cy * x - sy * y, cy * y + sy * x, sy * w], axis=-1)
