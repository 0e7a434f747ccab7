"""Many worlds in parallel: time limits, resets, non-finite worlds and episode statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import devices, platform
from jaxrl.envs import curriculum
from jaxrl.envs.curriculum import CurriculumConfig, CurriculumState
from jaxrl.envs.task import State, Task
from jaxrl.errors import UserError

# Number of worlds that are stepped at a time on a CPU, so that their intermediate values stay in
# its cache; thousands at a time are 1.7 times slower (ballbot).
CPU_BLOCK = 128
# Observations and rewards are clipped to this absolute value. A single value of 1e12 would spoil
# a running mean and standard deviation, so that all other values look alike after normalisation.
LARGEST = 1e6
# Largest number of times that a start that is not finite is drawn again.
MAX_DRAWS = 100
# Name of the axis of a population's members under `vmap`.
MEMBERS_AXIS = "members"


class Starts(struct.PyTreeNode):
    """Fresh starts in N places, computed when they are needed; each is used only once.

    The key of a start depends only on its place, on how many starts the place has had, and on
    `key`.

    Attributes:
      fresh: leaves [N, ...], the places' newest starts.
      number: [N] uint32, how many starts a place had before its newest.
      used: [N] bool, whether its newest start has been used.
      redrawn: [N] int32, how many draws so far repeated a start that was not finite.
      key: PRNG key.
    """

    fresh: State
    number: jax.Array
    used: jax.Array
    redrawn: jax.Array
    key: jax.Array


class VectorState(struct.PyTreeNode):
    """State of `N` worlds between two control steps.

    Attributes:
      worlds: the task's states, leaves [N, ...].
      starts: fresh starts for worlds where the episode ends.
      steps: [N] int32, control steps that count towards the time limit.
      full_episode: [N] bool, whether the episode began at step 0 (the first are staggered).
      totals: [N, 2 + M] running sums of return, length and the task's metrics.
      curriculum: state of the curriculum; None without one, and outside of training.
      clock: int32 scalar, control steps so far; None for a task without slow sensors.
    """

    worlds: State
    starts: Starts
    steps: jax.Array
    full_episode: jax.Array
    totals: jax.Array
    curriculum: CurriculumState | None = None
    clock: jax.Array | None = None

    @property
    def obs(self) -> Any:
        return self.worlds.obs

    @property
    def redrawn(self) -> jax.Array:
        """Number of draws so far that repeated a start that was not finite."""
        return self.starts.redrawn.sum()


class Timestep(struct.PyTreeNode):
    """Result of one control step of `N` worlds; every leaf begins with the axis [N].

    Attributes:
      reward: [N].
      terminated: [N] bool; the task ended the episode.
      truncated: [N] bool; the time limit ended the episode, and the task did not.
      final_obs: observation that the action led to, before any reset.
      nonfinite: [N] bool; the simulation diverged (counted as terminated, reward 0).
      out_of_range: [N] bool; the reward or part of the observation was beyond `LARGEST`.
      episode: [N, 2 + M] statistics of the full episodes that ended in this step, zero
        elsewhere; columns as in `Vector.statistics`.
      ended: [N] bool; a full episode ended in this step, so that `episode` is valid.
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
    """Sums over the episodes that ended within some control steps.

    Attributes:
      count: scalar, number of full episodes that ended.
      sums: [2 + M] sums of their statistics, columns as in `Vector.statistics`.
      nonfinite: scalar, number of worlds that were reset because the simulation diverged, and
        of starts that were drawn again.
      out_of_range: scalar, number of steps with a clipped observation or reward.
    """

    count: jax.Array
    sums: jax.Array
    nonfinite: jax.Array
    out_of_range: jax.Array


def episode_sums(step: Timestep) -> EpisodeSums:
    """Returns the sums of one control step of all worlds."""
    return EpisodeSums(
        count=step.ended.sum(),
        sums=step.episode.sum(0),
        nonfinite=step.nonfinite.sum(),
        out_of_range=step.out_of_range.sum(),
    )


