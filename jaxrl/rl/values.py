"""Action values as outputs of critics: plain numbers, or categorical distributions.

Both classes have the same three methods: the value that a head (an output of a critic) stands
for, the target of a head, and the loss between head and target. The learning code is the same.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


class ScalarValue:
    """A value as one number, with the squared error as loss."""

    outputs = 1

    def mean(self, head: jax.Array) -> jax.Array:
        """Value of a head: [..., 1] -> [...]."""
        return head[..., 0]

    def target(self, head: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        """Target r + discount q: [..., 1], [...], [...] -> [..., 1]."""
        return (reward + discount * head[..., 0])[..., None]

    def loss(self, head: jax.Array, target: jax.Array) -> jax.Array:
        """Half the squared error: [..., 1], [..., 1] -> [...]."""
        return 0.5 * jnp.square(head - target)[..., 0]


class CategoricalValue:
    """A value as a distribution over evenly spaced returns, with the cross-entropy as loss.

    Source: Bellemare et al. 2017, "A distributional perspective on reinforcement
    learning", algorithm 1.

    Args:
      low, high: smallest and largest return.
      atoms: number of returns (atoms) Z.
    """

    def __init__(self, low: float, high: float, atoms: int):
        self.outputs = atoms
        self.low, self.step = low, (high - low) / (atoms - 1)
        self.support = jnp.linspace(low, high, atoms)

    def mean(self, head: jax.Array) -> jax.Array:
        """Value of a head: [..., Z] logits -> [...]."""
        return jax.nn.softmax(head) @ self.support

    def target(self, head: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        """Target, the distribution of r + discount q over the atoms: [..., Z] logits, [...], [...]
        -> [..., Z] probabilities."""
        # Computed in steps from the first atom: differences of large returns would lose precision.
        first = (reward - (1.0 - discount) * self.low) / self.step
        places = first[..., None] + discount[..., None] * jnp.arange(self.outputs)
        return project(places, jax.nn.softmax(head))

    def loss(self, head: jax.Array, target: jax.Array) -> jax.Array:
        """Cross-entropy: [..., Z] logits, [..., Z] probabilities -> [...]."""
        return -(target * jax.nn.log_softmax(head)).sum(-1)


def project(places: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Projects a distribution onto evenly spaced atoms.

    The probability of each place is split between its two neighbouring atoms, with the larger
    share for the nearer atom; a place beyond the ends gives all of it to the end atom. The
    triangular kernel computes the same as the usual floor and ceiling, without a scatter.

    Source: Bellemare et al. 2017, eq. 7.

    Args:
      places: [..., Z] places of the probabilities, in steps from the first atom.
      probabilities: [..., Z] probabilities of these places.
    """
    chex.assert_equal_shape([places, probabilities])
    atoms = places.shape[-1]
    places = jnp.clip(places, 0.0, atoms - 1.0)
    share = jnp.maximum(1.0 - jnp.abs(places[..., None, :] - jnp.arange(atoms)[:, None]), 0.0)
    return (share * probabilities[..., None, :]).sum(-1)
