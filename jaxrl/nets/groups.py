"""Networks for groups of alike things, such as four robots of a kind: all have the same weights.

A part of the observation with the shape [E, F] is a group of E rows. Each row controls an equal
share of the group's components of the action, and sees itself and a summary of everything else.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.envs.task import ArraySpec
from jaxrl.errors import UserError
from jaxrl.nets.actor_critic import LOG_STD_MAX, LOG_STD_MIN
from jaxrl.nets.config import NetworkConfig
from jaxrl.nets.encoders import Encoder
from jaxrl.nets.mlp import MLP
from jaxrl.rl.distributions import Gaussian


def group_sizes(
    config: NetworkConfig, spec: dict[str, ArraySpec], action_size: int, path: str
) -> dict[str, tuple[int, int]]:
    """Number of rows of each group, and of components of the action that a row controls, by the
    name of the group's part.

    Args:
      config: settings of the networks (`groups`).
      spec: parts of the observation.
      action_size: A.
      path: path of the network's section, for messages.

    Raises:
      UserError: the groups do not fit the observation or the action.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for item in config.groups:
        part, _, count = item.partition("=")
        rows = [name for name, each in spec.items() if len(each.shape) == 2]
        if part not in rows or not count.isdecimal() or int(count) % spec[part].shape[0]:
            raise UserError(
                f"{path}.groups: got {item!r}, expected PART=NUMBER with a part of the shape "
                f"[rows, features] ({', '.join(rows) or 'there is none'}) and a number of actions "
                "that its rows share evenly"
            )
        sizes[part] = (spec[part].shape[0], int(count) // spec[part].shape[0])
    total = sum(count * size for count, size in sizes.values())
    if sizes and total != action_size:
        raise UserError(
            f"{path}.groups: {total} components of the action, but it has {action_size}"
        )
    for key, off in (("memory", "none"), ("shared_trunk", False), ("state_dependent_std", False)):
        if sizes and vars(config)[key] != off:
            raise UserError(f"{path}.groups: cannot be used together with {key}")
    return sizes


class Summary(nn.Module):
    """What is common to all rows: the mean of each group's embedded rows, and all other parts.

    Attributes:
      config: settings of the networks.
      spec: parts of the observation by name.
      encoders: name of each part's encoder.
      groups: names of the groups.
      width: size of an embedded row.
    """

    config: NetworkConfig
    spec: dict[str, ArraySpec]
    encoders: dict[str, str]
    groups: tuple[str, ...]
    width: int

    @nn.compact
    def __call__(self, obs: Any) -> jax.Array:
        """Parts [..., *S] -> [..., F]."""
        c = self.config
        features = [
            MLP((self.width,), c.activation, c.layer_norm, name=name)(obs[name]).mean(-2)
            for name in self.groups
        ]
        others = tuple(sorted(self.spec.keys() - {*self.groups}))
        if others:
            features.append(Encoder(c, self.spec, self.encoders, others, name="others")(obs))
        return jnp.concatenate(features, axis=-1)


class GroupedActorCritic(nn.Module):
    """Policy and value networks for groups of alike things; methods as of `ActorCritic`.

    Attributes:
      config: settings of the networks.
      sizes: as of `group_sizes`, in the order of the action.
      spec: parts of the observation by name.
      encoders: name of each part's encoder.
    """

    config: NetworkConfig
    sizes: dict[str, tuple[int, int]]
    spec: dict[str, ArraySpec]
    encoders: dict[str, str]

    def setup(self) -> None:
        c, names = self.config, tuple(self.sizes)
        each = {name: size for name, (_, size) in self.sizes.items()}
        self.policy_summary = Summary(c, self.spec, self.encoders, names, c.policy_hidden[-1])
        self.value_summary = Summary(c, self.spec, self.encoders, names, c.value_hidden[-1])
        self.trunks = {n: MLP(c.policy_hidden, c.activation, c.layer_norm) for n in names}
        initial = nn.initializers.orthogonal(0.01)
        self.heads = {name: nn.Dense(size, kernel_init=initial) for name, size in each.items()}
        spread = nn.initializers.constant(math.log(c.initial_std))
        self.log_stds = {
            name: self.param(f"log_std_{name}", spread, (size,)) for name, size in each.items()
        }
        self.value_trunk = MLP(c.value_hidden, c.activation, c.layer_norm)
        self.value_head = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))

    def __call__(self, obs: Any, memory: Any, reset: Any) -> tuple[Gaussian, jax.Array]:
        return self.policy(obs, memory, reset)[0], self.value(obs, memory, reset)[0]

    def policy(self, obs: Any, memory: Any, reset: Any) -> tuple[Gaussian, Any]:
        summary = self.policy_summary(obs)
        means, log_stds = [], []
        for name in self.sizes:
            rows = obs[name]
            shared = jnp.broadcast_to(summary[..., None, :], (*rows.shape[:-1], summary.shape[-1]))
            x = self.trunks[name](jnp.concatenate([rows, shared], axis=-1))
            mean = self.heads[name](x)  # [..., E, A / E]
            means.append(mean.reshape(*mean.shape[:-2], -1))
            log_stds.append(jnp.tile(self.log_stds[name], rows.shape[-2]))
        log_std = jnp.clip(jnp.concatenate(log_stds), LOG_STD_MIN, LOG_STD_MAX)
        return Gaussian(jnp.concatenate(means, axis=-1), log_std), memory

    def value(self, obs: Any, memory: Any, reset: Any) -> tuple[jax.Array, Any]:
        return self.value_head(self.value_trunk(self.value_summary(obs))).squeeze(-1), None
