"""Rewards as a table: named terms, and a weight for each in the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


def weighted(terms: dict[str, jax.Array], weights: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reward, and each term's share of it as the metric "reward/<name>".

    Args:
      terms: scalars by name.
      weights: dataclass of numbers with a field for each term.

    Raises:
      ValueError: a term without weight, or a weight without term.
    """
    names = {field.name for field in dataclasses.fields(weights)}
    if names != set(terms):
        raise ValueError(f"terms and weights differ in {sorted(names ^ set(terms))}")
    shares = {f"reward/{name}": getattr(weights, name) * term for name, term in terms.items()}
    return sum(shares.values()), shares
