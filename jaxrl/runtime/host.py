"""Tasks that step on the host: their worlds live in other processes, or in this one.

The policy and the updates are compiled. Learning from replay runs while the worlds step; PPO's
updates need the whole rollout, and wait for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import sharedctypes
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.bridge.processes import Here, Lost, Processes
from jaxrl.bridge.worker import Group, Unusable, Wrap, line, view
from jaxrl.envs import ArraySpec, Timestep, WrapConfig, Wrapped
from jaxrl.envs.vector import LARGEST, episode_sums, select
from jaxrl.errors import Stopped, UserError
from jaxrl.logs import columns, known_mean
from jaxrl.rl.rollout import Rollout, limit_slots
from jaxrl.runtime import never
from jaxrl.runtime.compiled import MOST_WORLDS as MOST_SIDE_BY_SIDE

if TYPE_CHECKING:
    from jaxrl.bridge.gym_in import GymTask
    from jaxrl.evaluation import Actor
    from jaxrl.population import Population

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


class HostRuntime:
    """The runtime of a Gymnasium environment.

    Args:
      task: the environment.
      wrap: what is around each world.
    """

    trains_populations = False

    def __init__(self, task: GymTask, wrap: WrapConfig):
        self.task, self.wrap = task, wrap

    def check(self, name: str) -> None:
        """Nothing: the worlds look at whatever an environment gives them."""

    def worlds(self, num_envs: int, *, members: int = 1) -> HostVector:
        if num_envs > MOST_WORLDS:
            raise UserError(
                f"num_envs: got {num_envs:,}, must be at most {MOST_WORLDS:,} worlds of a "
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

    def most_side_by_side(self) -> int:
        return MOST_SIDE_BY_SIDE

    def film(self, actor: Actor, params: Any, seed: int, stride: int) -> np.ndarray:
        """As `Runtime.film`, of an episode's first minute."""
        task = self.task
        kwargs = {**task.kwargs, "render_mode": "rgb_array"}
        processes = 0 if task.processes == 0 else 1
        try:
            drawn = dataclasses.replace(
                task, kwargs=kwargs, processes=processes, success=None, metrics=()
            )
        except UserError as error:
            raise UserError(f"--video: gym:{task.id} draws no pictures ({error})") from error
        frames = []
        with contextlib.closing(HostVector(drawn, 1, self.wrap)) as vector:
            played = Player(vector, actor).play(params, jax.random.key(seed), seed)
            for step in range(math.ceil(MOST_FILMED / task.control_dt)):
                if step % stride == 0:
                    frames.append(vector.picture())
                if next(played).ended[0]:
                    break
        return np.stack(frames)


