"""Memory of networks: a gated recurrent unit over sequences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


class Recurrence(nn.Module):
    """A gated recurrent unit (Cho et al. 2014); its memory is reset where an episode begins.

    Attributes:
      size: size H of the memory.
    """

    size: int

    @functools.partial(
        nn.scan, variable_broadcast="params", split_rngs={"params": False}, in_axes=0, out_axes=0
    )
    @nn.compact
    def _steps(self, memory: jax.Array, step: tuple[jax.Array, jax.Array]):
        x, reset = step
        memory = jnp.where(reset[..., None], 0.0, memory)
        return nn.GRUCell(self.size, name="cell")(memory, x)

    def __call__(
        self, x: jax.Array, memory: jax.Array, reset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the unit over a sequence.

        Args:
          x: [T, N, F] features.
          memory: [N, H] memory before the first step.
          reset: [T, N] bool, steps before which the memory is set to zero.

        Returns:
          the memory after each step [T, N, H], and after the last step [N, H].
        """
        memory, after = self._steps(memory, (x, reset))
        return after, memory
