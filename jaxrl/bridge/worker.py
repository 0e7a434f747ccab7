"""Worlds of Gymnasium environments, and the main function of the processes that step them.
Imports no JAX."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib
import math
import multiprocessing
import numbers
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper

from jaxrl.errors import UserError, brief

# Largest number of restarts in a row: an environment that fails once more counts as broken.
MAX_RESTARTS = 3
# Time limit of a construction, a reset or a picture, as a multiple of the time limit of a step.
START = 5.0
# Exceptions of an environment's own code that are handled; all others are passed on.
FAILURES = (Exception, SystemExit)
# Part of the seed of noise and delay, so that they differ from the environment's random numbers.
NOISE = 0x6E6F697365
PR_SET_PDEATHSIG = 1


class Unusable(Exception):
    """Training cannot continue with an environment, or the environment does not fit the user's
    settings; the message is for the user."""


class Wrap(NamedTuple):
    """Delay, noise and history, as in `jaxrl.envs.WrapConfig`."""

    action_delay: tuple[int, ...] = (0,)
    observation_noise: tuple[float, ...] = (0.0,)
    history: int = 1


class Deadline:
    """The time at which a world's current call must have ended.

    Args:
      seconds: time limit of a step; None: no limit.
      cells: deadlines, in the time of `time.monotonic()`; the process that waits for the world
        reads them.
      i: index of this deadline in `cells`.
    """

    def __init__(self, seconds: float | None = None, cells: Any = None, i: int = 0):
        self.seconds = math.inf if seconds is None else seconds
        self._cells, self._i = [math.inf] if cells is None else cells, i

    def allow(self, times: float = 1.0) -> None:
        """Sets the deadline of a call that begins now: `times` the time limit of a step."""
        self._cells[self._i] = time.monotonic() + times * self.seconds

    def late(self) -> str:
        """The message about a world that took longer, without its subject."""
        return (
            f"took longer than env.step_timeout allows ({self.seconds:g} s for a step, "
            f"{START * self.seconds:g} s to make or reset a world)"
        )


def make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """Makes the environment of a Gymnasium id, or of a class given as "package.module:Class"."""
    module, colon, attribute = name.partition(":")
    if colon and "/" not in attribute and "-v" not in attribute:
        return getattr(importlib.import_module(module), attribute)(**kwargs)
    return gymnasium.make(name, **kwargs)


def line(error: BaseException) -> str:
    """The error message as one line of limited length."""
    message = str(error)
    if not isinstance(error, (UserError, Unusable)):
        message = f"{type(error).__name__}: {message}" if message.strip() else type(error).__name__
    return brief(message)


# -- spaces ----------------------------------------------------------------------------------


def flat_space(space: gymnasium.Space) -> spaces.Box | spaces.Dict:
    """The space of the observations that a policy gets: a float32 vector, or a dictionary of them.

    Raises:
      Unusable: the space cannot be flattened.
    """

    def flat(part: gymnasium.Space, path: str) -> spaces.Box:
        size = _size(part, path)
        if _is_image(part):
            return spaces.Box(0, 255, _channels_last(np.empty(part.shape, bool)).shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    if not isinstance(space, spaces.Dict):
        return flat(space, "observation")
    _size(space, "observation")
    return spaces.Dict({key: flat(p, f"observation[{key!r}]") for key, p in space.items()})


def _is_image(space: gymnasium.Space) -> TypeGuard[spaces.Box]:
    """Whether observations of the space are images: bytes with three axes."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _channels_last(image: np.ndarray) -> np.ndarray:
    """The image [height, width, channels]; channels come first if that is the shortest axis."""
    return np.moveaxis(image, 0, -1) if np.argmin(image.shape) == 0 else image


def _size(space: gymnasium.Space, path: str) -> int:
    """Number of components of a flattened observation of the space."""
    if isinstance(space, spaces.Dict):
        wrong = [key for key in space if not isinstance(key, str)]
        if wrong:
            raise Unusable(f"{path}: its space has the key {wrong[0]!r}, expected a string")
        size = sum(_size(part, f"{path}[{key!r}]") for key, part in space.items())
    elif isinstance(space, spaces.Tuple):
        size = sum(_size(part, f"{path}[{i}]") for i, part in enumerate(space))
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        size = spaces.flatdim(space)
    else:
        raise Unusable(
            f"{path}: its space must be Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or "
            f"Tuple of these, but is {space}"
        )
    if not size:
        raise Unusable(f"{path}: its space has no numbers: {space}")
    return size


