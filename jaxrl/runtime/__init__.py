"""Where the worlds of a task live: what trains, judges and films on them.

A task chooses its runtime (`Task.runtime`). The trainer, evaluations and videos go through it,
and know no more of the worlds than is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxrl.evaluation import Actor
    from jaxrl.population import Population


class Worlds(Protocol):
    """`num_envs` worlds that are trained on, as far as an algorithm knows them.

    Attributes:
      num_envs: number of worlds N.
      least_episode: control steps between two time limits of a world, at least.
      statistics: names of what is known of an episode that has ended.
    """

    num_envs: int
    least_episode: int

    @property
    def statistics(self) -> tuple[str, ...]: ...

    def observation(self) -> Any:
        """Shapes of one observation."""

    def init(self, key: jax.Array) -> Any:
        """The worlds' part of a training state, with observations [N, ...] in `obs`."""


class Training(Protocol):
    """The training of one run, a chunk of iterations at a time.

    Attributes:
      stopped: whether the user has asked to stop; nothing then waits for long.
    """

    stopped: Callable[[], bool]

    def init(self) -> Any:
        """A new training state."""

    def resume(self, state: Any) -> Any:
        """A training state from a checkpoint, ready to go on from."""

    def run(self, state: Any, count: int) -> tuple[Any, Any]:
        """`count` iterations; the state that is given is used up.

        Returns:
          the state; and means of the metrics, sums over the episodes that ended, and for each
          member whether all its numbers are finite.
        """

    def counters(self) -> dict[str, float]:
        """What there is to log besides, by log key."""

    def close(self) -> None:
        """Ends what the runtime has started."""


class Evaluator(Protocol):
    """Plays episodes with a policy.

    Attributes:
      stopped: as of `Training`.
    """

    stopped: Callable[[], bool]

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns that a call returns."""

    def compile(self, params: Any) -> None:
        """Compiles ahead of the first call, if anything is compiled; safe in a thread.

        Args:
          params: shapes of the parameters.
        """

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        """[E, S] statistics of the episodes."""


class Runtime(Protocol):
    """Steps the worlds of one task.

    Attributes:
      trains_populations: several runs can train in one program.
    """

    trains_populations: bool

    def check(self, name: str) -> None:
        """Compares the task with what it declares.

        Raises:
          UserError: the first thing that is wrong.
        """

    def worlds(self, num_envs: int, *, members: int = 1) -> Worlds:
        """The worlds that a run, or each of so many side by side, trains on."""

    def training(self, population: Population) -> Training:
        """What trains the runs of a population on the worlds of its algorithm."""

    def evaluator(self, actor: Actor, episodes: int, *, members: int | None = None) -> Evaluator:
        """Plays episodes with one policy, or with so many side by side.

        Raises:
          UserError: they do not fit into the device's memory.
        """

    def evaluation_bytes(self, episodes: int) -> int:
        """Least memory on the device that so many episodes side by side take."""

    def most_side_by_side(self) -> int:
        """Episodes that an evaluation plays at the same time, at most."""

    def film(self, actor: Actor, params: Any, seed: int, stride: int) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of an episode, each `stride`-th step.

        Raises:
          UserError: the task cannot be drawn.
        """


def never() -> bool:
    """Nobody has asked to stop."""
    return False