class HostState(struct.PyTreeNode):
    """Worlds that live in other processes: what policies see of them, leaves [N, ...]."""

    obs: Any


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
        self.stopped: Callable[[], bool] = never
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
        self._envs: Any = None  # Processes or Here, once they are started
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

    def init(self, key: jax.Array) -> HostState:
        """Zeros that stand for the worlds until `start`, since no program starts processes."""
        return HostState(
            obs=jax.tree.map(
                lambda x: jnp.zeros((self.num_envs, *x.shape), x.dtype), self.observation()
            )
        )

    def start(self, seed: int) -> Any:
        """Starts the processes, or new episodes in them; returns observations [N, ...].

        Raises:
          UserError: an environment cannot be made or observes what its space does not hold.
        """
        each = self.num_envs // self.processes
        self._totals[:] = 0.0
        self._seed = seed
        try:
            with self._user_errors():
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
            with self._user_errors():
                self._envs.send("picture", [()])
                return self._envs.answers()[0]
        except Lost as error:
            raise UserError(f"gym:{self.task.id}: {error} while it drew a picture") from error

    def receive(self) -> tuple[Any, Timestep]:
        """Waits for the step: observations to act on next, and what came of it."""
        try:
            with self._user_errors():
                answers: list[Any] = self._envs.answers()
                *numbers, groups, failures = map(list, zip(*answers))
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
            (each * process + i, final, info)
            for process, group in enumerate(groups)
            for i, final, info in group
        ]
        if ended:
            self._revivals = 0
            final_obs = jax.tree.map(np.copy, obs)
        for i, final, info in ended:
            jax.tree.map(lambda whole, own, i=i: whole.__setitem__(i, own), final_obs, final)
            last[i], nonfinite[i] = info["last"], info.get("nonfinite", False)
        truncated = truncated & ~terminated
        seen = [x.reshape(self.num_envs, -1) for x in jax.tree.leaves((reward, obs, final_obs))]
        out_of_range = np.any([(np.abs(x) > LARGEST).any(1) for x in seen], 0)
        if out_of_range.any():
            obs, final_obs, reward = jax.tree.map(
                lambda x: x.clip(-LARGEST, LARGEST), (obs, final_obs, reward)
            )
        step = self._timestep(reward, terminated, truncated, final_obs, nonfinite, last)
        self._obs = obs
        return obs, step.replace(out_of_range=out_of_range)

    def _timestep(self, reward, terminated, truncated, final_obs, nonfinite, last) -> Timestep:
        """The step, and the sums of the episodes that end with it."""
        done = terminated | truncated
        self._totals[:, 0] += reward
        self._totals[:, 1] += 1.0
        episode = np.where(done[:, None], np.hstack([self._totals, last]), 0.0)
        self._totals[done] = 0.0
        fields: dict[str, Any] = {  # NumPy's arrays stand for JAX's
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
        return obs, step.replace(episode=step.episode * 0.0, ended=none)

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    @contextlib.contextmanager
    def _user_errors(self):
        """What a world complains of, as an error for the user."""
        try:
            yield
        except (Unusable, TimeoutError) as error:
            raise UserError(f"gym:{self.task.id}: {line(error)}") from error


class _Stoppable:
    """What waits for worlds, and is told to stop through them."""

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

        # Whatever is done once a control step is compiled whole: alone, each small operation of
        # JAX costs as much as an environment's step.
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

    def resume(self, state: Any) -> Any:
        print(
            "resumed but for the simulators' own state: new episodes begin in all worlds",
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
        each = jax.device_get([*metrics, metric])
        means: dict[str, Any] = {n: known_mean(np.array([m[n] for m in each])) for n in each[0]}
        means[columns.LEARNING_RATE] = state.hyper["learning_rate"] * algo.rate(state)
        state = state.replace(key=key, iteration=state.iteration + 1)
        return state, (means, jax.tree.map(lambda *x: np.sum(x, 0), *sums))

    def _improve(
        self, state: Any, steps: list[tuple], memory: Any, key: jax.Array, t: int
    ) -> tuple[Any, dict]:
        """The algorithm's updates on some control steps."""
        rollout = self._rollout(steps)
        return self._learn(state, rollout, memory, key, t)

    def _rollout(self, steps: list[tuple]) -> Rollout:
        """The steps side by side; what a `Rollout` is made of in a compiled program."""
        obs, action, act_info, memory, results = zip(*steps, strict=True)

        def stack(trees):
            return jax.tree.map(lambda *x: np.stack(x), *trees)

        slots = limit_slots(len(steps), self.vector.least_episode)
        limit_obs = jax.tree.map(lambda x: np.zeros((slots, *x.shape), x.dtype), self._obs)
        limits = np.zeros(self.vector.num_envs, int)
        for step in results:
            worlds = np.flatnonzero(step.truncated)
            jax.tree.map(
                lambda kept, x, w=worlds: kept.__setitem__((limits[w], w), x[w]),
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
    """As much of a task's `State` as actors read."""

    obs: Any

    @property
    def reward(self) -> jax.Array:
        return jnp.zeros(jax.tree.leaves(self.obs)[0].shape[0])


class Player:
    """Steps worlds under an actor.

    Args:
      vector: the worlds.
      actor: what acts.
    """

    def __init__(self, vector: HostVector, actor: Actor):
        self.vector, self.actor = vector, actor

        def act(params, obs, memory, ended, key, t):
            memory = select(ended, actor.memory(vector.num_envs), memory)
            worlds: Any = _Worlds(obs)
            return actor.act(params, worlds, memory, jax.random.fold_in(key, t))

        self._act = jax.jit(act)

    def play(self, params: Any, key: jax.Array, seed: int) -> Iterator[Timestep]:
        """Starts new episodes, and returns their steps, without end.

        Args:
          params: what the actor takes.
          key: of what the actor draws.
          seed: of the episodes.
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
    """Plays `episodes` episodes in processes.

    Args:
      task: the environment.
      actor: what acts.
      episodes: number of episodes E.
      wrap: what is around each world.
    """

    def __init__(self, task: GymTask, actor: Actor, episodes: int, wrap: WrapConfig = NO_WRAP):
        self.episodes = episodes
        self.vector = HostVector(task, min(episodes, MOST_EVALUATED), wrap)
        self._player = Player(self.vector, actor)

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.vector.statistics

    def compile(self, params: Any) -> None:
        """Nothing: the policy alone compiles in a moment."""

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        vector, rows = self.vector, list[np.ndarray]()
        # Each world plays its share, so that short episodes are not preferred.
        shares = np.full(vector.num_envs, self.episodes // vector.num_envs)
        shares[: self.episodes % vector.num_envs] += 1
        age = np.zeros(vector.num_envs, int)
        with contextlib.closing(vector):
            played = self._player.play(params, key, int(jax.random.bits(key) >> 1))
            while (shares > 0).any():
                if age[shares > 0].max() >= LONGEST_EPISODE:
                    raise UserError(
                        f"gym:{vector.task.id}: an episode has not ended in {LONGEST_EPISODE} "
                        "steps; give them a time limit with env.episode_seconds"
                    )
                step = next(played)
                rows.extend(step.episode[step.ended & (shares > 0)])
                shares = shares - step.ended
                age = np.where(step.ended, 0, age + 1)
        return np.stack(rows)
