"""The runtime of tasks that step on the host: their worlds are in other processes, or in this one.

The policy and the updates are compiled. SAC and TD3 learn while the worlds step; PPO's updates
need the complete rollout, and wait for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator
from multiprocessing import sharedctypes
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import platform
from jaxrl.bridge.processes import Here, Lost, Processes
from jaxrl.bridge.worker import Group, Unusable, Wrap, line, view
from jaxrl.envs import ArraySpec, Timestep, WrapConfig, Wrapped
from jaxrl.envs.vector import LARGEST, episode_sums, select
from jaxrl.errors import Stopped, UserError
from jaxrl.logs import columns, known_mean
from jaxrl.rl.rollout import Rollout, limit_slots
from jaxrl.runtime import never
from jaxrl.runtime.compiled import MAX_WORLDS as MAX_SIDE_BY_SIDE

if TYPE_CHECKING:
    from jaxrl.bridge.gym_in import GymTask
    from jaxrl.evaluation import Actor
    from jaxrl.population import Population

# Largest number of worlds of a training run.
MAX_WORLDS = 10_000
# Largest number of worlds of an evaluation.
MAX_EVALUATED = 16
# Control steps after which an evaluation gives up waiting for the end of an episode.
LONGEST_EPISODE = 100_000
# If all worlds, one after the other, step in less time (s), they step in the training process.
SHORT_STEP = 5e-4
# Largest number of restarts of lost processes without the end of an episode in between.
MAX_REVIVALS = 5
MAX_FILMED = 60.0  # longest video (s of simulated time)
NO_WRAP = WrapConfig()


class HostRuntime:
    """The runtime of a Gymnasium environment.

    Args:
      task: the environment.
      wrap: delay, noise and history of each world.
    """

    trains_populations = False
    trains_on_devices = False

    def __init__(self, task: GymTask, wrap: WrapConfig):
        self.task, self.wrap = task, wrap

    def useful_devices(self) -> int:
        return 1

    def check(self, name: str) -> None:
        """Does nothing: `Guard` checks at each step what an environment returns."""

    def worlds(self, num_envs: int, *, members: int = 1, num_devices: int = 1) -> HostVector:
        if num_envs > MAX_WORLDS:
            raise UserError(
                f"num_envs: got {num_envs:,}, must be at most {MAX_WORLDS:,} worlds of a "
                "Gymnasium environment"
            )
        return HostVector(self.task, num_envs, self.wrap)

    def training(self, population: Population) -> HostTraining:
        return HostTraining(population)

    def evaluator(
        self, actor: Actor, episodes: int, *, members: int | None = None
    ) -> HostEvaluator:
        return HostEvaluator(self.task, actor, episodes, self.wrap)

    def evaluation_bytes(self, episodes: int) -> int:
        return 0

    def max_worlds(self) -> int:
        return MAX_SIDE_BY_SIDE

    def film(self, actor: Actor, params: Any, seed: int, stride: int) -> np.ndarray:
        """As `Runtime.film`, for at most the first minute of the episode."""
        task = self.task
        kwargs = {**task.kwargs, "render_mode": "rgb_array"}
        processes = 0 if task.processes == 0 else 1
        try:
            rendered = dataclasses.replace(
                task, kwargs=kwargs, processes=processes, success=None, metrics=()
            )
        except UserError as error:
            raise UserError(f"--video: gym:{task.id} cannot be rendered ({error})") from error
        frames = []
        with contextlib.closing(HostVector(rendered, 1, self.wrap)) as vector:
            steps = Player(vector, actor).play(params, jax.random.key(seed), seed)
            for step in range(math.ceil(MAX_FILMED / task.control_dt)):
                if step % stride == 0:
                    frames.append(vector.picture())
                if next(steps).ended[0]:
                    break
        return np.stack(frames)


class HostState(struct.PyTreeNode):
    """The worlds' part of a training state: only the observations, leaves [N, ...]."""

    obs: Any


