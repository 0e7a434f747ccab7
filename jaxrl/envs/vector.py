"""Many worlds side by side: time limit, fresh resets, non-finite worlds, statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import platform
from jaxrl.envs import curriculum
from jaxrl.envs.curriculum import CurriculumConfig, CurriculumState
from jaxrl.envs.env import Env, State

# Worlds stepped at a time on a CPU. The intermediate values of so many stay in its cache;
# thousands at once are 1.7 times slower (ballbot).
CPU_BLOCK = 128


@struct.dataclass
class VectorState:
    """`N` worlds between two steps.

    Attributes:
      worlds: the task's states, leaves [N, ...].
      fresh: unused starts, leaves [R, N, ...]; world i uses fresh[0, i] first.
      used: [N] int32, starts that each world took from `fresh`.
      steps: [N] int32, control steps against the time limit.
      whole: [N] bool, the episode began at step 0 (the first ones are staggered).
      totals: [N, 2 + M] running sums of return, length and the task's metrics.
      curriculum: where the task's curriculum stands, if it has one and this is training.
    """

    worlds: State
    fresh: State
    used: jax.Array
    steps: jax.Array
    whole: jax.Array
    totals: jax.Array
    curriculum: CurriculumState | None = None

    @property
    def obs(self) -> Any:
        return self.worlds.obs


@struct.dataclass
class Timestep:
    """What one step of `N` worlds yields; every leaf begins with [N].

    Attributes:
      reward: [N].
      terminated: [N] bool; the task ended.
      truncated: [N] bool; the time limit ended it, and only that.
      final_obs: observation that the action led to, before any reset.
      nonfinite: [N] bool; the simulation diverged (counted as terminated, reward 0).
      episode: [N, 2 + M] statistics of the episodes that ended here, zero elsewhere;
        columns as `Vector.statistics`.
      ended: [N] bool; a whole episode ended here, so `episode` counts.
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: Any
    nonfinite: jax.Array
    episode: jax.Array
    ended: jax.Array


