"""Consecutive control steps of many worlds, as an algorithm learns from them."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


class Rollout(struct.PyTreeNode):
    """T control steps of N worlds; leaves [T, N, ...] unless another shape is given.

    Attributes:
      obs: observations acted on.
      action: [T, N, A], or [T, N] indices of choices.
      act_info: what `Algorithm.act` has noted of the actions.
      reward: [T, N].
      terminated, truncated: [T, N] bool.
      limit_obs: [S, N, ...] final observations of the episodes that the time limit ended; those
        of a world in their order.
      last_obs: [N, ...] observations to act on next.
      memory: [N, ...] the policy's memory before the first step; empty where it has none.
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


def limit_slots(steps: int, least_episode: int) -> int:
    """S: how often a world meets its time limit in so many control steps, at most."""
    return -(-steps // least_episode)
