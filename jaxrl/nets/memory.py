"""Memory of networks: a gated recurrent unit over sequences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


class Recurrence(nn.Module):
    """A gated recurrent unit (Cho et al. 2014), whose memory is forgotten where episodes begin.

    Attributes:
      size: H.
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
        """A sequence.

        Args:
          x: [T, N, F] features.
          memory: [N, H] before the first step.
          reset: [T, N] bool, where the memory is zero before the step.

        Returns:
          [T, N, H] the memory after each step, and [N, H] after the last.
        """
        memory, after = self._steps(memory, (x, reset))
        return after, memory