class Vector:
    """`num_envs` copies of a task.

    Args:
      env: the task.
      num_envs: number of worlds N.
      starts: fresh starts R kept for each world between two calls of `refill`. A world
        that ends more often than that begins to reuse its own; two episodes in a row
        never begin alike. At least 2.
      members: how many such vectors are stepped side by side under `vmap`.
      training: starts follow the task's curriculum; else they have its full difficulty.

    Raises:
      UserError: a curriculum that does not fit the task.
    """

    def __init__(
        self,
        env: Env,
        num_envs: int,
        *,
        starts: int = 2,
        members: int = 1,
        training: bool = False,
    ):
        if starts < 2:
            raise ValueError(f"Vector starts: got {starts}, must be at least 2")
        self.env = env
        self.num_envs = num_envs
        self.least_episode = env.episode_length  # control steps between two time limits
        self.starts = starts
        self.block = max(CPU_BLOCK // members, 1)
        metrics = jax.eval_shape(env.reset, jax.random.key(0)).metrics
        self.metric_names = tuple(sorted(metrics))
        self.curriculum: CurriculumConfig | None = None
        if training:
            self.curriculum = getattr(env, "curriculum", None)
        if self.curriculum:
            self.curriculum.check("env.curriculum", self.statistics)

    def observation(self) -> Any:
        """Shapes of one observation."""
        return jax.eval_shape(self.env.reset, jax.random.key(0)).obs

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns of `Timestep.episode`."""
        return ("return", "length", *self.metric_names)

    def init(self, key: jax.Array, *, stagger: bool = True) -> VectorState:
        """All worlds at fresh starts.

        Args:
          key: PRNG key.
          stagger: begin the first episodes at random steps of the time limit, so that
            they do not all end together; such episodes enter no statistics.
        """
        key_worlds, key_fresh, key_steps = jax.random.split(key, 3)
        n = self.num_envs
        level = curriculum.init(self.curriculum) if self.curriculum else None
        steps = jnp.zeros(n, jnp.int32)
        if stagger:
            steps = jax.random.randint(key_steps, (n,), 0, self.env.episode_length)
        return VectorState(
            worlds=self._reset(jax.random.split(key_worlds, n), level),
            fresh=self._starts(key_fresh, level),
            used=jnp.zeros(n, jnp.int32),
            steps=steps,
            whole=steps == 0,
            totals=jnp.zeros((n, len(self.statistics))),
            curriculum=level,
        )

    def refill(self, state: VectorState, key: jax.Array) -> VectorState:
        """Moves the curriculum and replaces all fresh starts; call it once a rollout."""
        level = state.curriculum
        if self.curriculum:
            level = curriculum.advance(self.curriculum, level)
        return state.replace(
            fresh=self._starts(key, level), used=jnp.zeros_like(state.used), curriculum=level
        )

    def _starts(self, key: jax.Array, level: CurriculumState | None) -> State:
        keys = jax.random.split(key, (self.starts, self.num_envs))
        return jax.vmap(lambda keys: self._reset(keys, level))(keys)

    def _reset(self, keys: jax.Array, level: CurriculumState | None) -> State:
        if level is None:
            return jax.vmap(self.env.reset)(keys)
        return jax.vmap(self.env.reset, in_axes=(0, None))(keys, level.level)

    def step(self, state: VectorState, action: jax.Array) -> tuple[VectorState, Timestep]:
        """One control step of every world; worlds that end go on from a fresh start.

        Args:
          state: N worlds.
          action: [N, A] in [-1, 1].
        """
        worlds = self._step_worlds(state.worlds, action)
        whole = all_finite((worlds.physics, worlds.obs, worlds.reward), self.num_envs)
        metrics = jnp.zeros((self.num_envs, 0))  # a task may have none
        if self.metric_names:
            metrics = jnp.stack([worlds.metrics[name] for name in self.metric_names], axis=1)
        metrics = jnp.where(whole[:, None], metrics, 0.0)
        reward = jnp.where(whole, worlds.reward, 0.0)
        final_obs = select(whole, worlds.obs, state.worlds.obs)

        steps = state.steps + 1
        terminated = worlds.terminated.astype(bool) | ~whole
        truncated = (steps >= self.env.episode_length) & ~terminated
        done = terminated | truncated

        totals, episode = self._statistics(state.totals, reward, metrics)
        ended = done & state.whole
        episode = jnp.where(ended[:, None], episode, 0.0)
        slot = state.used % self.starts
        mine = jnp.arange(self.num_envs)
        fresh = jax.tree.map(lambda x: x[slot, mine], state.fresh)
        new = state.replace(
            worlds=select(done, fresh, worlds),
            used=state.used + done,
            steps=jnp.where(done, 0, steps),
            whole=state.whole | done,
            totals=jnp.where(done[:, None], 0.0, totals),
            curriculum=self._observe(state.curriculum, episode, ended),
        )
        return new, Timestep(
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            nonfinite=~whole,
            episode=episode,
            ended=ended,
        )

    def _observe(
        self, level: CurriculumState | None, episode: jax.Array, ended: jax.Array
    ) -> CurriculumState | None:
        if level is None:
            return None
        columns = jnp.array([self.statistics.index(name) for name in self.curriculum.metric])
        return curriculum.observe(level, episode[:, columns].sum(0), ended.sum())

    def _step_worlds(self, worlds: State, action: jax.Array) -> State:
        """The task's step of all worlds; on a CPU in blocks that fit its cache."""
        n = self.num_envs
        block = max(b for b in range(1, min(n, self.block) + 1) if n % b == 0)
        if platform.target() != "cpu" or not self.block / 4 <= block < n:
            return jax.vmap(self.env.step)(worlds, action)
        return jax.lax.map(lambda x: self.env.step(*x), (worlds, action), batch_size=block)

    def _statistics(
        self, totals: jax.Array, reward: jax.Array, metrics: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Running sums after this step, and what they say if the episode ends now."""
        now = jnp.concatenate([reward[:, None], jnp.ones_like(reward)[:, None], metrics], 1)
        totals = totals + now
        kind = jnp.array([_reduction(name) for name in self.statistics])
        mean = totals / totals[:, 1:2]
        return totals, jnp.where(kind == 0, totals, jnp.where(kind == 1, now, mean))


def _reduction(name: str) -> int:
    """0: sum, 1: last, 2: mean over the episode."""
    if name in ("return", "length") or name.startswith("reward/"):
        return 0
    return 1 if name == "success" or name.startswith("final/") else 2


def all_finite(tree: Any, n: int) -> jax.Array:
    """[n] bool: every float leaf [n, ...] of the tree is finite in that row."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    flat = jnp.concatenate([x.reshape(n, -1) for x in leaves], axis=1)
    return jnp.isfinite(flat).all(axis=1)


def select(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Tree of `yes` where mask [N], else `no`; leaves [N, ...]."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
