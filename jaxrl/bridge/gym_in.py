"""Gymnasium environments as tasks: `gym:Pendulum-v1`, or a class, `gym:package.module:Class`.

Such a task cannot be compiled. Its worlds step in other processes (or here, where their steps are
short), the policy and the updates stay compiled, and `HostLoop` stands in for the compiled chunk.
Learning from replay runs while the worlds step; PPO's updates need the whole rollout, and wait
for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable
from multiprocessing import sharedctypes
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.algos.base import episode_sums
from jaxrl.algos.defaults import GENERIC
from jaxrl.bridge.processes import Here, Lost, Processes, Stopped
from jaxrl.bridge.worker import Examiner, Group, Unusable, Wrap, line, view
from jaxrl.envs import ArraySpec, Timestep, WrapConfig, Wrapped
from jaxrl.envs.vector import LARGEST
from jaxrl.errors import UserError
from jaxrl.logs import known_mean
from jaxrl.options import merge, option

# Worlds of a training, which step in turn.
MOST_WORLDS = 10_000
# Worlds of an evaluation.
MOST_EVALUATED = 16
# Steps after which an evaluation no longer believes that episodes end.
LONGEST_EPISODE = 100_000
# A step of all worlds, one after the other, that is not worth handing to other processes (s).
SHORT_STEP = 5e-4
# Times that processes are lost with no end of an episode in between, after which training gives up.
MOST_REVIVALS = 5
MOST_FILMED = 60.0  # s
NO_WRAP = WrapConfig()

# Fewer worlds and longer iterations than the defaults of compiled tasks: each world is one more
# simulator on the host, and what a control step costs beside it does not shrink with their number.
HOST = {
    "ppo": {"num_envs": 16, "total_timesteps": 1_000_000, "ppo": {"num_steps": 128}},
    "sac": {"num_envs": 4, "sac": {"num_steps": 250, "gradient_steps": 2}},
    "td3": {"num_envs": 4, "td3": {"num_steps": 250, "gradient_steps": 2}},
}
PRESETS = {algo: merge(GENERIC["cpu"][algo], settings) for algo, settings in HOST.items()}


@functools.cache
def gym_class(name: str) -> type:
    """The task class of a Gymnasium id, or of "package.module:Class"."""
    return type("GymTask", (GymTask,), {"id": name, "__doc__": GymTask.__doc__})


@dataclasses.dataclass(frozen=True)
class GymTask:
    """A Gymnasium environment. Observations are flattened to float32; actions of a Box are
    scaled to its bounds.

    Raises:
      UserError: it cannot be made, or has spaces that no policy here fits.
    """

    id: ClassVar[str]
    kwargs: dict[str, Any] = option({}, "keyword arguments of the environment")
    success: str | None = option(None, "key of `info` that tells success; none: it has no success")
    metrics: tuple[str, ...] = option(
        (), "keys of `info` whose values at the end of an episode are reported"
    )
    episode_seconds: float | None = option(
        None, "time limit (s) if it is less than the environment's own", above=0
    )
    processes: int | None = option(
        None,
        "most processes that step the worlds; 0: they step in the training's own, and what kills "
        "it ends the training; none: one a core, or 0 where steps are too short to be worth it, or "
        "one a world where worlds in one process disturb each other",
        least=0,
    )
    step_timeout: float | None = option(
        60.0,
        "most seconds of a world's step (five times as long to be made or reset); after that the "
        "worlds are started again; none: no limit",
        above=0,
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": PRESETS, "gpu": PRESETS}

    def __post_init__(self) -> None:
        _ = self._probe  # complaints first

    @functools.cached_property
    def _probe(self) -> dict[str, Any]:
        """What one environment says of itself."""
        known_by = (*self._known_by, self.processes == 0)
        if known_by not in _probes:
            try:
                _probes[known_by] = self._ask("describe")
            except Unusable as error:
                raise UserError(f"env.name: gym:{self.id}: {line(error)}") from error
            except Lost as error:
                raise UserError(f"env.name: gym:{self.id}: {error} when it was tried") from error
        return _probes[known_by]

    @property
    def _known_by(self) -> tuple[str, str]:
        return self.id, json.dumps(self.kwargs, default=repr)

    def _ask(self, method: str) -> Any:
        """What `Examiner` answers, in a process of its own, or here where all is to be here."""
        make = functools.partial(Examiner, self.id, dict(self.kwargs))
        place = Here if self.processes == 0 else Processes
        with contextlib.closing(place([make], self.step_timeout)) as there:
            there.send(method, [()])
            return there.answers()[0]

    @functools.cached_property
    def trial(self) -> tuple[float, bool]:
        """`Examiner.trial`, once; of what fails, that steps take for ever."""
        if self._known_by not in _trials:
            try:
                _trials[self._known_by] = self._ask("trial")
            except (Unusable, Lost):  # it is told when training starts
                _trials[self._known_by] = math.inf, True
        return _trials[self._known_by]

    @property
    def control_dt(self) -> float:
        """Seconds of a step, from the environment's frame rate (0.02 if it tells none)."""
        return self._probe["control_dt"]

    @property
    def episode_length(self) -> int | None:
        """Steps of an episode at most; None: it ends when the environment says so."""
        if self.episode_seconds is not None:
            return max(round(self.episode_seconds / self.control_dt), 1)
        return self._probe["limit"]

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        return _spec(self._probe["observation_space"])

    @property
    def action_spec(self) -> ArraySpec:
        space = self._probe["action_space"]
        if isinstance(space, gymnasium.spaces.Discrete):
            return ArraySpec((int(space.n),), 0, 1, discrete=True)
        return ArraySpec((int(np.prod(space.shape)),), -1.0, 1.0)

    @property
    def success_criterion(self) -> str | None:
        """What success means; None if there is none."""
        return self.success and (self._probe["criterion"] or f"info[{self.success!r}] at the end")

    def make_vector(self, num_envs: int, wrap: WrapConfig = NO_WRAP) -> HostVector:
        """What steps its worlds, behind delay, noise and history."""
        if num_envs > MOST_WORLDS:
            raise UserError(
                f"num_envs: got {num_envs:,}, must be at most {MOST_WORLDS:,} worlds of a "
                "Gymnasium environment"
            )
        return HostVector(self, num_envs, wrap)

    def film(
        self, actor: Any, params: Any, seed: int, stride: int, wrap: WrapConfig = NO_WRAP
    ) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of an episode's first minute, each `stride`-th step.

        Raises:
          UserError: the environment draws none.
        """
        kwargs = {**self.kwargs, "render_mode": "rgb_array"}
        processes = 0 if self.processes == 0 else 1
        try:
            drawn = dataclasses.replace(
                self, kwargs=kwargs, processes=processes, success=None, metrics=()
            )
        except UserError as error:
            raise UserError(f"--video: gym:{self.id} draws no pictures ({error})") from error
        act, key, frames = _compiled(actor), jax.random.key(seed), []
        with contextlib.closing(drawn.make_vector(1, wrap)) as vector:
            obs = vector.start(seed)
            for step in range(math.ceil(MOST_FILMED / self.control_dt)):
                if step % stride == 0:
                    frames.append(vector.picture())
                vector.send(np.asarray(act(params, obs, key, step)))
                obs, seen = vector.receive()
                if seen.terminated[0] or seen.truncated[0]:
                    break
        return np.stack(frames)

    def make_evaluator(
        self, actor: Any, episodes: int, wrap: WrapConfig = NO_WRAP
    ) -> HostEvaluator:
        """What judges policies on it."""
        return HostEvaluator(self, actor, episodes, wrap)


def _spec(space: gymnasium.Space) -> ArraySpec | dict[str, ArraySpec]:
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _spec(part) for key, part in space.items()}
    return ArraySpec(space.shape)


@struct.dataclass
class HostState:
    """Worlds that live in other processes: what policies see of them, leaves [N, ...]."""

    obs: Any
    curriculum: None = None
    redrawn = 0  # starts are drawn again where the worlds are


# What is known of environments, by their names and arguments.
_probes: dict[tuple[Any, ...], dict[str, Any]] = {}
_trials: dict[tuple[str, str], tuple[float, bool]] = {}


class HostVector:
    """`num_envs` worlds of a Gymnasium environment, in processes that step as many each.

    A process that dies, or whose world takes too long, takes all down; they are started again,
    every episode counts as cut short by a time limit, and the restart is counted.

    Args:
      task: the environment.
      num_envs: number of worlds N.
      wrap: what is around each world.

    Attributes:
      stopped: whether training was told to stop; then no wait goes on for long (`Stopped`).
    """

    def __init__(self, task: GymTask, num_envs: int, wrap: WrapConfig = NO_WRAP):
        self.task, self.num_envs, self.wrap = task, num_envs, wrap
        self.stopped: Callable[[], bool] = lambda: False
        self.least_episode = 1  # its own time limit may come at any step
        success = (task.success,) if task.success else ()
        self._keys = (*success, *task.metrics)
        self.statistics = (
            *("return", "length", *("success" for _ in success)),
            *(f"final/{key}" for key in task.metrics),
        )
        self.restarts = 0
        self.here, self.processes = self._layout()
        self._revivals = 0
        self._envs: Processes | Here | None = None
        self._totals = np.zeros((num_envs, 2))  # return and length so far

    def _layout(self) -> tuple[bool, int]:
        """Whether the worlds step in this process, and else in how many."""
        task, count = self.task, self.num_envs
        even = [p for p in range(1, count + 1) if count % p == 0]
        if task.processes is not None:
            few = [p for p in even if p <= task.processes]
            return not few, max(few, default=1)
        seconds, independent = task.trial
        if not independent and count > 1:
            return False, count
        if independent and count * seconds < SHORT_STEP:
            return True, 1
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        fewer = max(p for p in even if p <= cores)
        # Seven worlds on four cores: rather seven processes than one.
        more = min((p for p in even if p >= cores), default=count)
        return False, fewer if 2 * fewer >= cores else more

    def observation(self) -> Any:
        """Shapes of one observation."""
        spec = Wrapped(self.task, self.wrap).observation_spec
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct(part.shape, jnp.float32),
            spec,
            is_leaf=lambda part: isinstance(part, ArraySpec),
        )

    def init(self, key: jax.Array, *, stagger: bool = True) -> HostState:
        """Stands for the worlds until `start`: zeros, since no program can start processes."""
        del key, stagger
        return HostState(
            obs=jax.tree.map(
                lambda x: jnp.zeros((self.num_envs, *x.shape), x.dtype), self.observation()
            )
        )

    def advance(self, state: HostState) -> HostState:
        """For shapes only."""
        return state

    def step(self, state: HostState, action: jax.Array) -> tuple[HostState, Timestep]:
        """For shapes only, so that a compiled iteration can be asked what it would yield."""
        number, flag = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool)
        episode = jnp.zeros((self.num_envs, len(self.statistics)))
        return state, Timestep(number, flag, flag, state.obs, flag, flag, episode, flag)

    def start(self, seed: int) -> Any:
        """Starts the processes, or new episodes in them; returns observations [N, ...].

        Raises:
          UserError: an environment cannot be made or observes what its space does not hold.
        """
        each = self.num_envs // self.processes
        self._totals[:] = 0.0
        self._seed = seed
        try:
            with self._told():
                if self._envs is None:
                    self._envs = self._started()
                self._envs.send("reset", [(seed + each * i,) for i in range(self.processes)])
                self._warn(self._envs.answers())
        except Lost as error:
            self.close()
            raise UserError(
                f"gym:{self.task.id}: {error} while the environment was made or reset"
            ) from error
        self._obs = jax.tree.map(lambda x: x.clip(-LARGEST, LARGEST), self._seen())
        return self._obs

    def _started(self) -> Processes | Here:
        """The worlds, and the memory that they leave their observations in."""
        task, wrap = self.task, Wrap(**dataclasses.asdict(self.wrap))
        settings = task.id, dict(task.kwargs), self._keys, task.episode_length
        one, self._tree = jax.tree.flatten(self.observation())
        self._memory = [
            (sharedctypes.RawArray("f", self.num_envs * math.prod(x.shape)), self.num_envs)
            for x in one
        ]
        make = functools.partial(Group, settings, wrap)
        place = Here if self.here else Processes
        return place([make] * self.processes, task.step_timeout, self.stopped, self._memory)

    def _seen(self) -> Any:
        """Observations [N, ...] that the worlds have left."""
        return jax.tree.unflatten(self._tree, [view(*cells).copy() for cells in self._memory])

    def _warn(self, failures: list[list[tuple[int, str]]]) -> None:
        """Counts the worlds that were made anew, and tells of them."""
        each = self.num_envs // self.processes
        for process, own in enumerate(failures):
            for i, error in own:
                self.restarts += 1
                world = each * process + i
                print(f"warning: world {world} was made anew after {error}", file=sys.stderr)

    def send(self, actions: np.ndarray) -> None:
        """Lets the worlds step under actions [N, A], or [N] indices; returns at once."""
        each = actions.reshape(self.processes, -1, *actions.shape[1:])
        self._envs.send("step", [(own,) for own in each])

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8 of the only world."""
        try:
            with self._told():
                self._envs.send("picture", [()])
                return self._envs.answers()[0]
        except Lost as error:
            raise UserError(f"gym:{self.task.id}: {error} while it drew a picture") from error

    def receive(self) -> tuple[Any, Timestep]:
        """Waits for the step: observations to act on next, and what came of it."""
        try:
            with self._told():
                *numbers, groups, failures = zip(*self._envs.answers())
        except Lost as error:
            return self._revive(error)
        reward, terminated, truncated = map(np.concatenate, numbers)
        self._warn(failures)
        obs = self._seen()
        final_obs = obs
        last = np.zeros((self.num_envs, len(self._keys)))
        nonfinite = np.zeros(self.num_envs, bool)
        each = self.num_envs // self.processes
        ended = [
            (each * process + i, final, told)
            for process, group in enumerate(groups)
            for i, final, told in group
        ]
        if ended:
            self._revivals = 0
            final_obs = jax.tree.map(np.copy, obs)
        for i, final, told in ended:
            jax.tree.map(lambda whole, own, i=i: whole.__setitem__(i, own), final_obs, final)
            last[i], nonfinite[i] = told["last"], told.get("nonfinite", False)
        truncated = truncated & ~terminated
        seen = [x.reshape(self.num_envs, -1) for x in jax.tree.leaves((reward, obs, final_obs))]
        out_of_range = np.any([(np.abs(x) > LARGEST).any(1) for x in seen], 0)
        if out_of_range.any():
            obs, final_obs, reward = jax.tree.map(
                lambda x: x.clip(-LARGEST, LARGEST), (obs, final_obs, reward)
            )
        step = self._timestep(reward, terminated, truncated, final_obs, nonfinite, last)
        self._obs = obs
        return obs, dataclasses.replace(step, out_of_range=out_of_range)

    def _timestep(self, reward, terminated, truncated, final_obs, nonfinite, last) -> Timestep:
        """The step, and the sums of the episodes that end with it."""
        done = terminated | truncated
        self._totals[:, 0] += reward
        self._totals[:, 1] += 1.0
        episode = np.where(done[:, None], np.hstack([self._totals, last]), 0.0)
        self._totals[done] = 0.0
        return Timestep(
            reward=np.asarray(reward, np.float32),
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            nonfinite=nonfinite,
            out_of_range=np.zeros(self.num_envs, bool),
            episode=episode.astype(np.float32),
            ended=done,
        )

    def _revive(self, error: Lost) -> tuple[Any, Timestep]:
        """Starts all processes again after one was lost."""
        self.restarts += self.num_envs
        self._revivals += 1
        if self._revivals > MOST_REVIVALS:
            raise UserError(
                f"gym:{self.task.id}: processes were lost {self._revivals} times with no end of an "
                f"episode in between, the last time since {error}"
            )
        print(f"warning: {error}; all worlds are started again", file=sys.stderr)
        before, seed = self._obs, self._seed + self.num_envs
        self.close()
        none, every = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        obs = self.start(seed)
        # Nothing is known of the step: it ends where it began, as at a time limit.
        unknown = np.zeros((self.num_envs, len(self._keys)))
        step = self._timestep(np.zeros(self.num_envs), none, every, before, none, unknown)
        return obs, dataclasses.replace(step, episode=step.episode * 0.0, ended=none)

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    @contextlib.contextmanager
    def _told(self):
        """What a world complains of, as an error for the user."""
        try:
            yield
        except (Unusable, TimeoutError) as error:
            raise UserError(f"gym:{self.task.id}: {line(error)}") from error


