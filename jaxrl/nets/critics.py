"""Action values: an ensemble of independent critics, scalar or categorical."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.envs.task import ArraySpec
from jaxrl.nets.config import NetworkConfig
from jaxrl.nets.encoders import Encoder
from jaxrl.nets.mlp import MLP


class Critic(nn.Module):
    """One critic: a network for the value of an action.

    Attributes:
      config: settings of the networks (`value_hidden`).
      outputs: number of outputs Z.
      spec: parts of the observation by name.
      encoders: name of each part's encoder.
    """

    config: NetworkConfig
    outputs: int
    spec: dict[str, ArraySpec]
    encoders: dict[str, str]

    @nn.compact
    def __call__(self, obs: Any, action: jax.Array) -> jax.Array:
        """Observation with parts [..., *S], action [..., A] -> outputs [..., Z]."""
        c = self.config
        features = Encoder(c, self.spec, self.encoders, c.value_keys, name="encoder")(obs)
        x = jnp.concatenate([features, action], axis=-1)
        x = MLP(c.value_hidden, c.activation, c.layer_norm)(x)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(1.0))(x)


def critic_ensemble(
    config: NetworkConfig,
    count: int,
    outputs: int,
    spec: dict[str, ArraySpec],
    encoders: dict[str, str],
) -> nn.Module:
    """Returns a module of `count` critics with separate weights: observation with parts [..., *S],
    action [..., A] -> outputs [count, ..., Z]."""
    return nn.vmap(
        Critic,
        in_axes=None,
        axis_size=count,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )(config, outputs, spec, encoders)
