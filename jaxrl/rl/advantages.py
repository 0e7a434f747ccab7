"""Advantage estimation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def generalized_advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    *,
    gamma: jax.Array | float,
    gae_lambda: jax.Array | float,
) -> jax.Array:
    """Generalised advantage estimation with terminations and time limits.

    delta_t = r_t + gamma (1 - terminated_t) v'_t - v_t
    A_t = delta_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1}

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized
    advantage estimation", eq. 16, cut at episode ends; after a time limit the value of
    the true final observation replaces the later rewards (Pardo et al. 2018, eq. 6).

    Args:
      reward: [T, N].
      value: [T, N], of the observation acted on.
      next_value: [T, N], of the observation that the action led to; at an episode's end
        that is the final observation, not the next episode's first.
      terminated, truncated: [T, N] bool.
      gamma: discount factor.
      gae_lambda: trace decay.

    Returns:
      [T, N] advantages; returns are advantages + value.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, truncated])
    chex.assert_rank(reward, 2)
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = gamma * gae_lambda * (1.0 - (terminated | truncated))

    def back(advantage, step):
        delta_t, decay_t = step
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(reward[0]), (delta, decay), reverse=True)[1]
