"""Rewards as a sum of named terms, each with a weight in the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


def weighted(terms: dict[str, jax.Array], weights: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the reward, and each term's share of it as the metric "reward/<name>".

    Args:
      terms: scalars by name.
      weights: dataclass of numbers with a field for each term.

    Raises:
      ValueError: a term has no weight, or a weight has no term.
    """
    names = {field.name for field in dataclasses.fields(weights)}
    if names != set(terms):
        raise ValueError(
            "reward terms and weights must have the same names, but only one side has "
            f"{sorted(names ^ set(terms))}"
        )
    shares = {f"reward/{name}": getattr(weights, name) * term for name, term in terms.items()}
    return sum(shares.values()), shares
