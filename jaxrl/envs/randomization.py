"""Domain randomisation: which parameters of a world vary, how, and when.

A task declares `Randomization`s; `draw` computes new values from the nominal ones. It is
independent of the simulator: fields are arrays with names, and the task itself computes the
quantities that depend on them (such as a subtree's mass, which depends on its bodies' masses).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class Range:
    """Distribution of the factor or the offset of a randomised quantity."""

    low: float = option(0.0, "smallest {section}; of a normal distribution, its mean")
    high: float = option(0.0, "largest {section}; of a normal distribution, its standard deviation")
    distribution: Literal["uniform", "log_uniform", "normal"] = option(
        "uniform", "distribution of each {section}, drawn once for each episode"
    )

    def at(self, share: jax.Array) -> jax.Array:
        """The draws that belong to uniform numbers in [0, 1)."""
        if self.distribution == "normal":
            lowest = np.nextafter(np.float32(-1), np.float32(0))
            number = jax.lax.erf_inv(jnp.maximum(2.0 * share - 1.0, lowest))
            return self.low + self.high * np.sqrt(2.0) * number
        if self.distribution == "log_uniform":
            low, high = np.log(self.low), np.log(self.high)
            return jnp.exp(low + (high - low) * share)
        return self.low + (self.high - self.low) * share


@dataclasses.dataclass(frozen=True)
class Randomization:
    """One randomised quantity.

    Attributes:
      targets: (field, index) pairs that all get the same draws; an index selects S numbers of
        the field, as `array[index]` does.
      how: whether the draws multiply the nominal numbers or are added to them.
      range: distribution of the draws.
      shared: whether there is one draw for all S numbers, instead of one draw for each.
      event: "reset": drawn for each episode; "interval": also again every `interval` seconds.
      interval: seconds between draws.
    """

    targets: tuple[tuple[str, object], ...]
    how: Literal["scale", "add"]
    range: Range
    shared: bool = False
    event: Literal["reset", "interval"] = "reset"
    interval: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether every draw gives the nominal value."""
        spread = self.range.high if self.range.distribution == "normal" else None
        is_constant = self.range.low == self.range.high if spread is None else spread == 0
        return is_constant and self.range.low == (1.0 if self.how == "scale" else 0.0)


Fields = dict[str, jax.Array]


def draw(
    terms: Sequence[Randomization], nominal: Callable[[str], jax.Array], key: jax.Array
) -> Fields:
    """Returns new values of all fields that the terms change.

    Args:
      terms: randomised quantities; those that are off change nothing.
      nominal: function from a field's name to its nominal value.
      key: PRNG key.
    """
    fields: Fields = {}
    firsts = [term.targets[0] for term in terms]
    shapes = [
        () if term.shared else jnp.shape(nominal(name)[index])
        for term, (name, index) in zip(terms, firsts, strict=True)
    ]
    # One call, since each takes a fifth of a second to compile. All terms have their places in it,
    # so that one that is off leaves the draws of the others as they are.
    ends = np.cumsum([0, *map(math.prod, shapes)])
    shares = jax.random.uniform(key, (ends[-1],))
    for term, shape, start, end in zip(terms, shapes, ends[:-1], ends[1:], strict=True):
        if term.is_off:
            continue
        value = term.range.at(shares[start:end].reshape(shape))
        for name, index in term.targets:
            array = fields.get(name, nominal(name))
            place = array.at[index]
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
    """Returns `current`, with new draws of the "interval" terms that are due at this step.

    A field of such a term must not belong to another term.

    Args:
      terms, nominal: as for `draw`.
      key: PRNG key of this step.
      current: current values of all fields.
      step: number of control steps since the episode began.
      control_dt: seconds of one control step.
    """
    fields = dict(current)
    for i, term in enumerate(terms):
        if term.event != "interval" or term.is_off:
            continue
        is_due = (step > 0) & (step % max(round(term.interval / control_dt), 1) == 0)
        for name, value in draw([term], nominal, jax.random.fold_in(key, i)).items():
            fields[name] = jnp.where(is_due, value, fields[name])
    return fields
