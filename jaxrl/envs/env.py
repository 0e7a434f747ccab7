"""The contract between a task and the training stack.

A task simulates one world; `jax.vmap` makes it thousands. It counts no steps, knows no
time limit and never resets itself: `jaxrl.envs.vector` does that for every task alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape, bounds and component names of an observation or action array.

    A discrete action is the index of one of `shape[0]` choices.
    """

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    names: tuple[str, ...] = ()
    discrete: bool = False

    @classmethod
    def of_parts(cls, parts: dict[str, int]) -> ArraySpec:
        """A vector of named parts, each of so many components."""
        names = tuple(f"{part}_{i}" for part, size in parts.items() for i in range(size))
        return cls((len(names),), names=names)


@struct.dataclass
class State:
    """One world after `reset` or `step`.

    Attributes:
      physics: whatever the simulator carries from step to step.
      obs: array, or dictionary of arrays.
      reward: scalar, of the step that led here.
      terminated: scalar bool; the task has ended (a fall, a goal), never a time limit.
      metrics: scalars by name, the same names always. Over an episode, names that begin
        with "reward/" are summed; "success" and names that begin with "final/" keep
        their last value; all others are averaged.
      info: the task's own memory (commands, last action, random key).
    """

    physics: Any
    obs: Any
    reward: jax.Array
    terminated: jax.Array
    metrics: dict[str, jax.Array]
    info: Any


@runtime_checkable
class Env(Protocol):
    """A task. Implementations are frozen dataclasses of their settings.

    A task may also have `presets` (training settings by device, "cpu" and "gpu", and by
    algorithm; without, those of `jaxrl.algos.defaults`), `baselines()` (scripted controllers by
    name, State -> action),
    `make_vector(num_envs, wrap)` (worlds that are not stepped in a compiled program, behind a
    `WrapConfig` if one is given),
    `on(simulator)` (the same task in another of its `simulators`, for judging policies),
    `curriculum` (see `jaxrl.envs.curriculum`), `eval_overrides` (settings of its own that
    differ at evaluation) and `render(physics states [T, ...], stride) -> [F, H, W, 3] uint8`.

    Attributes:
      observation_spec: an `ArraySpec`, or a dictionary of them.
      action_spec: an `ArraySpec` with bounds -1 and 1.
      episode_length: time limit in control steps, applied by the vectoriser.
      control_dt: seconds of a control step.
    """

    episode_length: int

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]: ...

    @property
    def action_spec(self) -> ArraySpec: ...

    @property
    def control_dt(self) -> float: ...

    def reset(self, key: jax.Array) -> State:
        """A fresh random start."""

    def step(self, state: State, action: jax.Array) -> State:
        """One control step under an action in [-1, 1]."""