def flat_actions(space: gymnasium.Space) -> spaces.Box | spaces.Discrete:
    """The space of the actions that a policy gives: a vector in [-1, 1], or an index from 0.

    Raises:
      Unusable: no policy supports the space.
    """
    if isinstance(space, spaces.Discrete) and space.n > 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        if size and np.isfinite([space.low, space.high]).all():
            return spaces.Box(-1.0, 1.0, (size,), np.float32)
    raise Unusable(f"actions: the space must be a bounded Box or Discrete, but is {space}")


def _parts(space: spaces.Dict, raw: Any, path: str) -> dict[str, np.ndarray]:
    """The flattened parts of a dictionary observation."""
    if not isinstance(raw, dict) or set(raw) != set(space):
        given = list(raw) if isinstance(raw, dict) else type(raw).__name__
        raise Unusable(f"{path}: got {given}, expected the keys of its space: {list(space)}")
    return {key: _part(part, raw[key], f"{path}[{key!r}]") for key, part in space.items()}


def _part(space: gymnasium.Space, raw: Any, path: str) -> np.ndarray:
    """A part of an observation: an image [H, W, C] uint8, or anything else as one vector."""
    if _is_image(space):
        return _channels_last(_array(space, raw, path))
    return _flatten(space, raw, path)


def _flatten(space: gymnasium.Space, raw: Any, path: str) -> np.ndarray:
    """The observation as one vector [O] float32."""
    if isinstance(space, spaces.Dict):
        parts = [x.ravel() for x in _parts(space, raw, path).values()]
        return np.concatenate(parts).astype(np.float32)
    if isinstance(space, spaces.Tuple):
        if len(raw) != len(space):
            raise Unusable(f"{path}: got {len(raw)} parts, expected {len(space)} as in its space")
        parts = [_flatten(part, raw[i], f"{path}[{i}]") for i, part in enumerate(space)]
        return np.concatenate(parts)
    array = _array(space, raw, path)
    if not isinstance(space, spaces.Box):
        array = np.asarray(spaces.flatten(space, array))
    return array.ravel().astype(np.float32)


def _array(space: gymnasium.Space, raw: Any, path: str) -> np.ndarray:
    """The observation as an array, which has the shape of its space."""
    array = np.asarray(raw)
    if array.shape != space.shape or array.dtype.kind not in "fiub":
        raise Unusable(
            f"{path}: got {array.dtype} {array.shape}, expected {space.dtype} {space.shape} as in "
            "its space"
        )
    return array


def leaves(obs: Any) -> list[np.ndarray]:
    """The arrays of an observation, in the order of its keys."""
    return [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]


def _each(function: Callable[..., np.ndarray], *obs: Any) -> Any:
    """The function applied to observations; for dictionaries, to each part separately."""
    if isinstance(obs[0], dict):
        return {key: function(*(o[key] for o in obs)) for key in obs[0]}
    return function(*obs)


# -- one world ---------------------------------------------------------------------------------


