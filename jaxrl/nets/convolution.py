"""Convolutions that are fast inside of compiled loops, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from jaxrl import platform

SIZE, STRIDE = 3, 2


class Conv(nn.Module):
    """A 3 x 3 convolution with stride 2 and padding, with the parameters of `flax.linen.Conv`.

    XLA's own convolution takes 15 to 20 times as long to differentiate inside of a loop on a CPU as
    outside (github.com/jax-ml/jax/issues/12868), and training is a loop. There, the nine pixels
    under the kernel are laid side by side, and multiplied as a matrix.

    Attributes:
      features: number of output channels F.
      kernel_init: initialiser of the kernel [3, 3, C, F].
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / 2, W / 2, F], rounded up."""
        shape = (SIZE, SIZE, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if platform.target() == "cpu":
            return under_kernel(x) @ kernel.reshape(-1, self.features) + bias
        dimensions = ("NHWC", "HWIO", "NHWC")
        strides = (STRIDE, STRIDE)
        return bias + jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=dimensions
        )


def under_kernel(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / 2, W / 2, 9 C], the pixels under the kernel at each of its places."""
    rows, columns = (-(-size // STRIDE) for size in x.shape[1:3])
    reach_y, reach_x = STRIDE * (rows - 1) + SIZE, STRIDE * (columns - 1) + SIZE
    margins = [max(reach_y - x.shape[1], 0), max(reach_x - x.shape[2], 0)]
    x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)))
    ends = STRIDE * (rows - 1) + 1, STRIDE * (columns - 1) + 1
    parts = [
        x[:, i : i + ends[0] : STRIDE, j : j + ends[1] : STRIDE]
        for i in range(SIZE)
        for j in range(SIZE)
    ]
    return jnp.concatenate(parts, axis=-1)