class HostVector:
    """`num_envs` worlds of a Gymnasium environment, spread evenly over processes.

    If a process dies, or one of its worlds takes too long, all processes are restarted; every
    episode then counts as cut short by a time limit, and the restarts are counted.

    Args:
      task: the environment.
      num_envs: number of worlds N.
      wrap: delay, noise and history of each world.

    Attributes:
      stopped: returns whether training was stopped; then waits soon end with `Stopped`.
      here: whether the worlds step in this process.
      processes: number of processes; 1 if the worlds step in this one.
      restarts: number of restarts of worlds so far.
    """

    def __init__(self, task: GymTask, num_envs: int, wrap: WrapConfig = NO_WRAP):
        self.task, self.num_envs, self.wrap = task, num_envs, wrap
        self.stopped: Callable[[], bool] = never
        self.devices = 1
        self.min_episode_length = 1  # the environment's own time limit may be any
        success = (task.success,) if task.success else ()
        self._keys = (*success, *task.metrics)
        self.statistics = (
            *("return", "length", *("success" for _ in success)),
            *(f"final/{key}" for key in task.metrics),
        )
        self.restarts = 0
        self.here, self.processes = self._layout()
        self._revivals = 0
        self._envs: Any = None  # Processes or Here, once they are started
        self._totals = np.zeros((num_envs, 2))  # return and length so far

    def _layout(self) -> tuple[bool, int]:
        """Whether the worlds step in this process, and the number of processes."""
        task, count = self.task, self.num_envs
        divisors = [p for p in range(1, count + 1) if count % p == 0]
        if task.processes is not None:
            allowed = [p for p in divisors if p <= task.processes]
            return not allowed, max(allowed, default=1)
        seconds, independent = task.trial
        if not independent and count > 1:
            return False, count
        if independent and count * seconds < SHORT_STEP:
            return True, 1
        cores = platform.cores()
        below = max(p for p in divisors if p <= cores)
        # With seven worlds on four cores, seven processes are better than one.
        above = min((p for p in divisors if p >= cores), default=count)
        return False, below if 2 * below >= cores else above

    def observation(self) -> Any:
        """Shapes of one observation."""
        spec = Wrapped(self.task, self.wrap).observation_spec
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype),
            spec,
            is_leaf=lambda part: isinstance(part, ArraySpec),
        )

    def init(self, key: jax.Array) -> HostState:
        """Zeros in place of observations until `start`: compiled code cannot start processes."""
        return HostState(
            obs=jax.tree.map(
                lambda x: jnp.zeros((self.num_envs, *x.shape), x.dtype), self.observation()
            )
        )

    def axes(self, state: HostState) -> HostState:
        """As `Worlds.axes`."""
        return jax.tree.map(lambda _: 0, state)

    def start(self, seed: int) -> Any:
        """Starts the processes if needed, and new episodes; returns observations [N, ...].

        Raises:
          UserError: an environment cannot be made, or its observations do not match its space.
        """
        each = self.num_envs // self.processes
        self._totals[:] = 0.0
        self._seed = seed
        try:
            with self._user_errors():
                if self._envs is None:
                    self._envs = self._make_envs()
                self._envs.send("reset", [(seed + each * i,) for i in range(self.processes)])
                self._report_restarts(self._envs.answers())
        except Lost as error:
            self.close()
            raise UserError(
                f"gym:{self.task.id}: {error} while the environment was made or reset"
            ) from error
        self._obs = jax.tree.map(_clip, self._observations())
        return self._obs

    def _make_envs(self) -> Processes | Here:
        """Makes the worlds, and the memory that they write their observations to."""
        task, wrap = self.task, Wrap(**dataclasses.asdict(self.wrap))
        settings = task.id, dict(task.kwargs), self._keys, task.episode_length
        shapes, self._tree = jax.tree.flatten(self.observation())
        self._memory = []
        for x in shapes:
            shape = (self.num_envs, *x.shape)
            cells = sharedctypes.RawArray("B", math.prod(shape) * x.dtype.itemsize)
            self._memory.append((cells, shape, x.dtype.name))
        make = functools.partial(Group, settings, wrap)
        runner = Here if self.here else Processes
        return runner([make] * self.processes, task.step_timeout, self.stopped, self._memory)

    def _observations(self) -> Any:
        """A copy of the observations [N, ...] that the worlds have written."""
        return jax.tree.unflatten(self._tree, [view(*shared).copy() for shared in self._memory])

    def _report_restarts(self, failures: list[list[tuple[int, str]]]) -> None:
        """Counts the worlds that were restarted, and prints a warning for each."""
        each = self.num_envs // self.processes
        for process, of_process in enumerate(failures):
            for i, error in of_process:
                self.restarts += 1
                world = each * process + i
                print(f"warning: world {world} was restarted after {error}", file=sys.stderr)

    def send(self, actions: np.ndarray) -> None:
        """Starts a step of the worlds with actions [N, A], or indices [N]; returns at once."""
        each = actions.reshape(self.processes, -1, *actions.shape[1:])
        self._envs.send("step", [(part,) for part in each])

    def picture(self) -> np.ndarray:
        """A picture [H, W, 3] uint8 of the only world."""
        try:
            with self._user_errors():
                self._envs.send("picture", [()])
                return self._envs.answers()[0]
        except Lost as error:
            raise UserError(f"gym:{self.task.id}: {error} while it rendered a picture") from error

    def receive(self) -> tuple[Any, Timestep]:
        """Waits for the step. Returns the observations to act on next, and its results."""
        try:
            with self._user_errors():
                answers: list[Any] = self._envs.answers()
                *results, groups, failures = map(list, zip(*answers))
        except Lost as error:
            return self._revive(error)
        reward, terminated, truncated = map(np.concatenate, results)
        self._report_restarts(failures)
        obs = self._observations()
        final_obs = obs
        last_info = np.zeros((self.num_envs, len(self._keys)))
        nonfinite = np.zeros(self.num_envs, bool)
        each = self.num_envs // self.processes
        ended = [
            (each * process + i, final, info)
            for process, group in enumerate(groups)
            for i, final, info in group
        ]
        if ended:
            self._revivals = 0
            final_obs = jax.tree.map(np.copy, obs)
        for i, final, info in ended:
            jax.tree.map(
                lambda all_worlds, one_world, i=i: all_worlds.__setitem__(i, one_world),
                final_obs,
                final,
            )
            last_info[i], nonfinite[i] = info["last"], info.get("nonfinite", False)
        truncated = truncated & ~terminated
        numbers = [x.reshape(self.num_envs, -1) for x in jax.tree.leaves((reward, obs, final_obs))]
        out_of_range = np.any([(np.abs(x) > LARGEST).any(1) for x in numbers], 0)
        if out_of_range.any():
            obs, final_obs, reward = jax.tree.map(_clip, (obs, final_obs, reward))
        step = self._timestep(reward, terminated, truncated, final_obs, nonfinite, last_info)
        self._obs = obs
        return obs, step.replace(out_of_range=out_of_range)

    def _timestep(self, reward, terminated, truncated, final_obs, nonfinite, last_info) -> Timestep:
        """The results of a step, with the statistics of the episodes that end with it."""
        done = terminated | truncated
        self._totals[:, 0] += reward
        self._totals[:, 1] += 1.0
        episode = np.where(done[:, None], np.hstack([self._totals, last_info]), 0.0)
        self._totals[done] = 0.0
        fields: dict[str, Any] = {  # NumPy arrays in place of JAX arrays
            "reward": np.asarray(reward, np.float32),
            "terminated": terminated,
            "truncated": truncated,
            "final_obs": final_obs,
            "nonfinite": nonfinite,
            "out_of_range": np.zeros(self.num_envs, bool),
            "episode": episode.astype(np.float32),
            "ended": done,
        }
        return Timestep(**fields)

    def _revive(self, error: Lost) -> tuple[Any, Timestep]:
        """Restarts all processes after one of them was lost."""
        self.restarts += self.num_envs
        self._revivals += 1
        if self._revivals > MAX_REVIVALS:
            raise UserError(
                f"gym:{self.task.id}: processes were lost {self._revivals} times before an episode "
                f"ended; the last reason: {error}"
            )
        print(f"warning: {error}; all worlds are restarted", file=sys.stderr)
        before, seed = self._obs, self._seed + self.num_envs
        self.close()
        no_world, all_worlds = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        obs = self.start(seed)
        # The step's results are lost: it counts as a time limit at the observation before it.
        unknown = np.zeros((self.num_envs, len(self._keys)))
        step = self._timestep(
            np.zeros(self.num_envs), no_world, all_worlds, before, no_world, unknown
        )
        return obs, step.replace(episode=step.episode * 0.0, ended=no_world)

    def close(self) -> None:
        """Ends the processes, also in the middle of a step."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    @contextlib.contextmanager
    def _user_errors(self):
        """Turns the errors of a world into a `UserError`."""
        try:
            yield
        except (Unusable, TimeoutError) as error:
            raise UserError(f"gym:{self.task.id}: {line(error)}") from error


def _clip(x: np.ndarray) -> np.ndarray:
    """Numbers within the range that is allowed; bytes of images as they are."""
    return x if x.dtype == np.uint8 else x.clip(-LARGEST, LARGEST)


class _Stoppable:
    """Base of classes that wait for a `HostVector`; `stopped` is that of the vector."""

    vector: Any  # a HostVector

    @property
    def stopped(self) -> Callable[[], bool]:
        return self.vector.stopped

    @stopped.setter
    def stopped(self, stopped: Callable[[], bool]) -> None:
        self.vector.stopped = stopped


# -- training ------------------------------------------------------------------------------


class HostTraining(_Stoppable):
    """Trains one run; see `jaxrl.runtime.Training`."""

    def __init__(self, population: Population):
        self.algo = algo = population.algo
        self.vector = algo.worlds
        self._init = population.init
        self._finite = jax.jit(population.finite)

        # The work of each control step is one compiled function: a small JAX operation outside of
        # it would cost as much as an environment's step.
        def act(state, obs, memory, ended, key, t):
            memory = algo.policy.forget(memory, ended)
            draw = jax.tree.map(lambda x: x[0], algo.draws(jax.random.fold_in(key, t), 1))
            acting = state.replace(envs=HostState(obs=obs), memory=memory)
            action, act_info, after = algo.act(acting, draw)
            return action, act_info, memory, after

        def learn(state, rollout, memory, key, t):
            state = state.replace(envs=HostState(obs=rollout.last_obs), memory=memory)
            return algo.learn(state, rollout, jax.random.fold_in(key, t))

        self._act = jax.jit(act)
        self._learn = jax.jit(learn, donate_argnums=0)
        self._obs: Any = None
        self._ended = np.zeros(self.vector.num_envs, bool)

    def init(self) -> Any:
        return jax.jit(self._init)()

    def compile(self, shapes: Any) -> None:
        return None

    def resume(self, state: Any) -> Any:
        print(
            "resumed without the simulators' own state: new episodes begin in all worlds",
            file=sys.stderr,
        )
        return self.algo.interrupt(state)

    def run(self, state: Any, count: int) -> tuple[Any, Any]:
        rows = []
        if self._obs is None:  # a new or a resumed run
            self._obs = self.vector.start(int(jax.random.bits(state.key) >> 1))
        for _ in range(count):
            state, row = self._iteration(state)
            rows.append(row)
        metrics, sums = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))
        means = {name: known_mean(values) for name, values in metrics.items()}
        return state, (means, jax.tree.map(lambda x: x.sum(0), sums), self._finite(state))

    def _iteration(self, state: Any) -> tuple[Any, tuple[dict, Any]]:
        algo, vector = self.algo, self.vector
        key, key_act, key_learn = jax.random.split(state.key, 3)
        steps: list[tuple] = []
        sums: list[Any] = []
        metrics: list[Any] = []
        memory = state.memory
        for t in range(algo.config.num_steps):
            action, act_info, before, memory = self._act(
                state, self._obs, memory, self._ended, key_act, t
            )
            vector.send(np.asarray(action))
            if len(steps) == algo.learns_every:  # while the worlds step
                state, metric = self._improve(state, steps, memory, key_learn, t)
                memory = state.memory
                metrics.append(metric)
                steps = []
            try:
                acted_on, (self._obs, step) = self._obs, vector.receive()
            except Stopped as stopped:
                stopped.state = state
                raise
            self._ended = step.terminated | step.truncated
            steps.append((acted_on, action, act_info, before, step))
            sums.append(episode_sums(step))
        state, metric = self._improve(state, steps, memory, key_learn, algo.config.num_steps)
        metrics = jax.device_get([*metrics, metric])
        means: dict[str, Any] = {
            name: known_mean(np.array([values[name] for values in metrics])) for name in metrics[0]
        }
        means[columns.LEARNING_RATE] = state.hyper["learning_rate"] * algo.rate(state)
        state = state.replace(key=key, iteration=state.iteration + 1)
        return state, (means, jax.tree.map(lambda *x: np.sum(x, 0), *sums))

    def _improve(
        self, state: Any, steps: list[tuple], memory: Any, key: jax.Array, t: int
    ) -> tuple[Any, dict]:
        """The algorithm's updates after the given control steps."""
        rollout = self._rollout(steps)
        return self._learn(state, rollout, memory, key, t)

    def _rollout(self, steps: list[tuple]) -> Rollout:
        """The steps as a `Rollout`, of NumPy arrays."""
        obs, action, act_info, memory, results = zip(*steps, strict=True)

        def stack(trees):
            return jax.tree.map(lambda *x: np.stack(x), *trees)

        slots = limit_slots(len(steps), self.vector.min_episode_length)
        limit_obs = jax.tree.map(lambda x: np.zeros((slots, *x.shape), x.dtype), self._obs)
        limits = np.zeros(self.vector.num_envs, int)
        for step in results:
            worlds = np.flatnonzero(step.truncated)
            jax.tree.map(
                lambda stored, x, w=worlds: stored.__setitem__((limits[w], w), x[w]),
                limit_obs,
                step.final_obs,
            )
            limits[worlds] += 1
        fields: dict[str, Any] = {
            "obs": stack(obs),
            "action": stack(action),
            "act_info": stack(act_info),
            "reward": np.stack([step.reward for step in results]),
            "terminated": np.stack([step.terminated for step in results]),
            "truncated": np.stack([step.truncated for step in results]),
            "limit_obs": limit_obs,
            "last_obs": self._obs,
            "memory": memory[0],
        }
        return Rollout(**fields)

    def counters(self) -> dict[str, float]:
        return {columns.RESTARTS: self.vector.restarts}

    def close(self) -> None:
        self.vector.close()