class Guard:
    """An environment whose exceptions and non-finite numbers do not reach the caller.

    * After an exception in `step` or `reset` the environment is made again. Its new seed is
      derived from the world's seed and the number of restarts; an exception in `step` ends the
      episode like a time limit (`info["restarted"]`).
    * A number that is not finite ends the episode with reward 0 (`info["nonfinite"]`).
    * An observation that does not match its space raises `Unusable`.

    Actions are in [-1, 1] for each component of a Box, and are scaled to its bounds; for a
    discrete space they are indices from 0. Observations are float32.

    `info["last"]` has the last known values of some entries of the environment's `info`.

    Args:
      name, kwargs: as for `make`.
      keys: keys of these entries; true and false become 1 and 0.
      limit: control steps after which an episode is truncated; None: no further limit.
      deadline: set before each call of the environment.

    Attributes:
      failures: one line for each restart; the caller clears the list after reading it.
    """

    def __init__(
        self,
        name: str,
        kwargs: dict[str, Any],
        keys: Sequence[str] = (),
        limit: int | None = None,
        deadline: Deadline | None = None,
    ):
        self._name, self._kwargs, self._keys = name, kwargs, keys
        self._limit, self._steps = limit, 0
        self._deadline = deadline or Deadline()
        self._env = self._make_env()
        try:
            self._actions, self._space = self._env.action_space, self._env.observation_space
            self.action_space = flat_actions(self._actions)
            self.observation_space = flat_space(self._space)
            if isinstance(self._actions, spaces.Box):
                bounds = self._actions.low, self._actions.high
                self._bounds = [x.ravel().astype(np.float64) for x in bounds]
        except Unusable:
            raise
        except FAILURES as error:
            raise Unusable(f"its spaces cannot be read: {line(error)}") from error
        self._restarts_in_row = 0
        self._seed: int | None = None
        self._next_seed: int | None = None  # of the next reset
        self._restarts = 0  # since the seed was given
        self.failures: list[str] = []
        self._obs: Any = None

    def _make_env(self) -> gymnasium.Env:
        self._deadline.allow(START)
        try:
            return make(self._name, self._kwargs)
        except FAILURES as error:
            raise Unusable(f"cannot be made: {line(error)}") from error

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A new start; a seed makes this and all later starts repeatable."""
        if seed is not None:
            self._seed, self._next_seed, self._restarts, self._restarts_in_row = seed, seed, 0, 0
        self._last, self._steps = [0.0] * len(self._keys), 0
        while True:
            try:
                self._deadline.allow(START)
                raw, _ = self._env.reset(seed=self._next_seed)
                obs = self._flattened(raw)
                if not all(np.isfinite(x).all() for x in leaves(obs)):
                    raise ValueError("the first observation is not finite")
            except Unusable:
                raise
            except FAILURES as error:
                self._restart(error)
            else:
                self._obs, self._next_seed = obs, None
                return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step; arguments and results as in Gymnasium."""
        try:
            self._deadline.allow()
            raw, reward, terminated, truncated, info = self._env.step(self._native(action))
            obs, reward = self._flattened(raw), self._number("reward", reward)
            terminated, truncated, info = bool(terminated), bool(truncated), dict(info)
        except Unusable:
            raise
        except FAILURES as error:
            self._restart(error)
            return self._obs, 0.0, False, True, {"restarted": True, "last": self._last}
        self._restarts_in_row, self._steps = 0, self._steps + 1
        if not (np.isfinite(reward) and all(np.isfinite(x).all() for x in leaves(obs))):
            return self._obs, 0.0, True, False, {"nonfinite": True, "last": self._last}
        self._obs = obs
        self._read_info(info, terminated or truncated)
        truncated = truncated or self._steps == self._limit  # not known to the environment
        return obs, reward, terminated, truncated, {"last": self._last}

    def picture(self) -> np.ndarray:
        """A picture [H, W, 3] uint8 of the world."""
        self._deadline.allow(START)
        try:
            frame = np.asarray(self._env.render())
            if frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(
                    f"render() returned {frame.dtype} {frame.shape}, expected [H, W, 3]"
                )
            return frame.astype(np.uint8)
        except FAILURES as error:
            raise Unusable(f"cannot render a picture: {line(error)}") from error

    def describe(self) -> dict[str, Any]:
        """The environment's spaces and properties that a task needs, as plain values."""
        env = self._env
        limit, fps = env.spec and env.spec.max_episode_steps, (env.metadata or {}).get("render_fps")
        if fps is not None and not (isinstance(fps, numbers.Real) and 0 < float(fps) < math.inf):
            raise Unusable(f"metadata['render_fps'] is {fps!r}, expected a number above 0")
        criterion = getattr(env.unwrapped, "success_criterion", None)
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "limit": limit and int(limit),
            "control_dt": 1.0 / float(fps) if fps else 0.02,
            "criterion": criterion and str(criterion),
        }

    def close(self) -> None:
        with contextlib.suppress(*FAILURES):
            self._env.close()

    def _restart(self, error: BaseException) -> None:
        """Replaces the environment, which has failed, by a new one."""
        self.failures.append(line(error))
        self._restarts_in_row += 1
        if self._restarts_in_row > MAX_RESTARTS:
            raise Unusable(
                f"failed {self._restarts_in_row} times in a row, the last time with {line(error)}"
            ) from error
        self.close()
        self._env = self._make_env()
        self._restarts += 1
        if self._seed is not None:
            seeds = np.random.SeedSequence((self._seed, self._restarts))
            self._next_seed = int(seeds.generate_state(1)[0])

    def _read_info(self, info: dict[str, Any], last: bool) -> None:
        """Stores the entries of `keys`; they may be missing until the episode ends by itself."""
        for i, key in enumerate(self._keys):
            if key in info:
                self._last[i] = self._number(f"info[{key!r}]", info[key])
            elif last:
                raise Unusable(
                    f"info has no {key!r} (env.success or env.metrics) at the end of an episode; "
                    f"it has: {', '.join(map(repr, info)) or 'nothing'}"
                )

    def _number(self, name: str, value: Any) -> float:
        try:
            return float(np.asarray(value).item())
        except (TypeError, ValueError) as error:
            raise Unusable(f"{name}: got {value!r}, expected a number") from error

    def _native(self, action: Any) -> Any:
        """The action as the environment expects it."""
        space = self._actions
        if isinstance(space, spaces.Discrete):
            return int(space.start) + int(action)
        fraction = 0.5 * (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0)
        low, high = self._bounds
        return (low + fraction * (high - low)).reshape(space.shape).astype(space.dtype)

    def _flattened(self, raw: Any) -> Any:
        """The observation, checked and flattened."""
        if isinstance(self._space, spaces.Dict):
            return _parts(self._space, raw, "observation")
        return _part(self._space, raw, "observation")


