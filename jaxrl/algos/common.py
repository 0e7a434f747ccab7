"""What every algorithm uses: observation keys, schedules, episode sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.envs import Timestep
from jaxrl.errors import UserError
from jaxrl.options import option
from jaxrl.rl import schedules

# (policy state, observation [..., O]) -> action [..., A] in [-1, 1]
Policy = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Factor of the learning rate over the run."""

    kind: Literal["constant", "linear", "piecewise", "cosine"] = option(
        "constant", "shape of the schedule"
    )
    final: float = option(0.0, "factor at the end (linear, cosine)", least=0)
    boundaries: tuple[float, ...] = option(
        (), "shares of the run where piecewise changes", least=0, most=1
    )
    factors: tuple[float, ...] = option((), "factor after each boundary", least=0)

    def check(self, path: str) -> None:
        """Raises UserError where a piecewise schedule is not one."""
        ordered = list(self.boundaries) == sorted(set(self.boundaries))
        if self.kind == "piecewise" and not (
            self.boundaries and ordered and len(self.boundaries) == len(self.factors)
        ):
            raise UserError(
                f"{path}: piecewise needs increasing boundaries and one factor for each, got "
                f"boundaries {list(self.boundaries)} and factors {list(self.factors)}"
            )

    def factor(self, progress: jax.Array) -> jax.Array:
        """The factor at `progress` in [0, 1]."""
        return schedules.factor(
            self.kind,
            progress,
            final=self.final,
            boundaries=self.boundaries,
            factors=self.factors,
        )


@struct.dataclass
class EpisodeSums:
    """Episodes that ended within some steps, summed up.

    Attributes:
      count: scalar, whole episodes that ended.
      sums: [2 + M] sums of their statistics, columns as `Vector.statistics`.
      nonfinite: scalar, worlds reset because the simulation diverged.
    """

    count: jax.Array
    sums: jax.Array
    nonfinite: jax.Array


def episode_sums(step: Timestep) -> EpisodeSums:
    """The sums of one step of all worlds."""
    return EpisodeSums(
        count=step.ended.sum(), sums=step.episode.sum(0), nonfinite=step.nonfinite.sum()
    )


def pack(batch: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """All leaves [B, ...] side by side as one array [B, F], and the way back.

    Taking rows of one array is several times faster than taking them of each leaf.
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], batch))
    return jax.vmap(lambda row: ravel_pytree(row)[0])(batch), jax.vmap(unravel)


def shuffled(key: jax.Array, count: int) -> jax.Array:
    """[count] the numbers below `count` in random order: one sort of random words."""
    return jnp.argsort(jax.random.bits(key, (count,)))


def concat_keys(obs: Any, keys: tuple[str, ...]) -> jax.Array:
    """Observations side by side, [..., I].

    Args:
      obs: array [..., O], or a dictionary of such arrays with the same leading axes.
      keys: which entries of a dictionary, in this order; all of them, sorted, if empty.
    """
    if not isinstance(obs, dict):
        return obs
    return jnp.concatenate([obs[key] for key in keys or sorted(obs)], axis=-1)