class Vector:
    """`num_envs` worlds of a task, stepped in parallel.

    Args:
      env: the task.
      num_envs: number of worlds N.
      members: number of vectors that run in parallel under `vmap`; if more than 1, the axis
        must have the name `MEMBERS_AXIS`.
      num_devices: number of devices that have N worlds each.
      training: whether starts follow the task's curriculum; else they have full difficulty.

    Raises:
      UserError: the task has no time limit, or its curriculum does not fit the task.
    """

    def __init__(
        self,
        env: Task,
        num_envs: int,
        *,
        members: int = 1,
        num_devices: int = 1,
        training: bool = False,
    ):
        if env.episode_length is None:
            raise UserError(f"{type(env).__name__}: episode_length is None, must be a whole number")
        self.env = env
        self._reset_one = jax.jit(env.reset, inline=True)  # traced once for all its uses
        self.num_envs = num_envs
        self.min_episode_length = env.episode_length  # control steps between two time limits
        self.members, self.devices = members, num_devices
        self.block = max(CPU_BLOCK // members, 1)
        metrics = jax.eval_shape(self._reset_one, jax.random.key(0)).metrics
        self.metric_names = tuple(sorted(metrics))
        self.curriculum: CurriculumConfig | None = None
        if training:
            self.curriculum = env.curriculum
        if self.curriculum:
            self.curriculum.check("env.curriculum", self.statistics)
            if min(self.curriculum.start) == 1.0:  # nothing can change
                self.curriculum = None

    def observation(self) -> Any:
        """Returns the shapes of one observation."""
        return jax.eval_shape(self._reset_one, jax.random.key(0)).obs

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns of `Timestep.episode`."""
        return ("return", "length", *self.metric_names)

    def init(self, key: jax.Array, *, stagger: bool = True) -> VectorState:
        """Returns all worlds at fresh starts.

        Args:
          key: PRNG key.
          stagger: whether the first episodes count from random steps towards the time limit,
            so that they do not all end together; statistics leave such episodes out.
        """
        key_worlds, key_starts, key_steps = jax.random.split(key, 3)
        key_worlds, key_steps = devices.own(key_worlds), devices.own(key_steps)
        n = self.num_envs
        current = curriculum.init(self.curriculum) if self.curriculum else None
        steps = jnp.zeros(n, jnp.int32)
        if stagger:
            steps = jax.random.randint(key_steps, (n,), 0, self.min_episode_length)
        worlds, redrawn = self._reset(jax.random.split(key_worlds, n), current)
        return VectorState(
            worlds=worlds,
            starts=Starts(
                fresh=jax.tree.map(jnp.copy, worlds),  # only for the shapes; all count as used
                number=jnp.zeros(n, jnp.uint32),
                used=jnp.ones(n, bool),
                redrawn=redrawn,
                key=key_starts,
            ),
            steps=steps,
            full_episode=steps == 0,
            totals=jnp.zeros((n, len(self.statistics))),
            curriculum=current,
            clock=jnp.zeros((), jnp.int32) if self.env.sense_every else None,
        )

    def axes(self, state: VectorState) -> VectorState:
        """The axis of each array along which the worlds lie; -1 for arrays without one."""
        first = jax.tree.map(lambda _: 0, state)
        shared = jax.tree.map(lambda _: -1, (state.curriculum, state.clock))
        starts = first.starts.replace(key=-1)
        return first.replace(starts=starts, curriculum=shared[0], clock=shared[1])

    def advance(self, state: VectorState) -> VectorState:
        """Advances the curriculum; call it once per iteration. A new level drops old starts."""
        if state.curriculum is None or self.curriculum is None:
            return state
        current = curriculum.advance(self.curriculum, state.curriculum)
        moved = (current.level != state.curriculum.level).any()
        used = state.starts.used | moved
        return state.replace(curriculum=current, starts=state.starts.replace(used=used))

    def _supply(self, state: VectorState, count: jax.Array) -> Starts:
        """Returns the starts, of which at least `count` (at most N) are unused.

        New starts are computed in a loop of one round or none: a conditional would copy them in
        each step. All members of a population renew their starts when one of them has to, so
        that the loop has a single condition.
        """
        n = self.num_envs
        rounds = (count > n - state.starts.used.sum()).astype(jnp.int32)
        if self.members > 1:
            rounds = jax.lax.pmax(rounds, MEMBERS_AXIS)

        def renew(_, starts: Starts) -> Starts:
            number = starts.number + starts.used
            places = devices.index() * n + jnp.arange(n)
            keys = jax.vmap(lambda j, k: jax.random.fold_in(jax.random.fold_in(starts.key, j), k))(
                places, number
            )
            drawn, redrawn = self._reset(keys, state.curriculum)
            return starts.replace(
                fresh=select(starts.used, drawn, starts.fresh),
                number=number,
                used=jnp.zeros(n, bool),
                redrawn=starts.redrawn + redrawn * starts.used,
            )

        return jax.lax.fori_loop(0, rounds, renew, state.starts)

    def _take(self, starts: Starts, done: jax.Array) -> tuple[State, Starts]:
        """Returns a start for each world that is done ([N] bool), any for the others, and the
        starts after that."""
        n = self.num_envs
        # First come those of which their places have had the fewest, then the others; so the order
        # in which starts are taken does not depend on when they were computed.
        unused = ~starts.used
        first = unused & (
            starts.number == jnp.where(unused, starts.number, jnp.uint32(2**32 - 1)).min()
        )
        later = unused & ~first
        rank = jnp.where(first, jnp.cumsum(first), first.sum() + jnp.cumsum(later)) - 1
        places = (
            jnp.zeros(n, jnp.int32)
            .at[jnp.where(unused, rank, n)]
            .set(jnp.arange(n), mode="drop", unique_indices=True)
        )
        places = places[jnp.maximum(jnp.cumsum(done) - 1, 0)]
        used = starts.used | (unused & (rank < done.sum()))
        return jax.tree.map(lambda x: x[places], starts.fresh), starts.replace(used=used)

    def _reset(self, keys: jax.Array, current: CurriculumState | None) -> tuple[State, jax.Array]:
        """Returns starts [N, ...] from keys [N], and for each how many draws repeated a non-finite
        start, [N]."""

        def reset(key: jax.Array) -> State:
            return self._reset_one(key, *([] if current is None else [current.level]))

        def draw(carry):  # the first round draws all starts, so that reset is compiled once
            count, redrawn, worlds, missing = carry
            draw_keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
            drawn = self._in_blocks(reset, draw_keys)
            drawn = drawn.replace(obs=_clipped(drawn.obs))
            not_finite = ~all_finite((drawn.physics, drawn.obs), self.num_envs)
            redrawn += missing & (count > 0)
            return count + 1, redrawn, select(missing, drawn, worlds), missing & not_finite

        zero, no_draws = jnp.zeros((), jnp.int32), jnp.zeros(self.num_envs, jnp.int32)
        shapes = jax.eval_shape(jax.vmap(reset), keys)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        _, redrawn, worlds, _ = jax.lax.while_loop(
            lambda carry: carry[3].any() & (carry[0] <= MAX_DRAWS),
            draw,
            (zero, no_draws, blank, jnp.ones(self.num_envs, bool)),
        )
        return worlds, redrawn

    def step(self, state: VectorState, action: jax.Array) -> tuple[VectorState, Timestep]:
        """Makes one control step in every world; ended episodes are replaced by fresh starts.

        Args:
          state: state of the N worlds.
          action: [N, A] in [-1, 1], or [N] indices of choices.
        """
        worlds = self._in_blocks(self.env.step, state.worlds, action)
        clock = state.clock
        if clock is not None:
            clock = clock + 1
            sense = lambda worlds: self._in_blocks(self.env.sense, worlds)  # noqa: E731
            due = clock % self.env.sense_every == 0
            worlds = jax.lax.cond(due, sense, lambda worlds: worlds, worlds)
        finite = all_finite((worlds.physics, worlds.obs, worlds.reward), self.num_envs)
        metrics = jnp.zeros((self.num_envs, 0))  # a task may have no metrics
        if self.metric_names:
            metrics = jnp.stack([worlds.metrics[name] for name in self.metric_names], axis=1)
        metrics = jnp.where(finite[:, None], metrics, 0.0)
        reward = jnp.where(finite, worlds.reward, 0.0)
        final_obs = select(finite, worlds.obs, state.worlds.obs)
        out_of_range = _beyond((reward, final_obs), self.num_envs)
        reward, final_obs = _clipped((reward, final_obs))

        steps = state.steps + 1
        terminated = worlds.terminated.astype(bool) | ~finite
        truncated = (steps >= self.min_episode_length) & ~terminated
        done = terminated | truncated

        totals, episode = self._statistics(state.totals, reward, metrics)
        ended = done & state.full_episode
        episode = jnp.where(ended[:, None], episode, 0.0)
        fresh, starts = self._take(self._supply(state, done.sum()), done)
        new = state.replace(
            worlds=select(done, fresh, worlds.replace(obs=final_obs)),
            starts=starts,
            steps=jnp.where(done, 0, steps),
            full_episode=state.full_episode | done,
            totals=jnp.where(done[:, None], 0.0, totals),
            curriculum=self._observe(state.curriculum, episode, ended),
            clock=clock,
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
        """Applies a function of one world to trees with leaves [N, ...]; on a CPU in blocks that
        fit into its cache."""
        n = self.num_envs
        block = max(b for b in range(1, min(n, self.block) + 1) if n % b == 0)
        if platform.target() != "cpu" or not self.block / 4 <= block < n:
            return jax.vmap(function)(*trees)
        return jax.lax.map(lambda x: function(*x), trees, batch_size=block)

    def _statistics(
        self, totals: jax.Array, reward: jax.Array, metrics: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the running sums after this step, and the statistics if the episode ends now."""
        current = jnp.concatenate([reward[:, None], jnp.ones_like(reward)[:, None], metrics], 1)
        totals = totals + current
        kind = jnp.array([_reduction(name) for name in self.statistics])
        mean = totals / totals[:, 1:2]
        return totals, jnp.where(kind == 0, totals, jnp.where(kind == 1, current, mean))


def _reduction(name: str) -> int:
    """Returns how a statistic is formed over an episode: 0: sum, 1: last value, 2: mean."""
    if name in ("return", "length") or name.startswith("reward/"):
        return 0
    return 1 if name == "success" or name.startswith("final/") else 2


def all_finite(tree: Any, n: int) -> jax.Array:
    """[n] bool: whether all floats in that row of the leaves [n, ...] are finite."""
    return jnp.isfinite(_rows(tree, n)).all(axis=1)


def _rows(tree: Any, n: int) -> jax.Array:
    """Returns all floats of a tree with leaves [n, ...] as one array [n, F]."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros((n, 0)), *(x.reshape(n, -1) for x in floats)], axis=1)


def _beyond(tree: Any, n: int) -> jax.Array:
    """[n] bool: whether a float in that row of the leaves [n, ...] is beyond `LARGEST`."""
    return (jnp.abs(_rows(tree, n)) > LARGEST).any(axis=1)


def _clipped(tree: Any) -> Any:
    """Returns the tree with its floats clipped to [-LARGEST, LARGEST]."""

    def clip(x):
        return jnp.clip(x, -LARGEST, LARGEST) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(clip, tree)


def select(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Selects between trees with leaves [N, ...]: `yes` where mask [N] is true, else `no`."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
