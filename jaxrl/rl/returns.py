"""Discounted returns over n steps, and the scale of returns."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.vector import LARGEST
from jaxrl.rl import normalizer
from jaxrl.rl.normalizer import MAX_DEVIATIONS, RunningStatistics


def n_step_return(
    reward: jax.Array, terminated: jax.Array, truncated: jax.Array, *, gamma: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Discounted sums over windows of n steps, cut at terminations and time limits.

    R = r_0 + gamma r_1 + ... + gamma^(m-1) r_(m-1), with m = n, or the number of steps up to and
    including the first episode end.

    Source: Sutton & Barto 2018, "Reinforcement learning", eq. 7.1.

    Args:
      reward: [B, n].
      terminated, truncated: [B, n] bool.
      gamma: discount factor.

    Returns:
      [B] R; [B] gamma^m, or 0 if step m - 1 terminated; [B] int32 m - 1, the last step's index.
    """
    chex.assert_equal_shape([reward, terminated, truncated])
    chex.assert_rank(reward, 2)
    ended = jnp.cumsum(terminated | truncated, axis=1)
    alive = jnp.pad(ended[:, :-1] == 0, ((0, 0), (1, 0)), constant_values=True)
    last = alive.sum(1) - 1
    powers = jnp.asarray(gamma) ** jnp.arange(reward.shape[1])
    last_terminated = jnp.take_along_axis(terminated, last[:, None], axis=1)[:, 0]
    discount = jnp.where(last_terminated, 0.0, jnp.asarray(gamma) ** (last + 1))
    return (reward * alive * powers).sum(1), discount, last


class ReturnScale(struct.PyTreeNode):
    """Statistics of the running discounted return, by which rewards are scaled.

    Attributes:
      running: [N] discounted sum of the episode's past rewards.
      statistics: mean and variance of all values of `running`.
    """

    running: jax.Array
    statistics: RunningStatistics

    @classmethod
    def init(cls, num_envs: int) -> ReturnScale:
        return cls(running=jnp.zeros(num_envs), statistics=normalizer.init(jnp.zeros(())))

    def update(
        self, reward: jax.Array, done: jax.Array, *, gamma: jax.Array | float
    ) -> ReturnScale:
        """Returns the statistics after T more control steps.

        Args:
          reward: [T, N].
          done: [T, N] bool, whether the episode ended.
          gamma: discount factor.
        """

        def forward(running, step):
            reward, done = step
            reward = jnp.where(jnp.abs(reward) < LARGEST, reward, 0.0)  # else clipped
            running = running * gamma + reward
            return jnp.where(done, 0.0, running), running

        running, returns = jax.lax.scan(forward, self.running, (reward, done))
        return ReturnScale(running, normalizer.update(self.statistics, returns))

    def __call__(self, reward: jax.Array) -> jax.Array:
        """Returns rewards / std of the return, clipped to [-MAX_DEVIATIONS, MAX_DEVIATIONS]."""
        scaled = reward / jnp.sqrt(self.statistics.variance + 1e-8)
        return jnp.clip(scaled, -MAX_DEVIATIONS, MAX_DEVIATIONS)
