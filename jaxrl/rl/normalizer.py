"""Running mean and variance of a stream of batches, robust to a few extreme values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import devices
from jaxrl.envs.vector import LARGEST

# Values are clipped to about this many standard deviations from the mean. Statistics that are far
# off still become right again after a few batches.
MAX_DEVIATIONS = 20.0
# Number of batches that the statistics remember: the newest batch has at least the weight
# 1 / MEMORY. In float32 a smaller weight would round to nothing, and only rounding errors would
# add up.
MEMORY = 1e5


class RunningStatistics(struct.PyTreeNode):
    """Statistics of all samples so far, per component; after `MEMORY` batches, old ones fade out.

    Attributes:
      count: scalar, number of samples that the statistics remember.
      mean: tree with the structure of one sample.
      variance: tree with the structure of one sample; population variance (divided by the count).
    """

    count: jax.Array
    mean: Any
    variance: Any


def init(sample: Any) -> RunningStatistics:
    """Returns initial statistics, which leave samples unchanged: mean 0, variance 1, count 0.

    Args:
      sample: tree of arrays or shapes of one sample.
    """
    return RunningStatistics(
        count=jnp.zeros(()),
        mean=jax.tree.map(lambda x: jnp.zeros(x.shape), sample),
        variance=jax.tree.map(lambda x: jnp.ones(x.shape), sample),
    )


def update(statistics: RunningStatistics, batch: Any) -> RunningStatistics:
    """Returns the statistics with a batch added (Chan et al. 1979, pairwise update).

    Args:
      statistics: statistics of samples of shape S.
      batch: tree of [..., *S] with any leading axes; finite.
    """
    if not jax.tree.leaves(batch):
        return statistics
    first, mean0 = jax.tree.leaves(batch)[0], jax.tree.leaves(statistics.mean)[0]
    added = devices.count() * (first.size // mean0.size)
    total = jnp.minimum(statistics.count + added, added * MEMORY)
    share = added / total

    def merge(mean, variance, x):
        x = _clipped(x.reshape(-1, *mean.shape), mean, variance, statistics.count)
        delta = devices.mean(x.mean(0)) - mean
        variance = jnp.where(statistics.count > 0, variance, 0.0)  # the initial 1 is not measured
        change = devices.variance(x, axis=0) + (1 - share) * delta**2 - variance
        return mean + share * delta, variance + share * change

    merged = jax.tree.map(merge, statistics.mean, statistics.variance, batch)
    mean, variance = jax.tree.transpose(
        jax.tree.structure(statistics.mean), jax.tree.structure((0, 0)), merged
    )
    return RunningStatistics(count=total, mean=mean, variance=variance)


def _clipped(x: jax.Array, mean: jax.Array, variance: jax.Array, count: jax.Array) -> jax.Array:
    """Clips samples [B, *S] to a range around the mean; those of the first batch, for which
    there are no statistics yet, to a range around zero. Values that the worlds clipped already
    (to `LARGEST`) carry no information: they are replaced by the middle of the range.

    The spread of the first batch is the fourth power of the mean of its fourth roots, to which
    one value of 1e6 among thousands adds next to nothing. A component that was constant so far
    can change by at most 1 in one batch, and by about twenty times more in each following batch.
    """
    span = devices.mean(jnp.sqrt(jnp.sqrt(jnp.abs(x))).mean(0)) ** 4
    spread = jnp.where(count > 0, jnp.sqrt(variance), span)
    middle = jnp.where(count > 0, mean, 0.0)
    largest = MAX_DEVIATIONS * spread + 1.0
    return jnp.where(jnp.abs(x) < LARGEST, jnp.clip(x, middle - largest, middle + largest), middle)


def normalize(
    statistics: RunningStatistics, x: Any, *, clip: float = 10.0, epsilon: float = 1e-6
) -> Any:
    """Returns (x - mean) / std, clipped to [-clip, clip]; x is a tree of [..., *S]."""

    def scale(x, mean, variance):
        return jnp.clip((x - mean) / jnp.sqrt(variance + epsilon), -clip, clip)

    return jax.tree.map(scale, x, statistics.mean, statistics.variance)