class HostLoop:
    """Stands in for the compiled chunk of a task whose worlds live in other processes.

    Args:
      algo: the algorithm; its vector is a `HostVector`.
      finite: of the training state, as `Population.finite`.
    """

    def __init__(self, algo: Any, finite: Any):
        self.algo = algo

        # Whatever is done once a control step is compiled whole: alone, each small operation of
        # JAX costs as much as an environment's step.
        def act(state, obs, key, t):
            return algo.act(state.replace(envs=HostState(obs=obs)), jax.random.fold_in(key, t))

        def learn(state, next_obs, steps, key, t):
            state = state.replace(envs=HostState(obs=next_obs))
            return algo.learn(state, *steps, jax.random.fold_in(key, t))

        self._act = jax.jit(act)
        self._learn = jax.jit(learn, donate_argnums=0)
        self._finite = jax.jit(finite)
        self._obs: Any = None

    def __call__(self, state: Any, count: int) -> tuple[Any, Any]:
        """`count` iterations: the state, and means of metrics, episode sums and finiteness."""
        vector, rows = self.algo.vector, []
        if self._obs is None:  # a new or a resumed run
            self._obs = vector.start(int(jax.random.bits(state.key) >> 1))
        for _ in range(count):
            state, row = self._iteration(state)
            rows.append(row)
        metrics, sums = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))
        means = {name: known_mean(values) for name, values in metrics.items()}
        return state, (means, jax.tree.map(lambda x: x.sum(0), sums), self._finite(state))

    def _iteration(self, state: Any) -> tuple[Any, tuple[dict, Any]]:
        algo, vector = self.algo, self.algo.vector
        key, key_act, key_learn = jax.random.split(state.key, 3)
        steps, sums, metrics = [], [], []
        for t in range(algo.config.num_steps):
            action, more = self._act(state, self._obs, key_act, t)
            vector.send(np.asarray(action))
            if len(steps) == algo.learns_every:  # while the worlds step
                state, metric = self._improve(state, steps, key_learn, t)
                metrics.append(metric)
                steps = []
            try:
                acted_on, (self._obs, step) = self._obs, vector.receive()
            except Stopped as stopped:
                stopped.state = state
                raise
            steps.append((acted_on, action, more, step))
            sums.append(episode_sums(step))
        state, metric = self._improve(state, steps, key_learn, algo.config.num_steps)
        metrics = jax.device_get([*metrics, metric])
        metrics = {name: known_mean(np.array([m[name] for m in metrics])) for name in metrics[0]}
        metrics["train/learning_rate"] = state.hyper.learning_rate * algo.rate(state)
        state = state.replace(key=key, iteration=state.iteration + 1)
        return state, (metrics, jax.tree.map(lambda *x: np.sum(x, 0), *sums))

    def _improve(self, state: Any, steps: list[tuple], key: jax.Array, t: int) -> tuple[Any, dict]:
        """The algorithm's updates on some control steps, stacked to leaves [T, N, ...]."""
        stacked = jax.tree.map(lambda *x: np.stack(x), *steps)
        return self._learn(state, self._obs, stacked, key, t)