class Wrapped:
    """A world with delayed actions, noisy observations and a history; for compiled tasks,
    `jaxrl.envs.Wrapped` does this.

    Args:
      world: the world.
      wrap: settings that fit the world.
    """

    def __init__(self, world: Guard, wrap: Wrap):
        self._world, self._wrap = world, wrap
        self.action_space = world.action_space
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the world. Actions before the first given one are zero, and the first
        observation fills the history."""
        if seed is not None:
            self._random = np.random.default_rng((seed, NOISE))
        obs, info = self._world.reset(seed=seed)
        low, high = self._wrap.action_delay[0], self._wrap.action_delay[-1]
        self._delay = int(self._random.integers(low, high, endpoint=True))
        zero = np.zeros(self.action_space.shape or (), self.action_space.dtype)
        self._actions = collections.deque([zero] * (high + 1), high + 1)
        history = self._wrap.history
        self._frames = collections.deque([self._noisy(obs)] * history, history)
        return self._stacked(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the world, with the action that was given `delay` steps ago."""
        self._actions.append(action)
        obs, *numbers, info = self._world.step(self._actions[-1 - self._delay])
        if not ("restarted" in info or "nonfinite" in info):  # else: it is in the history
            self._frames.append(self._noisy(obs))
        return self._stacked(), *numbers, info

    def __getattr__(self, name: str) -> Any:
        if name == "_world":  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self._world, name)

    def close(self) -> None:
        self._world.close()

    def _noisy(self, obs: Any) -> Any:
        std = np.asarray(self._wrap.observation_noise)
        if not std.any():
            return obs

        def add_noise(x: np.ndarray) -> np.ndarray:
            if x.dtype == np.uint8:  # an image
                return x
            return (x + std * self._random.normal(size=x.shape)).astype(x.dtype)

        return _each(add_noise, obs)

    def _stacked(self) -> Any:
        return _each(
            lambda *frames: np.concatenate(frames, axis=0 if frames[0].ndim == 1 else -1),
            *self._frames,
        )


# -- many worlds, and the main function of a process ---------------------------------------------


class Group:
    """Worlds that one process steps one after the other. When an episode ends, the next one
    begins in the same step. Observations are written to `memory`.

    Args:
      settings: name, kwargs, keys and limit of each world, as for `Guard`.
      wrap: delay, noise and history of each world.
      deadline: deadline of the current call, shared by all worlds.
      memory: [K, O] float32 arrays for the observations of the K worlds: one array, or one for
        each key, in the order of the sorted keys.
    """

    def __init__(
        self, settings: tuple[Any, ...], wrap: Wrap, deadline: Deadline, memory: list[np.ndarray]
    ):
        self._memory, self.worlds = memory, []
        for _ in memory[0]:
            environment, kwargs, keys, limit = settings
            world = Guard(environment, kwargs, keys, limit, deadline)
            self.worlds.append(world if wrap == Wrap() else Wrapped(world, wrap))

    def reset(self, seed: int) -> list[tuple[int, str]]:
        """Starts new episodes; world i gets the seed `seed + i`. Returns failures as (index of the
        world, line)."""
        for i, world in enumerate(self.worlds):
            self._store(i, world.reset(seed=seed + i)[0])
        return self._failures()

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """One step of each world. Returns rewards, terminated and truncated, each [K]; (index of
        the world, final observation, info) of each episode that ended; and failures."""
        reward, ended = np.zeros(len(self.worlds)), []
        terminated, truncated = np.zeros((2, len(self.worlds)), bool)
        for i, (world, action) in enumerate(zip(self.worlds, actions, strict=True)):
            obs, reward[i], terminated[i], truncated[i], info = world.step(action)
            if terminated[i] or truncated[i]:
                ended.append((i, obs, info))
                obs = world.reset()[0]
            self._store(i, obs)
        return reward, terminated, truncated, ended, self._failures()

    def picture(self) -> np.ndarray:
        """A picture [H, W, 3] uint8 of the first world."""
        return self.worlds[0].picture()

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def _store(self, i: int, obs: Any) -> None:
        for stored, part in zip(self._memory, leaves(obs), strict=True):
            stored[i] = part

    def _failures(self) -> list[tuple[int, str]]:
        failures = [
            (i, message) for i, world in enumerate(self.worlds) for message in world.failures
        ]
        for world in self.worlds:
            world.failures.clear()
        return failures


