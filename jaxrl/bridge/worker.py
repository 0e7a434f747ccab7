"""What runs in the processes that step Gymnasium environments; imports no JAX."""

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
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper

from jaxrl.errors import UserError, brief

# An environment that fails again at once, so often in a row, is broken and not unlucky.
MOST_RESTARTS = 3
# Times as long as a step that a construction, a reset or a picture may take.
START = 5.0
# What an environment's own code may raise; the rest is for this program to answer.
FAILURES = (Exception, SystemExit)
# Sets the random numbers of noise and delay apart from the environment's own.
NOISE = 0x6E6F697365
PR_SET_PDEATHSIG = 1


class Unusable(Exception):
    """What an environment is or does that training cannot go on with, or does not fit the
    user's settings; the message is for the user."""


class Wrap(NamedTuple):
    """Delay, noise and history, as in `jaxrl.envs.WrapConfig`."""

    action_delay: tuple[int, ...] = (0,)
    observation_noise: tuple[float, ...] = (0.0,)
    history: int = 1


class Deadline:
    """By when a world must be done with what it is at.

    Args:
      seconds: of a step; None: as long as it takes.
      cells: times of `time.monotonic()`, which whoever waits for the world reads.
      i: which of them is this one's.
    """

    def __init__(self, seconds: float | None = None, cells: Any = None, i: int = 0):
        self.seconds = math.inf if seconds is None else seconds
        self._cells, self._i = [math.inf] if cells is None else cells, i

    def allow(self, times: float = 1.0) -> None:
        """The world begins something that may take so many times as long as a step."""
        self._cells[self._i] = time.monotonic() + times * self.seconds

    def late(self) -> str:
        """What to say of a world that took longer."""
        return (
            f"took longer than env.step_timeout allows ({self.seconds:g} s; to be made or reset "
            f"{START * self.seconds:g} s)"
        )


def make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """The environment of a Gymnasium id, or of a class as "package.module:Class"."""
    module, colon, attribute = name.partition(":")
    if colon and "/" not in attribute and "-v" not in attribute:
        return getattr(importlib.import_module(module), attribute)(**kwargs)
    return gymnasium.make(name, **kwargs)


def line(error: BaseException) -> str:
    """The error in one line that is not too long."""
    told = str(error)
    if not isinstance(error, (UserError, Unusable)):
        told = f"{type(error).__name__}: {told}" if told.strip() else type(error).__name__
    return brief(told)


# -- spaces ----------------------------------------------------------------------------------


def flat_space(space: gymnasium.Space) -> spaces.Box | spaces.Dict:
    """The space of what policies get: float32 vectors, or a dictionary of them.

    Raises:
      Unusable: it cannot be made one.
    """

    def vector(part: gymnasium.Space, path: str) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (_size(part, path),), np.float32)

    if not isinstance(space, spaces.Dict):
        return vector(space, "observation")
    _size(space, "observation")
    return spaces.Dict({key: vector(p, f"observation[{key!r}]") for key, p in space.items()})


def _size(space: gymnasium.Space, path: str) -> int:
    """How many numbers an observation of the space has, once it is flat."""
    if isinstance(space, spaces.Dict):
        wrong = [key for key in space if not isinstance(key, str)]
        if wrong:
            raise Unusable(f"{path}: its space has the key {wrong[0]!r}, expected text")
        size = sum(_size(part, f"{path}[{key!r}]") for key, part in space.items())
    elif isinstance(space, spaces.Tuple):
        size = sum(_size(part, f"{path}[{i}]") for i, part in enumerate(space))
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        size = spaces.flatdim(space)
    else:
        raise Unusable(
            f"{path}: known are Box, Discrete, MultiDiscrete and MultiBinary, and Dict and Tuple "
            f"of them, but its space is {space}"
        )
    if not size:
        raise Unusable(f"{path}: its space has no numbers, it is {space}")
    return size


def flat_actions(space: gymnasium.Space) -> spaces.Box | spaces.Discrete:
    """The space of what policies give: shares in [-1, 1], or an index from 0 on.

    Raises:
      Unusable: no policy here fits it.
    """
    if isinstance(space, spaces.Discrete) and space.n > 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        if size and np.isfinite([space.low, space.high]).all():
            return spaces.Box(-1.0, 1.0, (size,), np.float32)
    raise Unusable(f"actions: known are a bounded Box and Discrete, but its space is {space}")


