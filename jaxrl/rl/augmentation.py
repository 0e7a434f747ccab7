"""Random shifts of images, which keep a replay's few images from being learned by heart.

Source: Yarats et al. 2021, "Image augmentation is all you need: regularizing deep reinforcement
learning from pixels", section 3.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Shifts each image by its own random number of whole pixels along both axes.

    Args:
      key: PRNG key.
      images: [B, H, W, C].
      pixels: largest shift; pixels that come in from outside repeat those of the edge.
    """
    sides = ((pixels, pixels), (pixels, pixels), (0, 0))
    starts = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pixels + 1)

    def one(image: jax.Array, start: jax.Array) -> jax.Array:
        padded = jnp.pad(image, sides, mode="edge")
        return jax.lax.dynamic_slice(padded, (*start, 0), image.shape)

    return jax.vmap(one)(images, starts)