class Examiner:
    """Examines an environment before training.

    Args:
      name, kwargs: as for `make`.
      deadline: deadline of the current call of a world.
      memory: not used.
    """

    def __init__(
        self, name: str, kwargs: dict[str, Any], deadline: Deadline, memory: Sequence[Any] = ()
    ):
        self._make = lambda: Guard(name, kwargs, deadline=deadline)

    def describe(self) -> dict[str, Any]:
        """The result of `Guard.describe`."""
        with contextlib.closing(self._make()) as world:
            return world.describe()

    def trial(self, steps: int = 20) -> tuple[float, bool]:
        """Median duration of a step (s), and whether two worlds in one process are independent:
        whether the first one's observations are the same with and without the second."""
        durations: list[float] = []
        single, paired = self._play(1, steps, durations), self._play(2, steps, durations)
        same = all(np.array_equal(a, b) for a, b in zip(single, paired))
        return statistics.median(durations), same

    def _play(self, count: int, steps: int, durations: list[float]) -> list[np.ndarray]:
        """Observations of the first of `count` worlds. Appends the durations (s) of all steps of
        all worlds to `durations`."""
        with contextlib.ExitStack() as stack:
            worlds = [stack.enter_context(contextlib.closing(self._make())) for _ in range(count)]
            return self._observations(worlds, steps, durations)

    def _observations(
        self, worlds: list[Guard], steps: int, durations: list[float]
    ) -> list[np.ndarray]:
        observations: list[np.ndarray] = []
        worlds[0].action_space.seed(0)
        for i, world in enumerate(worlds):
            obs, _ = world.reset(seed=i)
            observations += leaves(obs) if i == 0 else []
        for _ in range(steps):
            action = worlds[0].action_space.sample()
            for i, world in enumerate(worlds):
                start = time.perf_counter()
                obs, _, terminated, truncated, info = world.step(action)
                durations.append(time.perf_counter() - start)
                if "restarted" in info:  # later starts have another seed
                    return observations
                observations += leaves(obs) if i == 0 else []
                if terminated or truncated:
                    world.reset()
        return observations

    def close(self) -> None:
        """Does nothing: no world is kept open."""


def serve(pipe: Any, make: CloudpickleWrapper, deadline: Deadline, memory: list[Any]) -> None:
    """The main function of a process: makes an object and calls its methods on request, until
    the pipe is closed or the parent process ends.

    Args:
      pipe: receives (method, arguments); sends (result, None), or (None, error as one line).
      make: wraps the function that makes the object: (deadline, arrays [K, O]) -> object.
      deadline: deadline of the current call in this process.
      memory: (shared, rows) of each array: the arguments of `view` for the array of all
        processes, and the slice of rows that belongs to this process.
    """
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C
    made: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                make_object: Any = make.fn
                made = made or make_object(
                    deadline, [view(*shared)[rows] for shared, rows in memory]
                )
                answer: tuple[Any, str | None] = getattr(made, method)(*arguments), None
            except FAILURES as error:
                answer = None, line(error)
            pipe.send(answer)
    if made is not None:
        made.close()


def view(cells: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of this shape and type over shared memory."""
    return np.frombuffer(cells, dtype).reshape(shape)


def _end_with_parent() -> None:
    """Ends this process when its parent process ends, even if the parent is killed."""
    if sys.platform == "linux":  # works during a call of a C library too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
