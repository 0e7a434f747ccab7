"""Running mean and variance of a stream of batches, which a few absurd values cannot blind."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.vector import LARGEST

# Values further than this many standard deviations from the mean count as if they were there.
# Statistics that are wrong by far are right again after a few batches all the same.
MOST_DEVIATIONS = 20.0
# Batches that the statistics remember: the newest has at least a share of one in so many. In
# float32 a smaller share would round to nothing, and a sum of roundings would take its place.
MEMORY = 1e5


class RunningStatistics(struct.PyTreeNode):
    """Statistics of all samples seen, per component; from `MEMORY` batches on older ones fade.

    Attributes:
      count: scalar, number of samples remembered.
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
      batch: tree of [..., *S], finite.
    """
    if not jax.tree.leaves(batch):
        return statistics
    first, mean0 = jax.tree.leaves(batch)[0], jax.tree.leaves(statistics.mean)[0]
    added = first.size // mean0.size
    total = jnp.minimum(statistics.count + added, added * MEMORY)
    share = added / total

    def merge(mean, variance, x):
        x = _within(x.reshape(-1, *mean.shape), mean, variance, statistics.count)
        delta = x.mean(0) - mean
        variance = jnp.where(statistics.count > 0, variance, 0.0)  # 1 at first is no sample
        change = x.var(0) + (1 - share) * delta**2 - variance
        return mean + share * delta, variance + share * change

    merged = jax.tree.map(merge, statistics.mean, statistics.variance, batch)
    mean, variance = jax.tree.transpose(
        jax.tree.structure(statistics.mean), jax.tree.structure((0, 0)), merged
    )
    return RunningStatistics(count=total, mean=mean, variance=variance)


def _within(x: jax.Array, mean: jax.Array, variance: jax.Array, count: jax.Array) -> jax.Array:
    """Samples [B, *S] cut to a range about the mean; the first batch, before which nothing is
    known, to a range about zero. What the worlds had to cut already says nothing: it counts as
    the middle of that range.

    What the first batch spans is told by the mean of its fourth roots, to which one value of 1e6
    among thousands adds next to nothing. A component that never moved may begin to, by one unit
    in the first batch, and then by twenty times more in each.
    """
    span = jnp.sqrt(jnp.sqrt(jnp.abs(x))).mean(0) ** 4
    spread = jnp.where(count > 0, jnp.sqrt(variance), span)
    middle = jnp.where(count > 0, mean, 0.0)
    most = MOST_DEVIATIONS * spread + 1.0
    return jnp.where(jnp.abs(x) < LARGEST, jnp.clip(x, middle - most, middle + most), middle)


def normalize(
    statistics: RunningStatistics, x: Any, *, clip: float = 10.0, epsilon: float = 1e-6
) -> Any:
    """(x - mean) / std, clipped; x is a tree of [..., *S]."""

    def scale(x, mean, variance):
        return jnp.clip((x - mean) / jnp.sqrt(variance + epsilon), -clip, clip)

    return jax.tree.map(scale, x, statistics.mean, statistics.variance)