# -- evaluation ----------------------------------------------------------------------------


class _Worlds(struct.PyTreeNode):
    """The fields of a task's `State` that actors read."""

    obs: Any

    @property
    def reward(self) -> jax.Array:
        return jnp.zeros(jax.tree.leaves(self.obs)[0].shape[0])


class Player:
    """Steps worlds with the actions of an actor.

    Args:
      vector: the worlds.
      actor: the actor that chooses actions.
    """

    def __init__(self, vector: HostVector, actor: Actor):
        self.vector, self.actor = vector, actor

        def act(params, obs, memory, ended, key, t):
            memory = select(ended, actor.memory(vector.num_envs), memory)
            worlds: Any = _Worlds(obs)
            return actor.act(params, worlds, memory, jax.random.fold_in(key, t))

        self._act = jax.jit(act)

    def play(self, params: Any, key: jax.Array, seed: int) -> Iterator[Timestep]:
        """Starts new episodes, and returns an endless iterator over their steps.

        Args:
          params: the actor's parameters.
          key: PRNG key of the actor's random numbers.
          seed: seed of the episodes.
        """
        return self._steps(params, key, self.vector.start(seed))

    def _steps(self, params: Any, key: jax.Array, obs: Any) -> Iterator[Timestep]:
        vector, t = self.vector, 0
        memory = self.actor.memory(vector.num_envs)
        ended: Any = np.ones(vector.num_envs, bool)
        while True:
            action, memory = self._act(params, obs, memory, ended, key, t)
            vector.send(np.asarray(action))
            obs, step = vector.receive()
            ended, t = step.terminated | step.truncated, t + 1
            yield step


