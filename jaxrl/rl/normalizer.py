"""Running mean and variance of a stream of batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class RunningStatistics:
    """Statistics of all samples seen, per component.

    Attributes:
      count: scalar, number of samples.
      mean: tree as one sample.
      variance: tree as one sample; population variance (divided by the count).
    """

    count: jax.Array
    mean: Any
    variance: Any


def init(sample: Any) -> RunningStatistics:
    """Statistics that leave samples as they are: mean 0, variance 1, count 0.

    Args:
      sample: tree of arrays or shapes of one sample.
    """
    return RunningStatistics(
        count=jnp.zeros(()),
        mean=jax.tree.map(lambda x: jnp.zeros(x.shape), sample),
        variance=jax.tree.map(lambda x: jnp.ones(x.shape), sample),
    )


def update(statistics: RunningStatistics, batch: Any) -> RunningStatistics:
    """Adds a batch with any leading axes (Chan et al. 1979, pairwise update).

    Args:
      statistics: statistics of samples of shape S.
      batch: tree of [..., *S].
    """
    first, mean0 = jax.tree.leaves(batch)[0], jax.tree.leaves(statistics.mean)[0]
    added = first.size // mean0.size
    total = statistics.count + added
    share = added / total

    def merge(mean, variance, x):
        x = x.reshape(-1, *mean.shape)
        delta = x.mean(0) - mean
        merged = (1 - share) * variance + share * x.var(0)
        return mean + share * delta, merged + share * (1 - share) * delta**2

    merged = jax.tree.map(merge, statistics.mean, statistics.variance, batch)
    mean, variance = jax.tree.transpose(
        jax.tree.structure(statistics.mean), jax.tree.structure((0, 0)), merged
    )
    return RunningStatistics(count=total, mean=mean, variance=variance)


def normalize(
    statistics: RunningStatistics, x: Any, *, clip: float = 10.0, epsilon: float = 1e-6
) -> Any:
    """(x - mean) / std, clipped; x is a tree of [..., *S]."""

    def scale(x, mean, variance):
        return jnp.clip((x - mean) / jnp.sqrt(variance + epsilon), -clip, clip)

    return jax.tree.map(scale, x, statistics.mean, statistics.variance)
