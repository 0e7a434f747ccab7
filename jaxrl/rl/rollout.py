"""Rollouts: consecutive control steps of many worlds, from which an algorithm learns."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


class Rollout(struct.PyTreeNode):
    """T control steps of N worlds; leaves [T, N, ...] unless another shape is given.

    Attributes:
      obs: observations acted on.
      action: [T, N, A], or [T, N] indices of choices.
      act_info: data about the actions, from `Algorithm.act`.
      reward: [T, N].
      terminated, truncated: [T, N] bool.
      limit_obs: [S, N, ...] final observations of the episodes that the time limit ended; for
        each world in the order of its episodes.
      last_obs: [N, ...] observations to act on next.
      memory: [N, ...] the policy's memory before the first step; empty if it has no memory.
    """

    obs: Any
    action: jax.Array
    act_info: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    limit_obs: Any
    last_obs: Any
    memory: Any


def limit_slots(steps: int, min_episode_length: int) -> int:
    """S: the largest number of time limits of one world in `steps` control steps."""
    return -(-steps // min_episode_length)
