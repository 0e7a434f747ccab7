"""Gaussian policy and state value, with separate trunks or a shared one."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.envs.task import ArraySpec
from jaxrl.nets.config import NetworkConfig
from jaxrl.nets.encoders import Encoder
from jaxrl.nets.memory import Recurrence
from jaxrl.nets.mlp import MLP
from jaxrl.rl.distributions import Gaussian

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class ActorCritic(nn.Module):
    """Policy network and value network, each with encoder, trunk, memory and head.

    Attributes:
      config: settings of the networks.
      action_size: A.
      spec: parts of the observation by name.
      encoders: name of each part's encoder.
    """

    config: NetworkConfig
    action_size: int
    spec: dict[str, ArraySpec]
    encoders: dict[str, str]

    def setup(self) -> None:
        c = self.config
        self.policy_encoder = Encoder(c, self.spec, self.encoders, c.policy_keys)
        self.policy_trunk = MLP(c.policy_hidden, c.activation, c.layer_norm)
        if c.memory == "gru":
            self.policy_memory = Recurrence(c.memory_size)
        if not c.shared_trunk:
            self.value_encoder = Encoder(c, self.spec, self.encoders, c.value_keys)
            self.value_trunk = MLP(c.value_hidden, c.activation, c.layer_norm)
            if c.memory == "gru":
                self.value_memory = Recurrence(c.memory_size)
        self.mean_head = nn.Dense(self.action_size, kernel_init=nn.initializers.orthogonal(0.01))
        self.value_head = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))
        initial_log_std = math.log(c.initial_std)
        if c.state_dependent_std:
            self.std_head = nn.Dense(
                self.action_size,
                kernel_init=nn.initializers.orthogonal(0.01),
                bias_init=nn.initializers.constant(initial_log_std),
            )
        else:
            self.log_std = self.param(
                "log_std", nn.initializers.constant(initial_log_std), (self.action_size,)
            )

    def __call__(self, obs: Any, memory: Any, reset: Any) -> tuple[Gaussian, jax.Array]:
        """Both heads, so that `init` creates all parameters; arguments as for `policy`."""
        return self.policy(obs, memory, reset)[0], self.value(obs, memory, reset)[0]

    def policy(self, obs: Any, memory: Any, reset: Any) -> tuple[Gaussian, Any]:
        """Action distributions of a sequence, and the memory after it.

        Args:
          obs: parts with leaves [T, N, *S]; without memory, any leading axes.
          memory: {"policy": [N, H], ...}, or empty.
          reset: [T, N] bool, steps before which the memory is reset; None without memory.

        Returns:
          Gaussian over raw actions [T, N, A]; memory.
        """
        x = self.policy_trunk(self.policy_encoder(obs))
        if self.config.memory == "gru":
            x, new_memory = self.policy_memory(x, memory["policy"], reset)
            memory = memory | {"policy": new_memory}
        log_std = self.std_head(x) if self.config.state_dependent_std else self.log_std
        return Gaussian(self.mean_head(x), jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)), memory

    def value(self, obs: Any, memory: Any, reset: Any) -> tuple[jax.Array, Any]:
        """State values [T, N] of a sequence and the memory after each step, [T, N, H] (None
        without memory); arguments as for `policy`."""
        owner = "policy" if self.config.shared_trunk else "value"
        encoder, trunk = (
            (self.policy_encoder, self.policy_trunk)
            if owner == "policy"
            else (self.value_encoder, self.value_trunk)
        )
        x, states = trunk(encoder(obs)), None
        if self.config.memory == "gru":
            recurrence = self.policy_memory if owner == "policy" else self.value_memory
            x, _ = recurrence(x, memory[owner], reset)
            states = x  # the output of a GRU is its memory
        return self.value_head(x).squeeze(-1), states
