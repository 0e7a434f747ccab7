"""Learning-rate schedules: factors that multiply the learning rate during a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def factor(
    kind: str,
    progress: jax.Array,
    *,
    final: float,
    boundaries: tuple[float, ...] = (),
    factors: tuple[float, ...] = (),
) -> jax.Array:
    """Returns the factor at a point of the run.

    Args:
      kind: "constant", "linear", "piecewise" or "cosine".
      progress: scalar in [0, 1], share of the run that is done.
      final: factor at the end (linear, cosine).
      boundaries: increasing shares of the run at which a piecewise schedule changes.
      factors: factor after each boundary; before the first boundary the factor is 1.
    """
    progress = jnp.clip(progress, 0.0, 1.0)
    if kind == "constant":
        return jnp.ones(())
    if kind == "linear":
        return 1.0 + (final - 1.0) * progress
    if kind == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    passed = (progress >= jnp.asarray(boundaries)).sum()
    return jnp.asarray((1.0, *factors))[passed]
