"""Curriculum: raises a task's difficulty while the policy succeeds.

A task with a curriculum has a field `curriculum: CurriculumConfig` and takes the level in
`reset(key, level)`. The default of `level` must be full difficulty, which evaluations use.
Training keeps the level in its state and adjusts it once in each iteration.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import devices
from jaxrl.errors import UserError
from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Settings of a curriculum: how L levels between 0 and 1 follow measured metrics."""

    start: tuple[float, ...] = option(
        (1.0,),
        "levels at the start of the run ({section}); one number for each level",
        minimum=0,
        maximum=1,
    )
    metric: tuple[str, ...] = option(
        ("success",),
        "the metric that decides about each level: return, length or one of the task's metrics",
    )
    raise_at: float = option(
        0.8, "a level rises when the mean of its metric over recent episodes reaches this"
    )
    lower_at: float | None = option(
        None,
        "a level falls when the mean of its metric over recent episodes is below this; "
        "none: levels never fall",
    )
    step: float = option(0.1, "how far a level rises or falls at once", greater_than=0, maximum=1)
    episodes: int = option(
        256, "number of recent episodes that the mean of a level's metric is taken over", minimum=1
    )

    def check(self, path: str, known: tuple[str, ...]) -> None:
        """Raises UserError if levels and metrics do not fit together.

        Args:
          path: path of this section, for messages.
          known: names of all metrics.
        """
        if not self.start or len(self.start) != len(self.metric):
            raise UserError(
                f"{path}: needs one metric for each level, got start {list(self.start)} and metric "
                f"{list(self.metric)}"
            )
        for name in self.metric:
            if name not in known:
                raise UserError(f"{path}.metric: got {name!r}, expected one of {', '.join(known)}")


class CurriculumState(struct.PyTreeNode):
    """State of a curriculum.

    Attributes:
      level: [L] current levels.
      sums: [L] sum of each level's metric over the episodes since the last decision.
      episodes: scalar, number of these episodes.
    """

    level: jax.Array
    sums: jax.Array
    episodes: jax.Array


def init(config: CurriculumConfig) -> CurriculumState:
    """Returns the state at the start of a run, at the start levels."""
    level = jnp.asarray(config.start, jnp.float32)
    return CurriculumState(level=level, sums=jnp.zeros_like(level), episodes=jnp.zeros(()))


def observe(state: CurriculumState, sums: jax.Array, episodes: jax.Array) -> CurriculumState:
    """Returns the state with ended episodes added.

    Args:
      state: state before.
      sums: [L] sum of each level's metric over these episodes.
      episodes: number of these episodes.
    """
    return state.replace(sums=state.sums + sums, episodes=state.episodes + episodes)


def everywhere(before: CurriculumState, after: CurriculumState) -> CurriculumState:
    """Returns the state after an iteration on all devices, which began it with the same state.

    Args:
      before: state at the start of the iteration.
      after: state with the episodes that ended on this device added.
    """
    if devices.count() == 1:
        return after
    sums, episodes = devices.total((after.sums - before.sums, after.episodes - before.episodes))
    return observe(before, sums, episodes)


def advance(config: CurriculumConfig, state: CurriculumState) -> CurriculumState:
    """Raises or lowers the levels, if enough episodes have ended since the last decision."""
    enough = state.episodes >= config.episodes
    mean = state.sums / jnp.maximum(state.episodes, 1.0)
    move = jnp.where(mean >= config.raise_at, config.step, 0.0)
    if config.lower_at is not None:
        move = move - jnp.where(mean < config.lower_at, config.step, 0.0)
    lowest = jnp.asarray(config.start, jnp.float32)
    level = jnp.clip(state.level + jnp.where(enough, move, 0.0), lowest, 1.0)
    # Counting starts again, since episodes at the old level do not count for the new level.
    return CurriculumState(
        level=level,
        sums=jnp.where(enough, 0.0, state.sums),
        episodes=jnp.where(enough, 0.0, state.episodes),
    )
