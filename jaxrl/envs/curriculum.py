"""Curriculum: a task's difficulty, raised while the policy copes.

A task that has one carries a field `curriculum: CurriculumConfig` and takes the level in
`reset(key, level)`, where full difficulty is the default: that is what evaluations play.
Training keeps the level in its state and moves it once an iteration.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.errors import UserError
from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """How difficulty, L numbers between 0 and 1, follows what is measured."""

    start: tuple[float, ...] = option(
        (1.0,), "levels at the start; 1: all at once", minimum=0, maximum=1
    )
    metric: tuple[str, ...] = option(
        ("success",), "what moves each level: return, length or one of the task's metrics"
    )
    raise_at: float = option(0.8, "a level rises when the mean of its metric reaches this")
    lower_at: float | None = option(None, "it falls when the mean is below this; none: never")
    step: float = option(0.1, "by so much", greater_than=0, maximum=1)
    episodes: int = option(256, "episodes that such a mean is taken over", minimum=1)

    def check(self, path: str, known: tuple[str, ...]) -> None:
        """Raises UserError where levels and metrics do not go together.

        Args:
          path: of this section, for messages.
          known: what a metric may be.
        """
        if not self.start or len(self.start) != len(self.metric):
            raise UserError(
                f"{path}: needs one metric a level, got start {list(self.start)} and metric "
                f"{list(self.metric)}"
            )
        for name in self.metric:
            if name not in known:
                raise UserError(f"{path}.metric: got {name!r}, known are {', '.join(known)}")


class CurriculumState(struct.PyTreeNode):
    """Where the curriculum stands.

    Attributes:
      level: [L].
      sums: [L] of each level's metric over the episodes since the last decision.
      episodes: scalar, how many those are.
    """

    level: jax.Array
    sums: jax.Array
    episodes: jax.Array


def init(config: CurriculumConfig) -> CurriculumState:
    """The easiest level."""
    level = jnp.asarray(config.start, jnp.float32)
    return CurriculumState(level=level, sums=jnp.zeros_like(level), episodes=jnp.zeros(()))


def observe(state: CurriculumState, sums: jax.Array, episodes: jax.Array) -> CurriculumState:
    """Counts episodes that ended.

    Args:
      state: before.
      sums: [L] of the levels' metrics.
      episodes: how many ended.
    """
    return state.replace(sums=state.sums + sums, episodes=state.episodes + episodes)


def advance(config: CurriculumConfig, state: CurriculumState) -> CurriculumState:
    """Moves the levels, if enough episodes have ended since they last were looked at."""
    enough = state.episodes >= config.episodes
    mean = state.sums / jnp.maximum(state.episodes, 1.0)
    move = jnp.where(mean >= config.raise_at, config.step, 0.0)
    if config.lower_at is not None:
        move = move - jnp.where(mean < config.lower_at, config.step, 0.0)
    least = jnp.asarray(config.start, jnp.float32)
    level = jnp.clip(state.level + jnp.where(enough, move, 0.0), least, 1.0)
    # What was counted at another level says nothing of the new one.
    return CurriculumState(
        level=level,
        sums=jnp.where(enough, 0.0, state.sums),
        episodes=jnp.where(enough, 0.0, state.episodes),
    )
