"""Domain randomisation: which numbers of a world vary, how, and when.

A task declares `Randomization`s; `draw` makes values from the nominal ones. It knows no
simulator: fields are arrays by name, and what follows from them (a subtree's mass from its
bodies') is the task's to derive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class Range:
    """What a randomised quantity is multiplied by, or what is added to it."""

    low: float = option(0.0, "least value, or mean of a normal distribution")
    high: float = option(0.0, "largest value, or its standard deviation")
    distribution: Literal["uniform", "log_uniform", "normal"] = option("uniform", "of the draws")

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape."""
        if self.distribution == "normal":
            return self.low + self.high * jax.random.normal(key, shape)
        if self.distribution == "log_uniform":
            low, high = np.log(self.low), np.log(self.high)
            return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
        return jax.random.uniform(key, shape, minval=self.low, maxval=self.high)


@dataclasses.dataclass(frozen=True)
class Randomization:
    """One quantity that varies.

    Attributes:
      targets: (field, index) pairs that all get the same draws; an index picks S numbers of
        the field, as `array[index]` does.
      how: the draws multiply the nominal numbers or are added to them.
      range: of the draws.
      shared: one draw for all S numbers, not one each.
      event: "reset": drawn for each episode; "interval": and again every `interval` seconds.
      interval: in seconds.
    """

    targets: tuple[tuple[str, object], ...]
    how: Literal["scale", "add"]
    range: Range
    shared: bool = False
    event: Literal["reset", "interval"] = "reset"
    interval: float = 0.0

    @property
    def is_off(self) -> bool:
        """It would always draw the nominal value."""
        spread = self.range.high if self.range.distribution == "normal" else None
        still = self.range.low == self.range.high if spread is None else spread == 0
        return still and self.range.low == (1.0 if self.how == "scale" else 0.0)


Fields = dict[str, jax.Array]


def draw(
    terms: Sequence[Randomization], nominal: Callable[[str], jax.Array], key: jax.Array
) -> Fields:
    """New values of all fields that the terms touch.

    Args:
      terms: what varies; those that are off touch nothing.
      nominal: the value of a field by its name.
      key: PRNG key.
    """
    fields: Fields = {}
    for term, own in zip(terms, jax.random.split(key, max(len(terms), 1)), strict=False):
        if term.is_off:
            continue
        first, index = term.targets[0]
        shape = () if term.shared else jnp.shape(nominal(first)[index])
        value = term.range.sample(own, shape)
        for name, index in term.targets:
            whole = fields.get(name, nominal(name))
            place = whole.at[index]
            fields[name] = place.multiply(value) if term.how == "scale" else place.add(value)
    return fields


def redraw(
    terms: Sequence[Randomization],
    nominal: Callable[[str], jax.Array],
    key: jax.Array,
    *,
    current: Mapping[str, jax.Array],
    step: jax.Array,
    control_dt: float,
) -> Fields:
    """`current` with the terms of event "interval" drawn again where their time has come.

    Fields of such terms must belong to no other term.

    Args:
      terms, nominal: as for `draw`.
      key: PRNG key of this step.
      current: values now.
      step: control steps since the episode began.
      control_dt: seconds of one.
    """
    fields = dict(current)
    for i, term in enumerate(terms):
        if term.event != "interval" or term.is_off:
            continue
        due = (step > 0) & (step % max(round(term.interval / control_dt), 1) == 0)
        for name, value in draw([term], nominal, jax.random.fold_in(key, i)).items():
            fields[name] = jnp.where(due, value, fields[name])
    return fields
