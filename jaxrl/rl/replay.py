"""Replay of past control steps, as a ring buffer on the device.

N worlds step together, so the ring has one row for each control step of all worlds: writing is
one contiguous copy, and the ring can be split over devices along the worlds. Each observation is
stored once: the observation that followed a step is in the next row, except at the end of an
episode. After a termination none is needed; the final observations of episodes that the time
limit ended are in a small ring of their own.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs import select
from jaxrl.rl.packing import Packing
from jaxrl.rl.returns import n_step_return
from jaxrl.rl.rollout import Rollout


class ReplayState(struct.PyTreeNode):
    """Contents of a replay.

    Attributes:
      obs: {type: [C, N, F]} observations that were acted on.
      steps: [C, N, 3 + A] reward, terminated, time limit (0, or 1 + its index in
        `limit_obs`), action.
      limit_obs: {type: [S, N, F]} final observations of episodes that the time limit ended.
      limits: [N] int32, number of such episodes so far.
      inserted: int32, number of rows written so far.
    """

    obs: dict[str, jax.Array]
    steps: jax.Array
    limit_obs: dict[str, jax.Array]
    limits: jax.Array
    inserted: jax.Array


class Transitions(struct.PyTreeNode):
    """Samples from a replay; leaves [B, ...].

    Attributes:
      obs: observation acted on.
      action: [B, A].
      reward: [B] discounted sum over the n steps, or up to the episode's end.
      discount: [B] factor of the value of `next_obs`; 0 after a termination.
      next_obs: observation that the last of these steps led to.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    next_obs: Any


class Replay:
    """Ring buffer of the last `capacity` control steps of all worlds.

    Args:
      capacity: number of rows C.
      num_envs: number of worlds N.
      obs: one observation (arrays or shapes).
      action_size: A.
      episode_length: smallest number of control steps between two time limits of a world.
      n_step: number of control steps that a sample spans.
      storage: tree of the type names in which observations are stored; None: their own types.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs: Any,
        action_size: int,
        *,
        episode_length: int,
        n_step: int = 1,
        storage: Any = None,
    ):
        if capacity <= n_step:
            raise ValueError(f"Replay capacity: got {capacity}, must be above n_step, {n_step}")
        self.capacity, self.num_envs, self.n_step = capacity, num_envs, n_step
        self._packing = Packing(obs, storage)
        self._example, self._action_size = obs, action_size
        # Time limits of a world are an episode apart, so `capacity` rows have at most this many.
        self._slots = math.ceil(capacity / episode_length)

    def init(self) -> ReplayState:
        """Returns an empty replay, with all of its memory allocated."""
        n = self.num_envs
        blank = jax.eval_shape(self._packing.pack, self._example)

        def ring(rows):
            return {kind: jnp.zeros((rows, n, *x.shape), x.dtype) for kind, x in blank.items()}

        return ReplayState(
            obs=ring(self.capacity),
            steps=jnp.zeros((self.capacity, n, 3 + self._action_size)),
            limit_obs=ring(self._slots),
            limits=jnp.zeros(n, jnp.int32),
            inserted=jnp.zeros((), jnp.int32),
        )

    def insert(self, state: ReplayState, rollout: Rollout) -> ReplayState:
        """Adds one control step of all worlds: a rollout with T = S = 1."""
        step = jax.tree.map(lambda x: x[0], rollout.replace(last_obs=None, memory=None))
        slot = state.limits % self._slots
        limit = jnp.where(step.truncated, 1 + slot, 0)
        columns = (step.reward, step.terminated, limit)
        row = jnp.concatenate([jnp.stack(columns, 1).astype(jnp.float32), step.action], 1)
        index = state.inserted % self.capacity
        worlds = jnp.arange(self.num_envs)

        def write(ring, x):
            return jax.lax.dynamic_update_index_in_dim(ring, x, index, 0)

        def write_final(ring, x):
            return ring.at[slot, worlds].set(select(step.truncated, x, ring[slot, worlds]))

        return ReplayState(
            obs=jax.tree.map(write, state.obs, self._packing.pack(step.obs)),
            steps=write(state.steps, row),
            limit_obs=jax.tree.map(
                write_final, state.limit_obs, self._packing.pack(step.limit_obs)
            ),
            limits=state.limits + step.truncated,
            inserted=state.inserted + 1,
        )

    def cut(self, state: ReplayState, obs: Any) -> ReplayState:
        """Ends all episodes at the last step, as at a time limit; the next row begins new ones.

        The time limit is one that `episode_length` does not count: only with `episode_length` 1
        is there always room for its final observation.

        Args:
          state: contents.
          obs: [N, ...] observations that the last step led to.
        """
        index, worlds = (state.inserted - 1) % self.capacity, jnp.arange(self.num_envs)
        row, slot = state.steps[index], state.limits % self._slots
        continues = (row[:, 1] == 0) & (row[:, 2] == 0) & (state.inserted > 0)
        limit = jnp.where(continues, 1.0 + slot, row[:, 2])

        def write_final(ring, x):
            return ring.at[slot, worlds].set(select(continues, x, ring[slot, worlds]))

        return state.replace(
            steps=state.steps.at[index, :, 2].set(limit),
            limit_obs=jax.tree.map(write_final, state.limit_obs, self._packing.pack(obs)),
            limits=state.limits + continues,
        )

    def sample(
        self, state: ReplayState, key: jax.Array, batch_size: int, *, gamma: jax.Array | float
    ) -> Transitions:
        """Returns B samples, drawn uniformly with replacement; needs more than `n_step` rows.

        Args:
          state: contents.
          key: PRNG key.
          batch_size: B.
          gamma: discount factor.
        """
        key_row, key_world = jax.random.split(key)
        oldest = jnp.maximum(state.inserted - self.capacity, 0)
        first = jax.random.randint(key_row, (batch_size,), oldest, state.inserted - self.n_step)
        world = jax.random.randint(key_world, (batch_size,), 0, self.num_envs)
        window = (first[:, None] + jnp.arange(self.n_step)) % self.capacity
        steps = state.steps[window, world[:, None]]  # [B, n, 3 + A]
        limit = steps[..., 2].astype(jnp.int32)
        reward, discount, last = n_step_return(
            steps[..., 0], steps[..., 1] > 0, limit > 0, gamma=gamma
        )
        limit = limit[jnp.arange(batch_size), last]
        after = jax.tree.map(lambda x: x[(first + last + 1) % self.capacity, world], state.obs)
        final = jax.tree.map(lambda x: x[limit - 1, world], state.limit_obs)
        obs = jax.tree.map(lambda x: x[first % self.capacity, world], state.obs)
        return Transitions(
            obs=self._packing.unpack(obs),
            action=steps[:, 0, 3:],
            reward=reward,
            discount=discount,
            next_obs=self._packing.unpack(select(limit > 0, final, after)),
        )
