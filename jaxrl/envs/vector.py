"""Many worlds side by side: time limit, fresh resets, non-finite worlds, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import platform
from jaxrl.envs import curriculum
from jaxrl.envs.curriculum import CurriculumConfig, CurriculumState
from jaxrl.envs.task import State, Task
from jaxrl.errors import UserError

# Worlds stepped at a time on a CPU. The intermediate values of so many stay in its cache;
# thousands at once are 1.7 times slower (ballbot).
CPU_BLOCK = 128
# Observations and rewards beyond this are cut to it: one value of 1e12 would make all others
# of its kind look alike to a running mean and standard deviation.
LARGEST = 1e6
# How often a start that is not finite is drawn again.
MOST_DRAWS = 100
# Name of the axis of a population's members under `vmap`.
MEMBERS_AXIS = "members"


class Starts(struct.PyTreeNode):
    """Fresh starts, made N at a time when they are needed; each is handed out once.

    All starts of a run stand in one endless row, in generations of N. The one at place j of
    generation g is drawn with a key that follows from (g, j) alone, so that it does not matter
    when it is made.

    Attributes:
      fresh: leaves [N, ...], a stretch of that row.
      generation: uint32, generation of the first of them.
      place: int32 in [0, N), its place there.
      used: int32, how many of them have been handed out; N: all.
      key: PRNG key of the row.
      redrawn: int32, starts so far that were drawn again because they were not finite.
    """

    fresh: State
    generation: jax.Array
    place: jax.Array
    used: jax.Array
    key: jax.Array
    redrawn: jax.Array


class VectorState(struct.PyTreeNode):
    """`N` worlds between two steps.

    Attributes:
      worlds: the task's states, leaves [N, ...].
      starts: fresh starts for worlds whose episodes end.
      steps: [N] int32, control steps against the time limit.
      full_episode: [N] bool, the episode began at step 0 (the first ones are staggered).
      totals: [N, 2 + M] running sums of return, length and the task's metrics.
      curriculum: where the task's curriculum stands, if it has one and this is training.
    """

    worlds: State
    starts: Starts
    steps: jax.Array
    full_episode: jax.Array
    totals: jax.Array
    curriculum: CurriculumState | None = None

    @property
    def obs(self) -> Any:
        return self.worlds.obs

    @property
    def redrawn(self) -> jax.Array:
        return self.starts.redrawn


class Timestep(struct.PyTreeNode):
    """What one step of `N` worlds yields; every leaf begins with [N].

    Attributes:
      reward: [N].
      terminated: [N] bool; the task ended.
      truncated: [N] bool; the time limit ended it, and only that.
      final_obs: observation that the action led to, before any reset.
      nonfinite: [N] bool; the simulation diverged (counted as terminated, reward 0).
      out_of_range: [N] bool; the reward or a number observed was beyond `LARGEST`.
      episode: [N, 2 + M] statistics of the episodes that ended here, zero elsewhere;
        columns as `Vector.statistics`.
      ended: [N] bool; a whole episode ended here, so `episode` counts.
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: Any
    nonfinite: jax.Array
    out_of_range: jax.Array
    episode: jax.Array
    ended: jax.Array


class EpisodeSums(struct.PyTreeNode):
    """Episodes that ended within some steps, summed up.

    Attributes:
      count: scalar, whole episodes that ended.
      sums: [2 + M] sums of their statistics, columns as `Vector.statistics`.
      nonfinite: scalar, worlds reset because the simulation diverged, and starts drawn again.
      out_of_range: scalar, steps whose observation or reward was cut.
    """

    count: jax.Array
    sums: jax.Array
    nonfinite: jax.Array
    out_of_range: jax.Array


def episode_sums(step: Timestep) -> EpisodeSums:
    """The sums of one step of all worlds."""
    return EpisodeSums(
        count=step.ended.sum(),
        sums=step.episode.sum(0),
        nonfinite=step.nonfinite.sum(),
        out_of_range=step.out_of_range.sum(),
    )


