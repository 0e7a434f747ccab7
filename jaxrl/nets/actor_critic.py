"""Gaussian policy and state value, on separate trunks or one."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.mlp import MLP
from jaxrl.options import option
from jaxrl.rl.distributions import Gaussian

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Networks of an actor-critic."""

    policy_hidden: tuple[int, ...] = option((64, 64), "widths of the policy's layers", least=1)
    value_hidden: tuple[int, ...] = option((64, 64), "widths of the value's layers", least=1)
    activation: Literal["tanh", "relu", "elu", "swish", "gelu"] = option(
        "tanh", "activation function"
    )
    layer_norm: bool = option(False, "normalise before each activation")
    shared_trunk: bool = option(False, "one trunk (policy_hidden) for policy and value")
    policy_keys: tuple[str, ...] = option((), "observation keys the policy sees; all if empty")
    value_keys: tuple[str, ...] = option((), "observation keys the value sees; all if empty")
    distribution: Literal["normal", "tanh_normal"] = option(
        "normal", "action distribution: clipped or tanh-squashed Gaussian"
    )
    state_dependent_std: bool = option(False, "the policy outputs its std for each state")
    initial_std: float = option(1.0, "standard deviation at the start", least=0.01, most=7.0)


class ActorCritic(nn.Module):
    """Policy and value heads.

    Attributes:
      config: networks.
      action_size: A.
    """

    config: NetworkConfig
    action_size: int

    def setup(self) -> None:
        c = self.config
        self.policy_trunk = MLP(c.policy_hidden, c.activation, c.layer_norm)
        if not c.shared_trunk:
            self.value_trunk = MLP(c.value_hidden, c.activation, c.layer_norm)
        self.mean_head = nn.Dense(self.action_size, kernel_init=nn.initializers.orthogonal(0.01))
        self.value_head = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))
        start = math.log(c.initial_std)
        if c.state_dependent_std:
            self.std_head = nn.Dense(
                self.action_size,
                kernel_init=nn.initializers.orthogonal(0.01),
                bias_init=nn.initializers.constant(start),
            )
        else:
            self.log_std = self.param(
                "log_std", nn.initializers.constant(start), (self.action_size,)
            )

    def __call__(self, policy_obs: jax.Array, value_obs: jax.Array) -> tuple[Gaussian, jax.Array]:
        """Both heads; [..., P], [..., V] -> Gaussian [..., A], value [...]."""
        return self.policy(policy_obs), self.value(value_obs)

    def policy(self, obs: jax.Array) -> Gaussian:
        """[..., P] -> Gaussian over raw actions [..., A]."""
        x = self.policy_trunk(obs)
        log_std = self.std_head(x) if self.config.state_dependent_std else self.log_std
        return Gaussian(self.mean_head(x), jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))

    def value(self, obs: jax.Array) -> jax.Array:
        """[..., V] -> [...]."""
        trunk = self.policy_trunk if self.config.shared_trunk else self.value_trunk
        return self.value_head(trunk(obs)).squeeze(-1)
