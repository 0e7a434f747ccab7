"""Action values: an ensemble of independent critics, scalar or categorical."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.actor_critic import NetworkConfig
from jaxrl.nets.mlp import MLP


class Critic(nn.Module):
    """One critic.

    Attributes:
      config: networks (`value_hidden`).
      outputs: Z.
    """

    config: NetworkConfig
    outputs: int

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[..., I], [..., A] -> [..., Z]."""
        c = self.config
        x = jnp.concatenate([obs, action], axis=-1)
        x = MLP(c.value_hidden, c.activation, c.layer_norm)(x)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(1.0))(x)


def critic_ensemble(config: NetworkConfig, count: int, outputs: int) -> nn.Module:
    """`count` critics with their own weights: [..., I], [..., A] -> [count, ..., Z]."""
    return nn.vmap(
        Critic,
        in_axes=None,
        axis_size=count,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )(config, outputs)