def _parts(space: spaces.Dict, raw: Any, path: str) -> dict[str, np.ndarray]:
    """The flat parts of a dictionary."""
    if not isinstance(raw, dict) or set(raw) != set(space):
        found = list(raw) if isinstance(raw, dict) else type(raw).__name__
        raise Unusable(f"{path}: got {found}, its space has the keys {list(space)}")
    return {key: _flatten(part, raw[key], f"{path}[{key!r}]") for key, part in space.items()}


def _flatten(space: gymnasium.Space, raw: Any, path: str) -> np.ndarray:
    """[O] float32."""
    if isinstance(space, spaces.Dict):
        return np.concatenate(list(_parts(space, raw, path).values()))
    if isinstance(space, spaces.Tuple):
        if len(raw) != len(space):
            raise Unusable(f"{path}: got {len(raw)} parts, its space has {len(space)}")
        parts = [_flatten(part, raw[i], f"{path}[{i}]") for i, part in enumerate(space)]
        return np.concatenate(parts)
    array = np.asarray(raw)
    if array.shape != space.shape or array.dtype.kind not in "fiub":
        raise Unusable(
            f"{path}: got {array.dtype} {array.shape}, its space says {space.dtype} {space.shape}"
        )
    if not isinstance(space, spaces.Box):
        array = np.asarray(spaces.flatten(space, array))
    return array.ravel().astype(np.float32)


def leaves(obs: Any) -> list[np.ndarray]:
    """The arrays of an observation, in the order of its keys."""
    return [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]


def _each(function: Callable[..., np.ndarray], *obs: Any) -> Any:
    """The function of observations, for a dictionary of each of its parts."""
    if isinstance(obs[0], dict):
        return {key: function(*(one[key] for one in obs)) for key in obs[0]}
    return function(*obs)


# -- one world ---------------------------------------------------------------------------------


class Guard:
    """An environment that neither exceptions nor bad numbers get out of.

    * An exception in `step` or `reset` is answered with a new environment, whose seed follows
      from the world's and from how often it was made anew; the episode counts as cut short by a
      time limit (`info["restarted"]`).
    * A number that is not finite ends the episode with reward 0 (`info["nonfinite"]`).
    * An observation of another shape than the space's is `Unusable`.

    Actions are shares of the action space, [-1, 1] for each component, or the index of a
    discrete one. Observations are float32.

    `info["last"]` has the last known values of some entries of the environment's `info`.

    Args:
      name, kwargs: as for `make`.
      keys: of those entries; flags count 0 or 1.
      limit: steps after which an episode is cut short; None: when the environment says so.
      deadline: that it tells of what it begins.

    Attributes:
      failures: [] a line for each time that it was made anew; who reads them clears them.
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
        self._env = self._made()
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
        self._restarts = 0  # in a row
        self._seed: int | None = None
        self._next: int | None = None  # seed of the next reset
        self._anew = 0  # times since the seed was given
        self.failures: list[str] = []
        self._obs: Any = None

    def _made(self) -> gymnasium.Env:
        self._deadline.allow(START)
        try:
            return make(self._name, self._kwargs)
        except FAILURES as error:
            raise Unusable(f"cannot be made: {line(error)}") from error

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A fresh start; a seed makes this and all later ones repeatable."""
        if seed is not None:
            self._seed, self._next, self._anew, self._restarts = seed, seed, 0, 0
        self._last, self._steps = [0.0] * len(self._keys), 0
        while True:
            try:
                self._deadline.allow(START)
                raw, _ = self._env.reset(seed=self._next)
                obs = self._checked(raw)
                if not all(np.isfinite(x).all() for x in leaves(obs)):
                    raise ValueError("the first observation is not finite")
            except Unusable:
                raise
            except FAILURES as error:
                self._again(error)
            else:
                self._obs, self._next = obs, None
                return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's."""
        try:
            self._deadline.allow()
            raw, reward, terminated, truncated, info = self._env.step(self._native(action))
            obs, reward = self._checked(raw), self._number("reward", reward)
            terminated, truncated, info = bool(terminated), bool(truncated), dict(info)
        except Unusable:
            raise
        except FAILURES as error:
            self._again(error)
            return self._obs, 0.0, False, True, {"restarted": True, "last": self._last}
        self._restarts, self._steps = 0, self._steps + 1
        if not (np.isfinite(reward) and all(np.isfinite(x).all() for x in leaves(obs))):
            return self._obs, 0.0, True, False, {"nonfinite": True, "last": self._last}
        self._obs = obs
        self._read(info, terminated or truncated)
        truncated = truncated or self._steps == self._limit  # unknown to the environment
        return obs, reward, terminated, truncated, {"last": self._last}

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        self._deadline.allow(START)
        try:
            frame = np.asarray(self._env.render())
            if frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"render() gave {frame.dtype} {frame.shape}, not [H, W, 3]")
            return frame.astype(np.uint8)
        except FAILURES as error:
            raise Unusable(f"draws no pictures: {line(error)}") from error

    def describe(self) -> dict[str, Any]:
        """What a task has to know, in plain values."""
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

    def _again(self, error: BaseException) -> None:
        """A new environment in place of the one that failed."""
        self.failures.append(line(error))
        self._restarts += 1
        if self._restarts > MOST_RESTARTS:
            raise Unusable(
                f"failed {self._restarts} times in a row, last with {line(error)}"
            ) from error
        self.close()
        self._env = self._made()
        self._anew += 1
        if self._seed is not None:
            self._next = int(np.random.SeedSequence((self._seed, self._anew)).generate_state(1)[0])

    def _read(self, info: dict[str, Any], last: bool) -> None:
        """Takes note of the wanted entries; those that are there may differ until the last."""
        for i, key in enumerate(self._keys):
            if key in info:
                self._last[i] = self._number(f"info[{key!r}]", info[key])
            elif last:
                raise Unusable(
                    f"info has no {key!r} (env.success or env.metrics) at the end of an episode, "
                    f"it has: {', '.join(map(repr, info)) or 'nothing'}"
                )

    def _number(self, what: str, value: Any) -> float:
        try:
            return float(np.asarray(value).item())
        except (TypeError, ValueError) as error:
            raise Unusable(f"{what}: got {value!r}, expected a number") from error

    def _native(self, action: Any) -> Any:
        space = self._actions
        if isinstance(space, spaces.Discrete):
            return int(space.start) + int(action)
        share = 0.5 * (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0)
        low, high = self._bounds
        return (low + share * (high - low)).reshape(space.shape).astype(space.dtype)

    def _checked(self, raw: Any) -> Any:
        if isinstance(self._space, spaces.Dict):
            return _parts(self._space, raw, "observation")
        return _flatten(self._space, raw, "observation")


