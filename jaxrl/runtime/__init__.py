"""Interfaces of a runtime, which steps the worlds of a task in training, evaluation and videos.

A task chooses its runtime (`Task.runtime`). The trainer, evaluations and videos use only these
interfaces of it.
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
    """The `num_envs` worlds of a training run, as algorithms use them.

    Attributes:
      num_envs: number of worlds N; with several devices, of one device.
      devices: number of devices.
      min_episode_length: smallest number of control steps between two time limits of a world.
      statistics: names of the statistics of a finished episode.
    """

    num_envs: int
    devices: int
    min_episode_length: int

    @property
    def statistics(self) -> tuple[str, ...]: ...

    def observation(self) -> Any:
        """Shapes of one observation."""

    def init(self, key: jax.Array) -> Any:
        """The worlds' part of a training state, with observations [N, ...] in `obs`."""

    def axes(self, state: Any) -> Any:
        """The axis along which the worlds lie of each array in that part; -1: none."""


class Training(Protocol):
    """Trains a run, one chunk of iterations at a time.

    Attributes:
      stopped: returns whether the user has stopped training; then no wait lasts long.
    """

    stopped: Callable[[], bool]

    def init(self) -> Any:
        """A new training state."""

    def resume(self, state: Any) -> Any:
        """Prepares a training state from a checkpoint for further training."""

    def run(self, state: Any, count: int) -> tuple[Any, Any]:
        """Runs `count` iterations. The given state must not be used afterwards.

        Returns:
          the new state; and (means of the metrics, sums over the episodes that ended, and for
          each member whether all its numbers are finite).
        """

    def compile(self, shapes: Any) -> Any:
        """The compiled program of `run`, for a training state of these shapes; None if there is no
        such program."""

    def counters(self) -> dict[str, float]:
        """Further numbers to log, by log key."""

    def close(self) -> None:
        """Ends the processes that the runtime has started."""


class Evaluator(Protocol):
    """Plays episodes with a policy.

    Attributes:
      stopped: as in `Training`.
    """

    stopped: Callable[[], bool]

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns that a call returns."""

    def compile(self, params: Any) -> None:
        """Compiles the evaluation ahead of the first call, if needed; can run in a thread.

        Args:
          params: shapes of the parameters.
        """

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        """Plays the episodes, and returns their statistics [E, S]."""


class Runtime(Protocol):
    """Steps the worlds of one task.

    Attributes:
      trains_populations: whether several runs can train in one program.
      trains_on_devices: whether the worlds can be split over several devices.
    """

    trains_populations: bool
    trains_on_devices: bool

    def useful_devices(self) -> int:
        """Largest number of the devices at hand that make training faster."""

    def check(self, name: str) -> None:
        """Checks that the task does what it declares.

        Args:
          name: name of the task, for messages.

        Raises:
          UserError: about the first difference.
        """

    def worlds(self, num_envs: int, *, members: int = 1, num_devices: int = 1) -> Worlds:
        """The worlds of one training run on one device.

        Args:
          num_envs: number of worlds on a device.
          members: number of runs in the program.
          num_devices: number of devices.
        """

    def training(self, population: Population) -> Training:
        """The training of a population's runs in the worlds of its algorithm."""

    def evaluator(self, actor: Actor, episodes: int, *, members: int | None = None) -> Evaluator:
        """An evaluator that plays `episodes` episodes at the same time.

        Args:
          actor: the actor that chooses actions.
          episodes: number of episodes E.
          members: number of policies that are evaluated at once; None: a single policy.

        Raises:
          UserError: the episodes do not fit into the device's memory.
        """

    def evaluation_bytes(self, episodes: int) -> int:
        """Least memory (bytes) on the device for `episodes` episodes at the same time."""

    def max_worlds(self) -> int:
        """Largest number of episodes that an evaluation plays at the same time."""

    def film(self, actor: Actor, params: Any, seed: int, stride: int) -> np.ndarray:
        """Pictures [F, H, W, 3] uint8 of every `stride`-th step of an episode.

        Raises:
          UserError: the task cannot be drawn.
        """


def never() -> bool:
    """Returns false: the default of `stopped`."""
    return False
