"""Action distributions: Gaussians, plain, correlated or squashed by tanh, and a categorical one.

All methods use the raw sample `raw` [..., A], before clipping or squashing: near the bounds, a
log-probability that is computed from the squashed action would lose its precision. For a
Gaussian, log-probabilities and entropies are summed over the action's components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

_LOG_2PI = math.log(2 * math.pi)


class Gaussian(struct.PyTreeNode):
    """Parameters of a diagonal Gaussian: mean and log standard deviation, [..., A]."""

    mean: jax.Array
    log_std: jax.Array


class Normal:
    """Plain Gaussian; its samples are clipped to [-1, 1] to become the task's actions."""

    @staticmethod
    def sample(g: Gaussian, noise: jax.Array) -> jax.Array:
        """Raw sample [..., A] from standard normal noise [..., A]."""
        return g.mean + jnp.exp(g.log_std) * noise

    @staticmethod
    def action(raw: jax.Array) -> jax.Array:
        """The task's action in [-1, 1]."""
        return jnp.clip(raw, -1.0, 1.0)

    @staticmethod
    def log_prob(g: Gaussian, raw: jax.Array) -> jax.Array:
        """[...] log-density of the raw sample."""
        return _log_density(_standardized(g, raw), g)

    @staticmethod
    def entropy(g: Gaussian, key: jax.Array) -> jax.Array:
        """[...] exact entropy (the key is not used)."""
        return (jnp.broadcast_to(g.log_std, g.mean.shape) + 0.5 + 0.5 * _LOG_2PI).sum(-1)


def _standardized(g: Gaussian, raw: jax.Array) -> jax.Array:
    """The noise [..., A] that belongs to a raw sample."""
    return (raw - g.mean) * jnp.exp(-g.log_std)


def _log_density(z: jax.Array, g: Gaussian) -> jax.Array:
    """[...] log-density of the raw sample that belongs to independent noise z [..., A]."""
    return (-0.5 * z**2 - g.log_std - 0.5 * _LOG_2PI).sum(-1)


class Together:
    """Gaussian with correlated components: things that are alike explore alike.

    The action is a sequence of blocks, each with the same components of K things one after the
    other. The noise of a component has the correlation rho between any two things of a block.

    Args:
      blocks: (K, number of components of one thing) of each block.
      rho: correlation, 0 <= rho < 1.
    """

    def __init__(self, blocks: Sequence[tuple[int, int]], rho: float):
        self.blocks, self.rho = tuple(blocks), rho

    action = staticmethod(Normal.action)

    def sample(self, g: Gaussian, noise: jax.Array) -> jax.Array:
        """Raw sample [..., A] from standard normal noise [..., A]."""
        return Normal.sample(g, self._scaled(noise, 1))

    def log_prob(self, g: Gaussian, raw: jax.Array) -> jax.Array:
        """[...] log-density of the raw sample."""
        return _log_density(self._scaled(_standardized(g, raw), -1), g) - self._log_volume()

    def entropy(self, g: Gaussian, key: jax.Array) -> jax.Array:
        """[...] exact entropy (the key is not used)."""
        return Normal.entropy(g, key) + self._log_volume()

    def _scaled(self, z: jax.Array, power: int) -> jax.Array:
        """z times the symmetric square root of the correlation matrix, or its inverse (-1): the
        means over the things and the deviations from them are its eigenspaces."""
        start, parts = 0, []
        for count, size in self.blocks:
            rows = z[..., start : start + count * size].reshape(*z.shape[:-1], count, size)
            mean = rows.mean(-2, keepdims=True)
            own, common = (math.sqrt(x) ** power for x in self._eigenvalues(count))
            parts.append((own * (rows - mean) + common * mean).reshape(*z.shape[:-1], -1))
            start += count * size
        return jnp.concatenate(parts, axis=-1)

    def _eigenvalues(self, count: int) -> tuple[float, float]:
        return 1.0 - self.rho, 1.0 + (count - 1) * self.rho

    def _log_volume(self) -> float:
        """Half the logarithm of the correlation matrix' determinant."""
        total = 0.0
        for count, size in self.blocks:
            own, common = map(math.log, self._eigenvalues(count))
            total += 0.5 * size * ((count - 1) * own + common)
        return total


class TanhNormal(Normal):
    """Gaussian squashed by tanh (Haarnoja et al. 2018, appendix C)."""

    @staticmethod
    def action(raw: jax.Array) -> jax.Array:
        return jnp.tanh(raw)

    @staticmethod
    def log_prob(g: Gaussian, raw: jax.Array) -> jax.Array:
        """[...] log-density of tanh(raw)."""
        return Normal.log_prob(g, raw) - _log_tanh_slope(raw).sum(-1)

    @staticmethod
    def entropy(g: Gaussian, key: jax.Array) -> jax.Array:
        """[...] differentiable estimate from one sample; there is no closed form."""
        noise = jax.random.normal(key, g.mean.shape)
        return Normal.entropy(g, key) + _log_tanh_slope(Normal.sample(g, noise)).sum(-1)


def _log_tanh_slope(x: jax.Array) -> jax.Array:
    """log(1 - tanh(x)^2), computed without cancellation."""
    return 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))


class Categorical:
    """Categorical distribution over A choices.

    The field `mean` of the `Gaussian` holds the logits. A raw sample is the choice as a one-hot
    vector; the task's action is the index of the choice.
    """

    @staticmethod
    def sample(g: Gaussian, noise: jax.Array) -> jax.Array:
        """One-hot [..., A] (the Gumbel-max trick), from standard normal noise [..., A]."""
        uniform = jnp.clip(jax.scipy.stats.norm.cdf(noise), 1e-6, 1.0 - 1e-6)
        gumbel = -jnp.log(-jnp.log(uniform))
        return jax.nn.one_hot(jnp.argmax(g.mean + gumbel, -1), g.mean.shape[-1])

    @staticmethod
    def action(raw: jax.Array) -> jax.Array:
        """[...] int32 index of the choice; given logits, of the most likely choice."""
        return jnp.argmax(raw, -1)

    @staticmethod
    def log_prob(g: Gaussian, raw: jax.Array) -> jax.Array:
        """[...] log-probability of the choice."""
        return (raw * jax.nn.log_softmax(g.mean)).sum(-1)

    @staticmethod
    def entropy(g: Gaussian, key: jax.Array) -> jax.Array:
        """[...] exact entropy (the key is not used)."""
        log = jax.nn.log_softmax(g.mean)
        return -(jnp.exp(log) * log).sum(-1)


DISTRIBUTIONS: dict[str, Any] = {
    "normal": Normal,
    "tanh_normal": TanhNormal,
    "categorical": Categorical,  # for discrete actions
}