class Wrapped:
    """A world behind delay, noise and history: to it what `jaxrl.envs.Wrapped` is to compiled
    tasks.

    Args:
      world: the world.
      wrap: settings that fit it.
    """

    def __init__(self, world: Guard, wrap: Wrap):
        self._world, self._wrap = world, wrap
        self.action_space = world.action_space
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """As the world's; no action has been given, and the first observation fills the
        history."""
        if seed is not None:
            self._random = np.random.default_rng((seed, NOISE))
        obs, info = self._world.reset(seed=seed)
        least, most = self._wrap.action_delay[0], self._wrap.action_delay[-1]
        self._delay = int(self._random.integers(least, most, endpoint=True))
        none = np.zeros(self.action_space.shape or (), self.action_space.dtype)
        self._actions = collections.deque([none] * (most + 1), most + 1)
        history = self._wrap.history
        self._frames = collections.deque([self._noisy(obs)] * history, history)
        return self._stacked(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the world's, under the action given `delay` steps ago."""
        self._actions.append(action)
        obs, *numbers, info = self._world.step(self._actions[-1 - self._delay])
        if not ("restarted" in info or "nonfinite" in info):  # else: what was last seen of it
            self._frames.append(self._noisy(obs))
        return self._stacked(), *numbers, info

    def __getattr__(self, name: str) -> Any:
        if name == "_world":  # not set yet: while being copied
            raise AttributeError(name)
        return getattr(self._world, name)

    def close(self) -> None:
        self._world.close()

    def _noisy(self, obs: Any) -> Any:
        std = np.asarray(self._wrap.observation_noise)
        if not std.any():
            return obs
        return _each(lambda x: (x + std * self._random.normal(size=x.shape)).astype(x.dtype), obs)

    def _stacked(self) -> Any:
        return _each(lambda *frames: np.concatenate(frames), *self._frames)


# -- many, and what a process does ---------------------------------------------------------------


class Group:
    """Worlds that one process steps, each in its turn. A world whose episode ends begins the
    next in the same step. Observations are left in `memory`.

    Args:
      settings: of each world: name, kwargs, keys and limit, as for `Guard`.
      wrap: what is around each world.
      deadline: of all of them.
      memory: [K, O] float32 arrays of the K worlds, in the order of an observation's keys.
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
        """New episodes; world i has the seed + i. Returns failures: (index, line)."""
        for i, world in enumerate(self.worlds):
            self._show(i, world.reset(seed=seed + i)[0])
        return self._failures()

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """One step of each: rewards, and whether its episode terminated or was truncated [K];
        (index, final observation, info) of each whose episode ended; failures."""
        reward, ended = np.zeros(len(self.worlds)), []
        terminated, truncated = np.zeros((2, len(self.worlds)), bool)
        for i, (world, action) in enumerate(zip(self.worlds, actions, strict=True)):
            seen, reward[i], terminated[i], truncated[i], info = world.step(action)
            if terminated[i] or truncated[i]:
                ended.append((i, seen, info))
                seen = world.reset()[0]
            self._show(i, seen)
        return reward, terminated, truncated, ended, self._failures()

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8 of the first world."""
        return self.worlds[0].picture()

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def _show(self, i: int, obs: Any) -> None:
        for whole, own in zip(self._memory, leaves(obs), strict=True):
            whole[i] = own

    def _failures(self) -> list[tuple[int, str]]:
        found = [(i, told) for i, world in enumerate(self.worlds) for told in world.failures]
        for world in self.worlds:
            world.failures.clear()
        return found


class Examiner:
    """Answers what has to be known of an environment before it is trained on.

    Args:
      name, kwargs: as for `make`.
      deadline: of its worlds.
    """

    def __init__(
        self, name: str, kwargs: dict[str, Any], deadline: Deadline, memory: Sequence[Any] = ()
    ):
        self._make = lambda: Guard(name, kwargs, deadline=deadline)

    def describe(self) -> dict[str, Any]:
        """`Guard.describe` of one."""
        with contextlib.closing(self._make()) as world:
            return world.describe()

    def trial(self, steps: int = 20) -> tuple[float, bool]:
        """Median seconds of a step, and whether two worlds in one process leave each other
        alone: whether the first takes the same steps as without the second."""
        taken: list[float] = []
        alone, beside = self._play(1, steps, taken), self._play(2, steps, taken)
        same = all(np.array_equal(a, b) for a, b in zip(alone, beside))
        return statistics.median(taken), same

    def _play(self, count: int, steps: int, taken: list[float]) -> list[np.ndarray]:
        """What the first of `count` worlds shows; seconds of all steps go to `taken`."""
        worlds, seen = [self._make() for _ in range(count)], []
        worlds[0].action_space.seed(0)
        for i, world in enumerate(worlds):
            obs, _ = world.reset(seed=i)
            seen += leaves(obs) if i == 0 else []
        for _ in range(steps):
            action = worlds[0].action_space.sample()
            for i, world in enumerate(worlds):
                begun = time.perf_counter()
                obs, _, terminated, truncated, info = world.step(action)
                taken.append(time.perf_counter() - begun)
                if "restarted" in info:  # from here on its starts are new ones
                    return seen
                seen += leaves(obs) if i == 0 else []
                if terminated or truncated:
                    world.reset()
        for world in worlds:
            world.close()
        return seen

    def close(self) -> None:
        """Nothing is left open."""


def serve(pipe: Any, make: CloudpickleWrapper, deadline: Deadline, memory: list[Any]) -> None:
    """The main function of a process: makes an object and calls its methods when asked, until
    the pipe is closed or the parent ends.

    Args:
      pipe: method and arguments come in; what it returned, or a line of what it raised, goes out.
      make: of a function: (deadline, arrays [K, O] of the process) -> object.
      deadline: of this process.
      memory: of all processes, as `view` takes them, and this one's rows: (cells, count, rows).
    """
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer to answer
    made: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                make_object: Any = make.fn
                made = made or make_object(deadline, [view(*cells)[rows] for cells, rows in memory])
                answer: tuple[Any, str | None] = getattr(made, method)(*arguments), None
            except FAILURES as error:
                answer = None, line(error)
            pipe.send(answer)
    if made is not None:
        made.close()


def view(cells: Any, count: int) -> np.ndarray:
    """[count, O] float32 array of shared memory."""
    return np.frombuffer(cells, np.float32).reshape(count, -1)


def _end_with_parent() -> None:
    """Ends this process when its parent ends, however that ends."""
    if sys.platform == "linux":  # whatever this process is at
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