class HostEvaluator:
    """Plays `episodes` episodes in processes; as `jaxrl.evaluation.Evaluator`.

    Args:
      env: the environment.
      actor: what acts.
      episodes: number of episodes E.
      wrap: what is around each world.
    """

    def __init__(self, env: GymTask, actor: Any, episodes: int, wrap: WrapConfig = NO_WRAP):
        self.episodes = episodes
        self.vector = HostVector(env, min(episodes, MOST_EVALUATED), wrap)
        self._act = _compiled(actor)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns that a call returns."""
        return self.vector.statistics

    def compile(self, params: Any) -> None:
        """Nothing: the policy alone compiles in a moment."""

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        """[E, S] statistics of the episodes."""
        vector, rows = self.vector, []
        # Each world plays its share, so that short episodes are not preferred.
        shares = np.full(vector.num_envs, self.episodes // vector.num_envs)
        shares[: self.episodes % vector.num_envs] += 1
        age = np.zeros(vector.num_envs, int)
        try:
            obs, step = vector.start(int(jax.random.bits(key) >> 1)), 0
            while (shares > 0).any():
                if age[shares > 0].max() >= LONGEST_EPISODE:
                    raise UserError(
                        f"gym:{vector.task.id}: an episode has not ended in {LONGEST_EPISODE} "
                        "steps; give them a time limit with env.episode_seconds"
                    )
                vector.send(np.asarray(self._act(params, obs, key, step)))
                obs, seen = vector.receive()
                rows.extend(seen.episode[seen.ended & (shares > 0)])
                shares = shares - seen.ended
                age, step = np.where(seen.ended, 0, age + 1), step + 1
        finally:
            vector.close()
        return np.stack(rows)


@struct.dataclass
class _Worlds:
    """As much of a task's `State` as actors read."""

    obs: Any

    @property
    def reward(self) -> jax.Array:
        return jnp.zeros(jax.tree.leaves(self.obs)[0].shape[0])


def _compiled(actor: Any) -> Any:
    """(parameters, observations [N, ...], key, step) -> actions, in one program."""
    return jax.jit(
        lambda params, obs, key, t: actor(params, _Worlds(obs), jax.random.fold_in(key, t))
    )
