"""Policies: they map observations to actions, and are independent of any algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.task import ArraySpec
from jaxrl.envs.vector import select
from jaxrl.errors import UserError
from jaxrl.nets import ActorCritic, NetworkConfig
from jaxrl.nets.encoders import ONLY_PART, encoder_names, parts_of
from jaxrl.nets.groups import GroupedActorCritic, group_sizes
from jaxrl.rl import normalizer
from jaxrl.rl.distributions import DISTRIBUTIONS, Gaussian, Together
from jaxrl.rl.normalizer import RunningStatistics


class PolicyState(struct.PyTreeNode):
    """State of a policy.

    Attributes:
      params: network parameters.
      normalizer: observation statistics.
      constants: arrays that the policy's task uses and that never change, by name.
    """

    params: Any
    normalizer: RunningStatistics
    constants: Any = struct.field(default_factory=dict)


class Policy:
    """Normaliser, encoders, trunk, memory, head and distribution of actions.

    Args:
      network: settings of the network.
      observation: `ArraySpec`, or a dictionary of them.
      action: `ArraySpec`.
      normalize: whether to normalise observations, except images, by their running mean and
        standard deviation.
      path: path of the network's section in the configuration, for messages.
      constants: `Task.constants`.

    Raises:
      UserError: settings do not fit the observation.
    """

    def __init__(
        self,
        network: NetworkConfig,
        observation: Any,
        action: ArraySpec,
        *,
        normalize: bool = True,
        path: str = "network",
        constants: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.config, self.constants = network, constants
        self.observation, self.action = observation, action
        self.parts = parts_of(observation)
        self.action_size = action.shape[0]
        self.normalizes = normalize
        self.encoders = encoder_names(network, observation, path)
        self._check_keys(path)
        self.network: Any = ActorCritic(network, self.action_size, self.parts, self.encoders)
        groups = group_sizes(network, self.parts, self.action_size, path)
        if groups:
            self.network = GroupedActorCritic(network, groups, self.parts, self.encoders)
        kind = "categorical" if action.discrete else network.distribution
        self.distribution = DISTRIBUTIONS[kind]
        if network.group_noise:
            if not groups or kind != "normal":
                raise UserError(f"{path}.group_noise: needs groups, and the distribution normal")
            self.distribution = Together([*groups.values()], network.group_noise)

    def _check_keys(self, path: str) -> None:
        known = sorted(self.parts) if isinstance(self.observation, dict) else []
        for field, keys in (
            ("policy_keys", self.config.policy_keys),
            ("value_keys", self.config.value_keys),
        ):
            wrong = [key for key in keys if key not in known]
            if wrong:
                raise UserError(
                    f"{path}.{field}: the observation has no part {wrong[0]!r} (its parts: "
                    f"{', '.join(known) or 'none, it is one array'})"
                )

    # -- parameters and statistics -------------------------------------------------------

    def state(self, params: Any) -> PolicyState:
        """Returns a policy's state with these parameters, before any observation."""
        return PolicyState(
            params=params,
            normalizer=normalizer.init(self._vectors(self._shapes())),
            constants={name: jnp.asarray(value) for name, value in self.constants.items()},
        )

    def init(self, key: jax.Array, *, value: bool) -> Any:
        """Returns initial parameters of the network.

        Args:
          key: PRNG key.
          value: whether to include the value network; else only the policy network.
        """
        lead = (1, 1) if self.has_memory else ()
        obs = jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), self._shapes())
        reset = jnp.zeros((1, 1), bool) if self.has_memory else None
        method = None if value else "policy"
        return self.network.init(key, obs, self.memory(1), reset, method=method)

    def _shapes(self) -> Any:
        """Returns the shapes of one observation."""
        shapes = {k: jax.ShapeDtypeStruct(p.shape, p.dtype) for k, p in self.parts.items()}
        return shapes if isinstance(self.observation, dict) else shapes[ONLY_PART]

    # -- memory --------------------------------------------------------------------------

    @property
    def has_memory(self) -> bool:
        return self.config.memory != "none"

    def memory(self, count: int) -> Any:
        """Returns the memory of `count` worlds before their first step, leaves [count, H]; empty
        if the policy has no memory."""
        if not self.has_memory:
            return ()
        owners = ("policy",) if self.config.shared_trunk else ("policy", "value")
        return {owner: jnp.zeros((count, self.config.memory_size)) for owner in owners}

    def forget(self, memory: Any, ended: jax.Array) -> Any:
        """Returns the memory [N, ...], set to zero in worlds where an episode ended ([N] bool)."""
        return select(ended, jax.tree.map(jnp.zeros_like, memory), memory)

    # -- acting --------------------------------------------------------------------------

    def __call__(self, state: PolicyState, obs: Any, memory: Any = ()) -> tuple[jax.Array, Any]:
        """Returns deterministic actions.

        Args:
          state: parameters and statistics.
          obs: observations, leaves [N, ...]; without memory, any leading axes.
          memory: [N, ...] memory before the step.

        Returns:
          actions [N, A] in [-1, 1], or [N] indices of discrete actions; the memory after the step.
        """
        gaussian, memory = self.gaussian(state, obs, memory)
        return self.distribution.action(gaussian.mean), memory

    def gaussian(self, state: PolicyState, obs: Any, memory: Any = ()) -> tuple[Gaussian, Any]:
        """Returns the distribution of raw actions, and the memory after the step; arguments as
        for `__call__`."""
        if not self.has_memory:
            return self.gaussians(state, obs)
        obs = jax.tree.map(lambda x: x[None], obs)
        reset = jnp.zeros((1, jax.tree.leaves(obs)[0].shape[1]), bool)
        gaussian, memory = self.gaussians(state, obs, memory, reset)
        return jax.tree.map(lambda x: x[0] if x.ndim == 3 else x, gaussian), memory

    def gaussians(
        self, state: PolicyState, obs: Any, memory: Any = (), reset: Any = None
    ) -> tuple[Gaussian, Any]:
        """Returns the distributions of raw actions in a sequence, and the memory after it.

        Args:
          state: parameters and statistics.
          obs: leaves [T, N, ...].
          memory: [N, ...] memory before the first step.
          reset: [T, N] bool, steps before which an episode began and the memory is reset.
        """
        return self.network.apply(
            state.params, self.normalized(state, obs), memory, reset, method="policy"
        )

    def values(
        self, state: PolicyState, obs: Any, memory: Any = (), reset: Any = None
    ) -> tuple[jax.Array, Any]:
        """Returns the state values [T, N] of a sequence, and the value network's memory after each
        step [T, N, H] (None without memory); arguments as for `gaussians`."""
        return self.network.apply(
            state.params, self.normalized(state, obs), memory, reset, method="value"
        )

    # -- observations --------------------------------------------------------------------

    def normalized(self, state: PolicyState, obs: Any) -> Any:
        """Returns normalised observations [..., *S]; images are unchanged (encoders scale them)."""
        if not self.normalizes:
            return obs
        vectors = normalizer.normalize(state.normalizer, self._vectors(obs))
        if isinstance(obs, dict):
            return obs | vectors
        return obs if self.parts[ONLY_PART].is_image else vectors

    def seen(self, state: PolicyState, obs: Any) -> RunningStatistics:
        """Returns the statistics of observations, with observations [..., *S] added."""
        if not self.normalizes:
            return state.normalizer
        return normalizer.update(state.normalizer, self._vectors(obs))

    def _vectors(self, obs: Any) -> Any:
        """Returns the parts of an observation that are not images; {} if it is a single image."""
        if isinstance(obs, dict):
            return {key: x for key, x in obs.items() if not self.parts[key].is_image}
        return {} if self.parts[ONLY_PART].is_image else obs
