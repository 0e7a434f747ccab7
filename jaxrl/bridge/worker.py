"""What runs in the processes that step Gymnasium environments; imports no JAX."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import signal
import statistics
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

# An environment that fails again at once, so often in a row, is broken and not unlucky.
MOST_RESTARTS = 3


class BadObservation(Exception):
    """What an environment told that does not fit its own space, or the user's settings."""


def make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """The environment of a Gymnasium id, or of a class as "package.module:Class"."""
    module, colon, attribute = name.partition(":")
    if colon and "/" not in attribute and "-v" not in attribute:
        return getattr(importlib.import_module(module), attribute)(**kwargs)
    return gymnasium.make(name, **kwargs)


def flat_space(space: gymnasium.Space) -> gymnasium.spaces.Box | gymnasium.spaces.Dict:
    """The space of what policies get: float32 vectors, or a dictionary of them.

    Raises:
      TypeError: it cannot be made one.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        return gymnasium.spaces.Dict({key: flat_space(part) for key, part in space.items()})
    flat = gymnasium.spaces.flatten_space(space)
    if not isinstance(flat, gymnasium.spaces.Box):
        raise TypeError(f"observations of {space} are no fixed number of numbers")
    return gymnasium.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)


class Guard(gymnasium.Env):
    """An environment that neither exceptions nor bad numbers get out of.

    * An exception in `step` or `reset` is answered with a new environment; the episode counts
      as cut short by a time limit (`info["restarted"]`).
    * A number that is not finite ends the episode with reward 0 (`info["nonfinite"]`).
    * An observation of another shape than the space's is a `BadObservation`.

    Actions are shares of the action space, [-1, 1] for each component, or the index of a
    discrete one. Observations are float32.

    `info["last"]` has the last known values of some entries of the environment's `info`.

    Args:
      name, kwargs: as for `make`.
      keys: of those entries; flags count 0 or 1.
      limit: steps after which an episode is cut short; None: when the environment says so.
    """

    def __init__(
        self,
        name: str,
        kwargs: dict[str, Any],
        keys: Sequence[str] = (),
        limit: int | None = None,
    ):
        self._name, self._kwargs, self._keys = name, kwargs, keys
        self._limit, self._steps = limit, 0
        self._env = make(name, kwargs)
        self.metadata = self._env.metadata
        self.render_mode = self._env.render_mode
        self.observation_space = flat_space(self._env.observation_space)
        self._actions = self._env.action_space
        self.action_space = self._actions
        if isinstance(self._actions, gymnasium.spaces.Box):
            size = int(np.prod(self._actions.shape))
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self._restarts = 0  # in a row
        self._obs: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._last, self._steps = [0.0] * len(self._keys), 0
        while True:
            try:
                raw, _ = self._env.reset(seed=seed, options=options)
                self._obs = self._checked(raw)
                if all(np.isfinite(x).all() for x in _leaves(self._obs)):
                    return self._obs, {}
                raise ValueError("the first observation is not finite")
            except BadObservation:
                raise
            except Exception as error:
                self._again(error)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            raw, reward, terminated, truncated, info = self._env.step(self._native(action))
            obs, reward = self._checked(raw), self._number("reward", reward)
        except BadObservation:
            raise
        except Exception as error:
            self._again(error)
            told = {"restarted": True, "error": _line(error), "last": self._last}
            return self._obs, 0.0, False, True, told
        self._restarts, self._steps = 0, self._steps + 1
        if not (np.isfinite(reward) and all(np.isfinite(x).all() for x in _leaves(obs))):
            return self._obs, 0.0, True, False, {"nonfinite": True, "last": self._last}
        self._obs = obs
        self._read(info, bool(terminated or truncated))
        truncated = truncated or self._steps == self._limit  # unknown to the environment
        return obs, reward, bool(terminated), bool(truncated), {"last": self._last}

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def _again(self, error: Exception) -> None:
        """A new environment in place of the one that failed."""
        self._restarts += 1
        if self._restarts > MOST_RESTARTS:
            raise RuntimeError(
                f"{self._name} failed {self._restarts} times in a row, last with {_line(error)}"
            ) from error
        with contextlib.suppress(Exception):  # it is broken; the new one counts
            self._env.close()
        self._env = make(self._name, self._kwargs)

    def _read(self, info: dict[str, Any], last: bool) -> None:
        """Takes note of the wanted entries; those that are there may differ until the last."""
        for i, key in enumerate(self._keys):
            if key in info:
                self._last[i] = self._number(f"info[{key!r}]", info[key])
            elif last:
                raise BadObservation(
                    f"info has no {key!r} (env.success or env.metrics) at the end of an episode, "
                    f"it has: {', '.join(map(repr, info)) or 'nothing'}"
                )

    def _number(self, what: str, value: Any) -> float:
        try:
            return float(np.asarray(value).item())
        except (TypeError, ValueError) as error:
            raise BadObservation(f"{what}: got {value!r}, expected a number") from error

    def _native(self, action: Any) -> Any:
        space = self._actions
        if not isinstance(space, gymnasium.spaces.Box):
            return int(action)
        share = 0.5 * (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0)
        native = space.low.ravel() + share * (space.high.ravel() - space.low.ravel())
        return native.reshape(space.shape).astype(space.dtype)

    def _checked(self, raw: Any) -> Any:
        return _flatten(self._env.observation_space, raw, "observation")


def trial(name: str, kwargs: dict[str, Any], steps: int = 20) -> tuple[float, bool]:
    """Median seconds of a step, and whether two worlds in one process leave each other alone:
    whether the first takes the same steps as without the second. Arguments as for `make`."""
    taken = []

    def play(count: int) -> list[np.ndarray]:
        worlds, seen = [Guard(name, kwargs) for _ in range(count)], []
        worlds[0].action_space.seed(0)
        for i, world in enumerate(worlds):
            obs, _ = world.reset(seed=i)
            seen += _leaves(obs) if i == 0 else []
        for _ in range(steps):
            action = worlds[0].action_space.sample()
            for i, world in enumerate(worlds):
                begun = time.perf_counter()
                obs, _, terminated, truncated, told = world.step(action)
                taken.append(time.perf_counter() - begun)
                if "restarted" in told:  # from here on its starts are new ones
                    return seen
                seen += _leaves(obs) if i == 0 else []
                if terminated or truncated:
                    world.reset()
        for world in worlds:
            world.close()
        return seen

    alone, beside = play(1), play(2)
    same = all(np.array_equal(a, b) for a, b in zip(alone, beside))
    return statistics.median(taken), same


class Group(gymnasium.Env):
    """Worlds that one process steps, each in its turn, presented as one environment: spaces,
    actions, observations, rewards and flags have a leading axis [K]. A world whose episode
    ends begins the next in the same step; `info["ended"]` then has (index, final observation,
    info) of each such world.

    Args:
      count: number of worlds K.
      settings: as for `Guard`.
    """

    def __init__(self, count: int, *settings: Any):
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer to answer
        # The others come with the first reset: some groups are only asked for their spaces.
        self._count, self._settings = count, settings
        self.worlds = [Guard(*settings)]
        first = self.worlds[0]
        self.metadata, self.render_mode = first.metadata, first.render_mode
        self._one = first.observation_space
        self.observation_space = batch_space(self._one, count)
        self.action_space = batch_space(first.action_space, count)

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> Any:
        """World i has the seed + i."""
        while len(self.worlds) < self._count:
            self.worlds.append(Guard(*self._settings))
        obs = [world.reset(seed=seed + i)[0] for i, world in enumerate(self.worlds)]
        return self._stacked(obs), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        obs, ended = [], []
        reward = np.zeros(len(self.worlds))
        terminated, truncated = np.zeros((2, len(self.worlds)), bool)
        for i, (world, action) in enumerate(zip(self.worlds, actions, strict=True)):
            seen, reward[i], terminated[i], truncated[i], told = world.step(action)
            if terminated[i] or truncated[i]:
                ended.append((i, seen, told))
                seen = world.reset()[0]
            obs.append(seen)
        # A list, so that Gymnasium hands it on as it is.
        return self._stacked(obs), reward, terminated, truncated, {"ended": ended} if ended else {}

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def _stacked(self, obs: list[Any]) -> Any:
        count = len(obs)
        return concatenate(self._one, obs, create_empty_array(self._one, count))


def _flatten(space: gymnasium.Space, raw: Any, path: str) -> Any:
    if isinstance(space, gymnasium.spaces.Dict):
        if not isinstance(raw, dict) or set(raw) != set(space):
            found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            raise BadObservation(f"{path}: got {found}, its space has the keys {sorted(space)}")
        return {key: _flatten(part, raw[key], f"{path}[{key!r}]") for key, part in space.items()}
    if isinstance(space, gymnasium.spaces.Box):
        array = np.asarray(raw)
        if array.shape != space.shape or array.dtype.kind not in "fiub":
            raise BadObservation(
                f"{path}: got {array.dtype} {array.shape}, its space says {space.dtype} "
                f"{space.shape}"
            )
        return array.ravel().astype(np.float32)
    return np.asarray(gymnasium.spaces.flatten(space, raw), np.float32)


def _leaves(obs: Any) -> list[np.ndarray]:
    if isinstance(obs, dict):
        return [leaf for part in obs.values() for leaf in _leaves(part)]
    return [obs]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