class HostEvaluator(_Stoppable):
    """Plays `episodes` episodes in the worlds of a `HostVector`.

    Args:
      task: the environment.
      actor: the actor that chooses actions.
      episodes: number of episodes E.
      wrap: delay, noise and history of each world.
    """

    def __init__(self, task: GymTask, actor: Actor, episodes: int, wrap: WrapConfig = NO_WRAP):
        self.episodes = episodes
        self.vector = HostVector(task, min(episodes, MAX_EVALUATED), wrap)
        self._player = Player(self.vector, actor)

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.vector.statistics

    def compile(self, params: Any) -> None:
        """Does nothing: the policy alone compiles fast."""

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        vector, rows = self.vector, list[np.ndarray]()
        # Each world plays a fixed number of episodes, so that short ones are not preferred.
        remaining = np.full(vector.num_envs, self.episodes // vector.num_envs)
        remaining[: self.episodes % vector.num_envs] += 1
        age = np.zeros(vector.num_envs, int)
        with contextlib.closing(vector):
            steps = self._player.play(params, key, int(jax.random.bits(key) >> 1))
            while (remaining > 0).any():
                if age[remaining > 0].max() >= LONGEST_EPISODE:
                    raise UserError(
                        f"gym:{vector.task.id}: an episode has not ended after {LONGEST_EPISODE} "
                        "steps; set a time limit with env.episode_seconds"
                    )
                step = next(steps)
                rows.extend(step.episode[step.ended & (remaining > 0)])
                remaining = remaining - step.ended
                age = np.where(step.terminated | step.truncated, 0, age + 1)
        return np.stack(rows)