class Vector:
    """`num_envs` copies of a task.

    Args:
      env: the task.
      num_envs: number of worlds N.
      members: how many such vectors are stepped side by side under `vmap`, whose axis then has
        the name `MEMBERS_AXIS`.
      training: starts follow the task's curriculum; else they have its full difficulty.

    Raises:
      UserError: a curriculum that does not fit the task.
    """

    def __init__(
        self,
        env: Task,
        num_envs: int,
        *,
        members: int = 1,
        training: bool = False,
    ):
        if env.episode_length is None:
            raise UserError(f"{type(env).__name__}: episode_length is None, must be a whole number")
        self.env = env
        self.num_envs = num_envs
        self.least_episode = env.episode_length  # control steps between two time limits
        self.members = members
        self.block = max(CPU_BLOCK // members, 1)
        metrics = jax.eval_shape(env.reset, jax.random.key(0)).metrics
        self.metric_names = tuple(sorted(metrics))
        self.curriculum: CurriculumConfig | None = None
        if training:
            self.curriculum = env.curriculum
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
        key_worlds, key_starts, key_steps = jax.random.split(key, 3)
        n = self.num_envs
        current = curriculum.init(self.curriculum) if self.curriculum else None
        steps = jnp.zeros(n, jnp.int32)
        if stagger:
            steps = jax.random.randint(key_steps, (n,), 0, self.least_episode)
        worlds, redrawn = self._reset(jax.random.split(key_worlds, n), current)
        return VectorState(
            worlds=worlds,
            starts=Starts(
                fresh=jax.tree.map(jnp.copy, worlds),  # of the right shape; none to hand out
                generation=jnp.zeros((), jnp.uint32),
                place=jnp.zeros((), jnp.int32),
                used=jnp.full((), n, jnp.int32),
                key=key_starts,
                redrawn=redrawn,
            ),
            steps=steps,
            full_episode=steps == 0,
            totals=jnp.zeros((n, len(self.statistics))),
            curriculum=current,
        )

    def advance(self, state: VectorState) -> VectorState:
        """Moves the curriculum; call it once a rollout. Starts of another level are dropped."""
        if state.curriculum is None or self.curriculum is None:
            return state
        current = curriculum.advance(self.curriculum, state.curriculum)
        moved = (current.level != state.curriculum.level).any()
        used = jnp.where(moved, self.num_envs, state.starts.used)
        return state.replace(curriculum=current, starts=state.starts.replace(used=used))

    def _supply(self, state: VectorState, wanted: jax.Array) -> Starts:
        """The starts, with at least `wanted` (at most N) that have not been handed out.

        New ones are made in a loop of one round or none: a conditional would copy them in each
        step. All members of a population make theirs when one of them has to, so that the
        loop's condition stays one for all; their content does not depend on it.
        """
        short = (state.starts.used + wanted > self.num_envs).astype(jnp.int32)
        if self.members > 1:
            short = jax.lax.pmax(short, MEMBERS_AXIS)

        def renew(_, starts: Starts) -> Starts:
            place = starts.place + starts.used
            first, n = place % self.num_envs, self.num_envs
            generation = starts.generation + (place // n).astype(jnp.uint32)
            at = first + jnp.arange(n)
            keys = jax.vmap(lambda g, j: jax.random.fold_in(jax.random.fold_in(starts.key, g), j))(
                generation + (at // n).astype(jnp.uint32), at % n
            )
            fresh, redrawn = self._reset(keys, state.curriculum)
            return starts.replace(
                fresh=fresh,
                generation=generation,
                place=first,
                used=jnp.zeros_like(starts.used),
                redrawn=starts.redrawn + redrawn,
            )

        return jax.lax.fori_loop(0, short, renew, state.starts)

    def _reset(self, keys: jax.Array, current: CurriculumState | None) -> tuple[State, jax.Array]:
        """Starts [N, ...] with keys [N], and how many were not finite and so drawn again."""

        def reset(key: jax.Array) -> State:
            return self.env.reset(key, *([] if current is None else [current.level]))

        def draw(carry):  # the first round draws all, so that the reset is compiled once
            count, redrawn, worlds, missing = carry
            own = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
            drawn = self._in_blocks(reset, own)
            drawn = drawn.replace(obs=_cut(drawn.obs))
            bad = ~all_finite((drawn.physics, drawn.obs), self.num_envs)
            redrawn += jnp.where(count > 0, missing.sum(), 0)
            return count + 1, redrawn, select(missing, drawn, worlds), missing & bad

        none = jnp.zeros((), jnp.int32)
        shapes = jax.eval_shape(jax.vmap(reset), keys)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        _, redrawn, worlds, _ = jax.lax.while_loop(
            lambda carry: carry[3].any() & (carry[0] <= MOST_DRAWS),
            draw,
            (none, none, blank, jnp.ones(self.num_envs, bool)),
        )
        return worlds, redrawn

    def step(self, state: VectorState, action: jax.Array) -> tuple[VectorState, Timestep]:
        """One control step of every world; worlds that end go on from a fresh start.

        Args:
          state: N worlds.
          action: [N, A] in [-1, 1].
        """
        worlds = self._in_blocks(self.env.step, state.worlds, action)
        finite = all_finite((worlds.physics, worlds.obs, worlds.reward), self.num_envs)
        metrics = jnp.zeros((self.num_envs, 0))  # a task may have none
        if self.metric_names:
            metrics = jnp.stack([worlds.metrics[name] for name in self.metric_names], axis=1)
        metrics = jnp.where(finite[:, None], metrics, 0.0)
        reward = jnp.where(finite, worlds.reward, 0.0)
        final_obs = select(finite, worlds.obs, state.worlds.obs)
        out_of_range = _beyond((reward, final_obs), self.num_envs)
        reward, final_obs = _cut((reward, final_obs))

        steps = state.steps + 1
        terminated = worlds.terminated.astype(bool) | ~finite
        truncated = (steps >= self.least_episode) & ~terminated
        done = terminated | truncated

        totals, episode = self._statistics(state.totals, reward, metrics)
        ended = done & state.full_episode
        episode = jnp.where(ended[:, None], episode, 0.0)
        over = done.sum()
        starts = self._supply(state, over)
        mine = jnp.clip(starts.used + jnp.cumsum(done) - 1, 0, self.num_envs - 1)
        fresh = jax.tree.map(lambda x: x[mine], starts.fresh)
        new = state.replace(
            worlds=select(done, fresh, worlds.replace(obs=final_obs)),
            starts=starts.replace(used=starts.used + over),
            steps=jnp.where(done, 0, steps),
            full_episode=state.full_episode | done,
            totals=jnp.where(done[:, None], 0.0, totals),
            curriculum=self._observe(state.curriculum, episode, ended),
        )
        return new, Timestep(
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            nonfinite=~finite,
            out_of_range=out_of_range,
            episode=episode,
            ended=ended,
        )

    def _observe(
        self, current: CurriculumState | None, episode: jax.Array, ended: jax.Array
    ) -> CurriculumState | None:
        if current is None or self.curriculum is None:
            return None
        columns = jnp.array([self.statistics.index(name) for name in self.curriculum.metric])
        return curriculum.observe(current, episode[:, columns].sum(0), ended.sum())

    def _in_blocks(self, function: Callable[..., State], *trees: Any) -> State:
        """The function of one world, over trees with leaves [N, ...]; on a CPU in blocks that
        fit its cache."""
        n = self.num_envs
        block = max(b for b in range(1, min(n, self.block) + 1) if n % b == 0)
        if platform.target() != "cpu" or not self.block / 4 <= block < n:
            return jax.vmap(function)(*trees)
        return jax.lax.map(lambda x: function(*x), trees, batch_size=block)

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
    return jnp.isfinite(_rows(tree, n)).all(axis=1)


def _rows(tree: Any, n: int) -> jax.Array:
    """[n, F] all floats of a tree with leaves [n, ...]."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros((n, 0)), *(x.reshape(n, -1) for x in floats)], axis=1)


def _beyond(tree: Any, n: int) -> jax.Array:
    """[n] bool: some float of that row is beyond `LARGEST`."""
    return (jnp.abs(_rows(tree, n)) > LARGEST).any(axis=1)


def _cut(tree: Any) -> Any:
    """The tree with its floats cut to `LARGEST`."""

    def cut(x):
        return jnp.clip(x, -LARGEST, LARGEST) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cut, tree)


def select(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Tree of `yes` where mask [N], else `no`; leaves [N, ...]."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
