"""Loss functions."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def clipped_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, clip_range: jax.Array | float
) -> jax.Array:
    """[B] PPO policy loss: -min(r A, clip(r, 1 - c, 1 + c) A).

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7.

    Args:
      log_ratio: [B] log pi_new - log pi_old.
      advantage: [B].
      clip_range: c.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: jax.Array,
    target: jax.Array,
    old_value: jax.Array,
    clip_range: jax.Array | float | None,
) -> jax.Array:
    """[B] squared error of the value; with a clip range, the maximum of this error and the
    error of the clipped value, which is at most `clip_range` away from the old value."""
    chex.assert_equal_shape([value, target, old_value])
    error = jnp.square(value - target)
    if clip_range is None:
        return error
    clipped = old_value + jnp.clip(value - old_value, -clip_range, clip_range)
    return jnp.maximum(error, jnp.square(clipped - target))


def approximate_kl(log_ratio: jax.Array) -> jax.Array:
    """[B] low-variance estimate of KL(old, new) on old samples: (r - 1) - log r.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    return jnp.expm1(log_ratio) - log_ratio


def soft_policy_loss(
    log_prob: jax.Array, value: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """[B] SAC policy loss: alpha log pi - q.

    Source: Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", eq. 9.

    Args:
      log_prob: [B] log-probabilities of sampled actions.
      value: [B] values of these actions.
      temperature: alpha.
    """
    chex.assert_equal_shape([log_prob, value])
    return temperature * log_prob - value


def temperature_loss(
    log_temperature: jax.Array, entropy: jax.Array, target_entropy: jax.Array | float
) -> jax.Array:
    """alpha (entropy - target): alpha grows while the entropy is below its target.

    Source: Haarnoja et al. 2018, eq. 18.
    """
    return jnp.exp(log_temperature) * (entropy - target_entropy)
