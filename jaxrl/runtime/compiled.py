"""The runtime of compiled tasks: training, evaluation and videos are one compiled program each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import devices, platform
from jaxrl.envs import curriculum
from jaxrl.envs.checking import check_task
from jaxrl.envs.task import Task
from jaxrl.envs.vector import MEMBERS_AXIS, EpisodeSums, Vector, episode_sums
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.rl.rollout import Rollout, limit_slots
from jaxrl.runtime import never

if TYPE_CHECKING:
    from jaxrl.algos.base import Algorithm, TrainState
    from jaxrl.evaluation import Actor
    from jaxrl.population import Population

MAX_WORLDS = 4096  # largest number of episodes that are played at the same time


class CompiledRuntime:
    """The runtime of a task whose `reset` and `step` can be compiled.

    Args:
      task: the task.
    """

    trains_populations = True
    trains_on_devices = True

    def __init__(self, task: Task):
        self.task = task

    def useful_devices(self) -> int:
        """As `Runtime.useful_devices`; a CPU's cores are devices, from which MJX gains: C MuJoCo
        uses all cores of its process anyway."""
        is_cpu = platform.target() == "cpu"
        uses_all = is_cpu and self.task.engine_name != "mjx"
        return jax.process_count() if uses_all else jax.device_count()

    def check(self, name: str) -> None:
        check_task(self.task, name)

    def worlds(self, num_envs: int, *, members: int = 1, num_devices: int = 1) -> Vector:
        return Vector(self.task, num_envs, members=members, num_devices=num_devices, training=True)

    def training(self, population: Population) -> CompiledTraining:
        return CompiledTraining(population)

    def evaluator(
        self, actor: Actor, episodes: int, *, members: int | None = None
    ) -> CompiledEvaluator:
        need, free = self.evaluation_bytes(episodes) * (members or 1), platform.free_bytes()
        if free is not None and need > free:
            raise UserError(
                f"episodes: {episodes:,} worlds side by side take at least {need / 1e9:,.1f} GB, "
                f"but {free / 1e9:,.1f} GB are free on the device; lower the number of episodes"
            )
        return CompiledEvaluator(self.task, actor, episodes, members=members)

    def evaluation_bytes(self, episodes: int) -> int:
        """Memory of the worlds before and after a step, and of one start for each world."""
        world = jax.eval_shape(self.task.reset, jax.random.key(0))
        return 3 * episodes * platform.tree_bytes(world)

    def max_worlds(self) -> int:
        """Number of worlds whose states take at most a quarter of the free memory."""
        free = platform.free_bytes()
        if free is None:
            return MAX_WORLDS
        world = jax.eval_shape(lambda key: Vector(self.task, 1).init(key), jax.random.key(0))
        return min(max(int(free / 4 / platform.tree_bytes(world)), 1), MAX_WORLDS)

    def film(self, actor: Actor, params: Any, seed: int, stride: int) -> np.ndarray:
        task = self.task

        def play(params, key):
            key, start = jax.random.split(key)
            state = jax.tree.map(lambda x: x[None], task.reset(start))

            def act(carry, t):
                state, memory, ended = carry
                action, memory = actor.act(params, state, memory, jax.random.fold_in(key, t))
                state = jax.vmap(task.step)(state, action)
                if task.sense_every:
                    due = (t + 1) % task.sense_every == 0
                    state = jax.lax.cond(due, jax.vmap(task.sense), lambda same: same, state)
                ended = ended | state.terminated[0]
                return (state, memory, ended), (state.physics, ended)

            carry = (state, actor.memory(1), jnp.zeros((), bool))
            return jax.lax.scan(act, carry, jnp.arange(task.episode_length))[1]

        physics, ended = jax.device_get(jax.jit(play)(params, jax.random.key(seed)))
        task.check_engine()
        length = int(np.argmax(ended)) + 1 if ended.any() else len(ended)
        return task.render(jax.tree.map(lambda x: x[:length, 0], physics), stride)


# -- training ------------------------------------------------------------------------------


def iterate(algo: Algorithm, state: TrainState) -> tuple[TrainState, tuple[dict, EpisodeSums]]:
    """One iteration of an algorithm whose worlds are a `Vector`: `num_steps` control steps of
    all worlds, and the updates that go with them. Returns the state, metrics and episode sums."""
    key, key_iterate = jax.random.split(state.key)
    key_iterate = devices.own(key_iterate)
    worlds: Any = algo.worlds
    envs = worlds.advance(state.envs)
    rate = state.hyper["learning_rate"] * algo.rate(state)
    rounds = algo.config.num_steps // algo.learns_every

    def collect_and_learn(state, key):
        key_act, key_learn = jax.random.split(key)
        state, rollout, episodes = collect(algo, state, key_act)
        state, metrics = algo.learn(state, rollout, key_learn)
        return state, (metrics, episodes)

    state = state.replace(envs=envs)
    if rounds == 1:
        state, (metrics, episodes) = collect_and_learn(state, key_iterate)
    else:
        keys = jax.random.split(key_iterate, rounds)
        state, (metrics, episodes) = jax.lax.scan(collect_and_learn, state, keys)
        metrics = jax.tree.map(lambda x: jnp.nanmean(x, axis=0), metrics)
        episodes = jax.tree.map(lambda x: x.sum(0), episodes)
    redrawn = state.envs.redrawn - envs.redrawn
    episodes = episodes.replace(nonfinite=episodes.nonfinite + redrawn)
    metrics, episodes = devices.mean(metrics), devices.total(episodes)
    metrics[columns.LEARNING_RATE] = rate
    if envs.curriculum is not None:
        after = curriculum.everywhere(envs.curriculum, state.envs.curriculum)
        state = state.replace(envs=state.envs.replace(curriculum=after))
        for i, level in enumerate(envs.curriculum.level):
            metrics[f"{columns.LEVEL}_{i}" if i else columns.LEVEL] = level
    return state.replace(key=key, iteration=state.iteration + 1), (metrics, episodes)


def collect(
    algo: Algorithm, state: TrainState, key: jax.Array
) -> tuple[TrainState, Rollout, EpisodeSums]:
    """Takes `learns_every` control steps of all worlds with the current policy."""
    worlds: Any = algo.worlds
    steps, envs = algo.learns_every, state.envs
    slots = limit_slots(steps, worlds.min_episode_length)
    empty = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), envs.obs)

    def step(carry, draw):
        envs, memory, limit_obs, limits = carry
        action, act_info, memory = algo.act(state.replace(envs=envs, memory=memory), draw)
        new, step = worlds.step(envs, action)
        slot = (jnp.arange(slots)[:, None] == limits) & step.truncated  # [S, N], where to write
        limit_obs = jax.tree.map(
            lambda old, x: jnp.where(slot.reshape(*slot.shape, *[1] * (x.ndim - 1)), x, old),
            limit_obs,
            step.final_obs,
        )
        memory = algo.policy.forget(memory, step.terminated | step.truncated)
        row = (envs.obs, action, act_info, step.reward, step.terminated, step.truncated)
        return (new, memory, limit_obs, limits + step.truncated), (row, episode_sums(step))

    carry = (envs, state.memory, empty, jnp.zeros(algo.num_envs, jnp.int32))
    draws = algo.draws(key, steps)
    if steps == 1:  # without a loop
        carry, (row, episodes) = step(carry, jax.tree.map(lambda x: x[0], draws))
        rows = jax.tree.map(lambda x: x[None], row)
    else:
        carry, (rows, episodes) = jax.lax.scan(step, carry, draws)
        episodes = jax.tree.map(lambda x: x.sum(0), episodes)
    envs, memory, limit_obs, _ = carry
    obs, action, act_info, reward, terminated, truncated = rows
    rollout = Rollout(
        obs=obs,
        action=action,
        act_info=act_info,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        limit_obs=limit_obs,
        last_obs=envs.obs,
        memory=state.memory,
    )
    return state.replace(envs=envs, memory=memory), rollout, episodes


class CompiledTraining:
    """Trains the runs of a population; see `jaxrl.runtime.Training`."""

    def __init__(self, population: Population):
        self.population = population
        self.stopped: Callable[[], bool] = never  # a chunk always runs to its end
        self._chunk: Any = None

    def init(self) -> Any:
        # It runs once, so the time to compile it matters more than its speed.
        quick = {"xla_backend_optimization_level": 0} if platform.target() == "cpu" else None
        return jax.jit(self.population.init, compiler_options=quick)()

    def resume(self, state: Any) -> Any:
        return self.population.spread(state)

    def run(self, state: Any, count: int) -> tuple[Any, Any]:
        if self._chunk is None:
            self._chunk = self._program()
            # Arrays of a restored or new state may share buffers, which donation does not allow.
            # The replay shares none, and is not copied, since it may fill the device.
            small = jax.jit(lambda x: jax.tree.map(jnp.copy, x))(state.replace(replay=None))
            state = small.replace(replay=state.replay)
        return self._chunk(state, count)

    def compile(self, shapes: Any) -> Any:
        return self._program().lower(shapes, 1).compile()

    def _program(self) -> Any:
        return jax.jit(self.population.on_devices(self._iterations), donate_argnums=0)

    def _iterations(self, state: Any, count: jax.Array) -> tuple[Any, Any]:
        """One compiled program for every `count`; it reuses the buffers of the state."""
        step = jax.jit(self.population.step, inline=True)  # traced once for both uses

        def iteration(_, carry):
            state, totals = carry
            state, (metrics, episodes) = step(state)
            return state, jax.tree.map(jnp.add, totals, (_sum_and_count(metrics), episodes))

        metrics, episodes = jax.eval_shape(step, state)[1]
        totals = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            (jax.eval_shape(_sum_and_count, metrics), episodes),
        )
        state, (sums, episodes) = jax.lax.fori_loop(0, count, iteration, (state, totals))
        means = {name: total / number for name, (total, number) in sums.items()}
        return state, (means, episodes, self.population.finite(state))

    def counters(self) -> dict[str, float]:
        self.population.algo.task.check_engine()
        return {}

    def close(self) -> None:
        """Does nothing: no processes were started."""


def _sum_and_count(metrics: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Each metric as a sum and the number of its terms; NaN counts as no term."""
    return {
        name: (jnp.where(jnp.isnan(value), 0.0, value), 1.0 - jnp.isnan(value))
        for name, value in metrics.items()
    }


