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
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from jaxrl.algos.base import episode_sums
from jaxrl.bridge.worker import BadObservation, Group, Guard, trial
from jaxrl.envs import ArraySpec, Timestep
from jaxrl.errors import UserError
from jaxrl.logs import known_mean
from jaxrl.options import option

# Worlds of a training, which step in turn.
MOST_WORLDS = 10_000
# Worlds of an evaluation.
MOST_EVALUATED = 16
# Steps after which an evaluation no longer believes that episodes end.
LONGEST_EPISODE = 100_000
# How processes start: not as copies of this one, whose threads would be missing in them.
CONTEXT = "forkserver" if sys.platform == "linux" else "spawn"
# A step of all worlds, one after the other, that is not worth handing to other processes (s).
SHORT_STEP = 5e-4
# Deaths of processes with no end of an episode in between, after which training gives up.
MOST_REVIVALS = 5
MOST_FILMED = 60.0  # s
# What the pipes to a process that has died raise.
LOST = (EOFError, BrokenPipeError, ConnectionResetError)


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

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {"num_envs": 8, "chunk": 1, "ppo": {"num_steps": 128, "learning_rate": 3e-4}},
            "sac": {"num_envs": 4, "chunk": 1, "sac": {"num_steps": 250, "gradient_steps": 4}},
            "td3": {"num_envs": 4, "chunk": 1, "td3": {"num_steps": 250, "gradient_steps": 4}},
        }
    }

    def __post_init__(self) -> None:
        space = self._probe["action_space"]
        bounded = (
            isinstance(space, gymnasium.spaces.Box) and np.isfinite([space.low, space.high]).all()
        )
        if not bounded and not isinstance(space, gymnasium.spaces.Discrete):
            raise UserError(
                f"env.name: gym:{self.id} has actions {space}; known are a bounded Box and Discrete"
            )

    @functools.cached_property
    def _probe(self) -> dict[str, Any]:
        """What one environment says of itself."""
        try:
            env = Guard(self.id, dict(self.kwargs))
        except TypeError as error:
            raise UserError(f"env: gym:{self.id}: {error}") from error
        except (gymnasium.error.Error, ImportError, AttributeError) as error:
            raise UserError(f"env.name: gym:{self.id} cannot be made: {error}") from error
        except (Exception, SystemExit) as error:  # whatever its module or constructor does
            raise UserError(
                f"env.name: gym:{self.id} cannot be made: {type(error).__name__}: {error}"
            ) from error
        try:
            spec, fps = env._env.spec, env._env.metadata.get("render_fps")
            return {
                "observation_space": env.observation_space,
                "action_space": env._actions,
                "limit": spec.max_episode_steps if spec else None,
                "control_dt": 1.0 / fps if fps else 0.02,
                "criterion": getattr(env._env.unwrapped, "success_criterion", None),
            }
        finally:
            env.close()

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

    def make_vector(self, num_envs: int) -> HostVector:
        """What steps its worlds."""
        if num_envs > MOST_WORLDS:
            raise UserError(
                f"num_envs: got {num_envs:,}, must be at most {MOST_WORLDS:,} worlds of a "
                "Gymnasium environment"
            )
        return HostVector(self, num_envs)

    def film(self, actor: Any, params: Any, seed: int, stride: int) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of an episode's first minute, each `stride`-th step.

        Raises:
          UserError: the environment draws none.
        """
        act, key = _compiled(actor), jax.random.key(seed)
        frames, over, step = [], False, 0
        settings = {**self.kwargs, "render_mode": "rgb_array"}
        with contextlib.ExitStack() as stack:
            try:
                env = Guard(self.id, settings, (), self.episode_length)
                stack.callback(env.close)
                obs, _ = env.reset(seed=seed)
                while not over and step * self.control_dt < MOST_FILMED:
                    if step % stride == 0:
                        frames.append(np.asarray(env.render(), np.uint8))
                    action = act(params, jax.tree.map(lambda x: x[None], obs), key, step)
                    obs, _, terminated, truncated, _ = env.step(np.asarray(action)[0])
                    over, step = terminated or truncated, step + 1
            except (gymnasium.error.Error, TypeError, ValueError, AssertionError) as error:
                raise UserError(f"--video: gym:{self.id} draws no pictures: {error}") from error
        return np.stack(frames)

    def make_evaluator(self, actor: Any, episodes: int) -> HostEvaluator:
        """What judges policies on it."""
        return HostEvaluator(self, actor, episodes)


def _spec(space: gymnasium.Space) -> ArraySpec | dict[str, ArraySpec]:
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _spec(part) for key, part in space.items()}
    return ArraySpec(space.shape)


@struct.dataclass
class HostState:
    """Worlds that live in other processes: what policies see of them, leaves [N, ...]."""

    obs: Any
    curriculum: None = None


_trials: dict[tuple[str, str], tuple[float, bool]] = {}


def _trial(task: GymTask) -> tuple[float, bool]:
    """`worker.trial` in a process of its own, once; of what fails, that steps take for ever."""
    known_by = task.id, json.dumps(task.kwargs, default=repr)
    if known_by not in _trials:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(CONTEXT)) as pool:
            try:
                result = pool.submit(trial, task.id, dict(task.kwargs)).result()
            except Exception:  # whatever it is, it is told when training starts
                result = (math.inf, True)
        _trials[known_by] = result
    return _trials[known_by]


class HostVector:
    """`num_envs` worlds of a Gymnasium environment, in processes that step as many each.

    A process that dies takes all down; they are started again, every episode counts as cut
    short by a time limit, and the restart is counted.

    Args:
      task: the environment.
      num_envs: number of worlds N.
    """

    def __init__(self, task: GymTask, num_envs: int):
        self.task, self.num_envs = task, num_envs
        self.least_episode = 1  # its own time limit may come at any step
        success = (task.success,) if task.success else ()
        self._keys = (*success, *task.metrics)
        self.statistics = (
            *("return", "length", *("success" for _ in success)),
            *(f"final/{key}" for key in task.metrics),
        )
        self.restarts = 0
        self.here, self.processes = self._layout()
        self._revivals, self._lost = 0, False
        self._envs: AsyncVectorEnv | _Here | None = None
        self._totals = np.zeros((num_envs, 2))  # return and length so far

    def _layout(self) -> tuple[bool, int]:
        """Whether the worlds step in this process, and else in how many."""
        task, count = self.task, self.num_envs
        even = [p for p in range(1, count + 1) if count % p == 0]
        if task.processes is not None:
            few = [p for p in even if p <= task.processes]
            return not few, max(few, default=1)
        seconds, independent = _trial(task)
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
        spec = self.task.observation_spec
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

    def refill(self, state: HostState, key: jax.Array) -> HostState:
        """For shapes only."""
        return state

    def step(self, state: HostState, action: jax.Array) -> tuple[HostState, Timestep]:
        """For shapes only, so that a compiled iteration can be asked what it would yield."""
        number, flag = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool)
        episode = jnp.zeros((self.num_envs, len(self.statistics)))
        return state, Timestep(number, flag, flag, state.obs, flag, episode, flag)

    def start(self, seed: int) -> Any:
        """Starts the processes, or new episodes in them; returns observations [N, ...].

        Raises:
          UserError: an environment cannot be made or observes what its space does not hold.
        """
        each = self.num_envs // self.processes
        task = self.task
        make = functools.partial(
            Group, each, task.id, dict(task.kwargs), self._keys, task.episode_length
        )
        self._totals[:] = 0.0
        self._seed, self._lost = seed, False
        try:
            with self._told():
                if self._envs is None and self.here:
                    self._envs = _Here(make())
                elif self._envs is None:
                    # A group resets its own worlds.
                    self._envs = AsyncVectorEnv(
                        [make] * self.processes,
                        context=CONTEXT,
                        autoreset_mode=AutoresetMode.DISABLED,
                    )
                obs = self._envs.reset(seed=[seed + each * i for i in range(self.processes)])[0]
        except LOST as error:
            self.close()
            raise UserError(
                f"gym:{task.id}: a process died while it made or reset the environment"
            ) from error
        self._obs = self._flat(obs)
        return self._obs

    def _flat(self, tree: Any) -> Any:
        """Leaves [N, ...] from [processes, N / processes, ...]."""
        return jax.tree.map(lambda x: x.reshape(self.num_envs, *x.shape[2:]), tree)

    def send(self, actions: np.ndarray) -> None:
        """Lets the worlds step under actions [N, A], or [N] indices; returns at once."""
        try:
            with self._told():
                self._envs.step_async(actions.reshape(self.processes, -1, *actions.shape[1:]))
        except LOST:
            self._lost = True

    def receive(self) -> tuple[Any, Timestep]:
        """Waits for the step: observations to act on next, and what came of it."""
        if self._lost:
            return self._revive()
        try:
            with self._told():
                obs, *numbers, infos = self._envs.step_wait()
        except LOST:
            return self._revive()
        obs, reward, terminated, truncated = self._flat((obs, *numbers))
        final_obs = obs
        last = np.zeros((self.num_envs, len(self._keys)))
        nonfinite = np.zeros(self.num_envs, bool)
        each = self.num_envs // self.processes
        ended = [
            (each * process + i, final, told)
            for process, group in enumerate(infos.get("ended", ()))
            for i, final, told in group or ()
        ]
        if ended:
            self._revivals = 0
            final_obs = jax.tree.map(np.copy, obs)
        for i, final, told in ended:
            jax.tree.map(lambda whole, own, i=i: whole.__setitem__(i, own), final_obs, final)
            last[i], nonfinite[i] = told["last"], told.get("nonfinite", False)
            if told.get("restarted"):
                self.restarts += 1
                print(f"warning: world {i} was made anew after {told['error']}", file=sys.stderr)
        truncated = truncated & ~terminated
        step = self._timestep(reward, terminated, truncated, final_obs, nonfinite, last)
        self._obs = obs
        return obs, step

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
            episode=episode.astype(np.float32),
            ended=done,
        )

    def _revive(self) -> tuple[Any, Timestep]:
        """Starts all processes again after one has died."""
        self.restarts += self.num_envs
        self._revivals += 1
        if self._revivals > MOST_REVIVALS:
            raise UserError(
                f"gym:{self.task.id}: processes that step it died {self._revivals} times, and no "
                "episode ended in between"
            )
        print(
            "warning: a process that steps an environment died; all are started again",
            file=sys.stderr,
        )
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
        if self._envs is None:
            return
        if isinstance(self._envs, _Here):
            self._envs.close()
        else:
            for process in self._envs.processes:
                process.terminate()
                process.join()
            self._envs.closed = True  # its own way of closing waits for those that died
        self._envs = None

    @contextlib.contextmanager
    def _told(self):
        """What a world complains of, as an error for the user."""
        # Gymnasium would print a page first.
        level, gymnasium.logger.min_level = gymnasium.logger.min_level, 1000
        try:
            yield
        except (BadObservation, RuntimeError) as error:
            raise UserError(f"gym:{self.task.id}: {error}") from error
        finally:
            gymnasium.logger.min_level = level


class _Here:
    """A group of worlds in this process, as an `AsyncVectorEnv` of one.

    Args:
      group: the worlds.
    """

    def __init__(self, group: Group):
        self._group = group

    def reset(self, *, seed: list[int]) -> tuple[Any, dict[str, Any]]:
        return jax.tree.map(lambda x: x[None], self._group.reset(seed=seed[0]))

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions[0]

    def step_wait(self) -> tuple[Any, ...]:
        *arrays, info = self._group.step(self._actions)
        return *jax.tree.map(lambda x: x[None], arrays), {k: [v] for k, v in info.items()}

    def close(self) -> None:
        self._group.close()


class HostLoop:
    """Stands in for the compiled chunk of a task whose worlds live in other processes.

    Args:
      algo: the algorithm; its vector is a `HostVector`.
      chunk: iterations in one call.
      finite: of the training state, as `Population.finite`.
    """

    def __init__(self, algo: Any, chunk: int, finite: Any):
        self.algo, self.chunk = algo, chunk

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

    def __call__(self, state: Any) -> tuple[Any, Any]:
        """`chunk` iterations: the state, and metrics, episode sums and finiteness of them."""
        vector, rows = self.algo.vector, []
        if self._obs is None:  # a new or a resumed run
            self._obs = vector.start(int(jax.random.bits(state.key) >> 1))
        for _ in range(self.chunk):
            state, row = self._iteration(state)
            rows.append(row)
        metrics, sums = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))
        return state, (metrics, sums, self._finite(state))

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
            acted_on, (self._obs, step) = self._obs, vector.receive()
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
    """

    def __init__(self, env: GymTask, actor: Any, episodes: int):
        self.episodes = episodes
        self.vector = HostVector(env, min(episodes, MOST_EVALUATED))
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
