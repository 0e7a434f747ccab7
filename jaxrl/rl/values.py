"""Action values as critics output them: plain numbers, or categorical distributions.

Both forms answer the same three questions (what a head means, what a target is, how far
the head is from it), so that learning code has one path.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


class ScalarValue:
    """One number, squared error."""

    outputs = 1

    def mean(self, head: jax.Array) -> jax.Array:
        """[..., 1] -> [...]."""
        return head[..., 0]

    def target(self, head: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        """[..., 1], [...], [...] -> [..., 1] of r + discount q."""
        return (reward + discount * head[..., 0])[..., None]

    def loss(self, head: jax.Array, target: jax.Array) -> jax.Array:
        """[..., 1], [..., 1] -> [...] half the squared error."""
        return 0.5 * jnp.square(head - target)[..., 0]


class CategoricalValue:
    """A distribution over evenly spaced returns, cross-entropy.

    Source: Bellemare et al. 2017, "A distributional perspective on reinforcement
    learning", algorithm 1.

    Args:
      low, high: least and greatest return.
      atoms: number of returns Z.
    """

    def __init__(self, low: float, high: float, atoms: int):
        self.outputs = atoms
        self.low, self.step = low, (high - low) / (atoms - 1)
        self.support = jnp.linspace(low, high, atoms)

    def mean(self, head: jax.Array) -> jax.Array:
        """[..., Z] logits -> [...]."""
        return jax.nn.softmax(head) @ self.support

    def target(self, head: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        """[..., Z] logits, [...], [...] -> [..., Z] probabilities of r + discount q."""
        # In steps above the least atom: of returns far from zero the difference would be lost.
        first = (reward - (1.0 - discount) * self.low) / self.step
        places = first[..., None] + discount[..., None] * jnp.arange(self.outputs)
        return project(places, jax.nn.softmax(head))

    def loss(self, head: jax.Array, target: jax.Array) -> jax.Array:
        """[..., Z] logits, [..., Z] probabilities -> [...] cross-entropy."""
        return -(target * jax.nn.log_softmax(head)).sum(-1)


def project(places: jax.Array, probabilities: jax.Array) -> jax.Array:
    """A distribution moved onto evenly spaced atoms.

    Each place shares its probability between its two neighbours, the nearer the more;
    beyond the ends all of it goes to the end. The triangular kernel says the same as the
    usual loop over floor and ceiling, without a scatter.

    Source: Bellemare et al. 2017, eq. 7.

    Args:
      places: [..., Z] where the probability lies, in steps from the first atom.
      probabilities: [..., Z] of these places.
    """
    chex.assert_equal_shape([places, probabilities])
    atoms = places.shape[-1]
    places = jnp.clip(places, 0.0, atoms - 1.0)
    share = jnp.maximum(1.0 - jnp.abs(places[..., None, :] - jnp.arange(atoms)[:, None]), 0.0)
    return (share * probabilities[..., None, :]).sum(-1)