# -- evaluation ----------------------------------------------------------------------------


class CompiledEvaluator:
    """Plays `episodes` episodes, one in each world, as one compiled program.

    Args:
      task: the task; the evaluator has its own worlds, separate from those of training.
      actor: the actor that chooses actions.
      episodes: number of episodes E.
      members: number of policies that are evaluated at once; parameters, keys and results then
        begin with an axis of this size. None: a single policy, without this axis.
    """

    def __init__(self, task: Task, actor: Actor, episodes: int, *, members: int | None = None):
        self.vector = Vector(task, episodes, members=members or 1)
        self.actor = actor
        self.episodes = episodes
        self.stopped: Callable[[], bool] = never
        self._members = () if members is None else (members,)
        play = self._episodes
        if members is not None:
            play = jax.vmap(play, axis_name=MEMBERS_AXIS)
        self._play: Any = jax.jit(play)

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.vector.statistics

    def compile(self, params: Any) -> None:
        keys = jnp.broadcast_to(jax.random.key(0), self._members)
        self._play = self._play.lower(params, keys).compile()

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        table = np.asarray(self._play(devices.first(params), key))
        self.vector.env.check_engine()
        return table

    def _episodes(self, params: Any, key: jax.Array) -> jax.Array:
        key_start, key_act = jax.random.split(key)
        envs = self.vector.init(key_start, stagger=False)
        table = jnp.zeros((self.episodes, len(self.statistics)))

        def act(carry):
            t, envs, memory, ended, table = carry
            key = jax.random.fold_in(key_act, t)
            action, memory = self.actor.act(params, envs.worlds, memory, key)
            envs, step = self.vector.step(envs, action)
            first = step.ended & ~ended
            table = jnp.where(first[:, None], step.episode, table)
            return t + 1, envs, memory, ended | step.ended, table

        # Only each world's first episode counts, so the memory is never reset.
        memory, ended = self.actor.memory(self.episodes), jnp.zeros(self.episodes, bool)
        start = (jnp.zeros((), jnp.int32), envs, memory, ended, table)
        return jax.lax.while_loop(lambda carry: ~carry[3].all(), act, start)[4]
