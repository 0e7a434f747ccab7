"""Replay of past steps in a ring on the device.

N worlds step together, so the ring has a row for each step of all of them: writing is one
contiguous copy, and it splits over devices along the worlds. An observation is kept once:
what followed a step is the observation of the next row, but for the end of an episode. A
terminated step needs none; for those that the time limit ended, the true final
observations lie in a small ring of their own.
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
    """Contents.

    Attributes:
      obs: {type: [C, N, F]} observations that were acted on.
      steps: [C, N, 3 + A] reward, terminated, time limit (0, or 1 + its place in
        `limit_obs`), action.
      limit_obs: {type: [S, N, F]} final observations of episodes the time limit ended.
      limits: [N] int32, such episodes so far.
      inserted: int32, rows written so far.
    """

    obs: dict[str, jax.Array]
    steps: jax.Array
    limit_obs: dict[str, jax.Array]
    limits: jax.Array
    inserted: jax.Array


class Transitions(struct.PyTreeNode):
    """Samples; leaves [B, ...].

    Attributes:
      obs: observation acted on.
      action: [B, A].
      reward: [B] discounted sum over the n steps, or up to the episode's end.
      discount: [B] what the value of `next_obs` counts; 0 after termination.
      next_obs: observation the last of these steps led to.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    next_obs: Any


class Replay:
    """A ring of the last `capacity` steps of all worlds.

    Args:
      capacity: rows C.
      num_envs: worlds N.
      obs: one observation (arrays or shapes).
      action_size: A.
      episode_length: control steps between two time limits of a world, at least.
      n_step: steps that a sample spans.
      storage: tree of type names, how observations are kept; none: as they are.
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
        # A world's time limits are an episode apart, so no more than these are still needed.
        self._slots = math.ceil(capacity / episode_length)

    def init(self) -> ReplayState:
        """Empty; all memory is taken here."""
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
        """Adds one step of all worlds: a rollout with T = S = 1."""
        step = jax.tree.map(lambda x: x[0], rollout.replace(last_obs=None, memory=None))
        slot = state.limits % self._slots
        limit = jnp.where(step.truncated, 1 + slot, 0)
        columns = (step.reward, step.terminated, limit)
        row = jnp.concatenate([jnp.stack(columns, 1).astype(jnp.float32), step.action], 1)
        at = state.inserted % self.capacity
        mine = jnp.arange(self.num_envs)

        def write(ring, x):
            return jax.lax.dynamic_update_index_in_dim(ring, x, at, 0)

        def keep_final(ring, x):
            return ring.at[slot, mine].set(select(step.truncated, x, ring[slot, mine]))

        return ReplayState(
            obs=jax.tree.map(write, state.obs, self._packing.pack(step.obs)),
            steps=write(state.steps, row),
            limit_obs=jax.tree.map(keep_final, state.limit_obs, self._packing.pack(step.limit_obs)),
            limits=state.limits + step.truncated,
            inserted=state.inserted + 1,
        )

    def cut(self, state: ReplayState, obs: Any) -> ReplayState:
        """Ends all episodes with the last step, as at a time limit: the next row begins others.

        Args:
          state: contents.
          obs: [N, ...] observations that the last step led to.
        """
        at, mine = (state.inserted - 1) % self.capacity, jnp.arange(self.num_envs)
        row, slot = state.steps[at], state.limits % self._slots
        goes_on = (row[:, 1] == 0) & (row[:, 2] == 0) & (state.inserted > 0)
        limit = jnp.where(goes_on, 1.0 + slot, row[:, 2])

        def keep(ring, x):
            return ring.at[slot, mine].set(select(goes_on, x, ring[slot, mine]))

        return state.replace(
            steps=state.steps.at[at, :, 2].set(limit),
            limit_obs=jax.tree.map(keep, state.limit_obs, self._packing.pack(obs)),
            limits=state.limits + goes_on,
        )

    def sample(
        self, state: ReplayState, key: jax.Array, batch_size: int, *, gamma: jax.Array | float
    ) -> Transitions:
        """[B] steps drawn evenly, with replacement; needs more than `n_step` rows.

        Args:
          state: contents.
          key: PRNG key.
          batch_size: B.
          gamma: discount.
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
