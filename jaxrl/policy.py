"""Policies: from observations to actions, apart from any algorithm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.task import ArraySpec
from jaxrl.envs.vector import select
from jaxrl.errors import UserError
from jaxrl.nets import ActorCritic, NetworkConfig
from jaxrl.nets.encoders import WHOLE, encoder_names, is_image, parts_of
from jaxrl.rl import normalizer
from jaxrl.rl.distributions import DISTRIBUTIONS, Gaussian
from jaxrl.rl.normalizer import RunningStatistics


class PolicyState(struct.PyTreeNode):
    """What acting needs: network parameters and observation statistics."""

    params: Any
    normalizer: RunningStatistics


class Policy:
    """Normaliser, encoders, trunk, memory, head and distribution of actions.

    Args:
      network: its settings.
      observation: `ArraySpec`, or a dictionary of them.
      action: `ArraySpec`.
      normalize: scale observations by their running mean and standard deviation; images never.
      path: of the network's section in the configuration, for messages.

    Raises:
      UserError: settings that do not fit the observation.
    """

    def __init__(
        self,
        network: NetworkConfig,
        observation: Any,
        action: ArraySpec,
        *,
        normalize: bool = True,
        path: str = "network",
    ):
        self.config = network
        self.observation, self.action = observation, action
        self.parts = parts_of(observation)
        self.action_size = action.shape[0]
        self.normalizes = normalize
        self.encoders = encoder_names(network, observation, path)
        self._check_keys(path)
        self.network = ActorCritic(network, self.action_size, self.parts, self.encoders)
        kind = "categorical" if action.discrete else network.distribution
        self.distribution = DISTRIBUTIONS[kind]

    def _check_keys(self, path: str) -> None:
        known = sorted(self.parts) if isinstance(self.observation, dict) else []
        for field, keys in (
            ("policy_keys", self.config.policy_keys),
            ("value_keys", self.config.value_keys),
        ):
            wrong = [key for key in keys if key not in known]
            if wrong:
                raise UserError(
                    f"{path}.{field}: the observation has no {wrong[0]!r} (it has: "
                    f"{', '.join(known) or 'no keys, it is one array'})"
                )

    # -- what it keeps -------------------------------------------------------------------

    def state(self, params: Any) -> PolicyState:
        """A policy with these parameters that has seen no observations."""
        return PolicyState(params=params, normalizer=normalizer.init(self._vectors(self._shapes())))

    def init(self, key: jax.Array, *, value: bool) -> Any:
        """Parameters of the network.

        Args:
          key: PRNG key.
          value: with a value head; else of the policy alone.
        """
        lead = (1, 1) if self.has_memory else ()
        obs = jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), self._shapes())
        reset = jnp.zeros((1, 1), bool) if self.has_memory else None
        method = None if value else "policy"
        return self.network.init(key, obs, self.memory(1), reset, method=method)

    def _shapes(self) -> Any:
        """Shapes of one observation."""
        shapes = {k: jax.ShapeDtypeStruct(p.shape, p.dtype) for k, p in self.parts.items()}
        return shapes if isinstance(self.observation, dict) else shapes[WHOLE]

    # -- memory --------------------------------------------------------------------------

    @property
    def has_memory(self) -> bool:
        return self.config.memory != "none"

    def memory(self, count: int) -> Any:
        """The memory of so many worlds before their first step, leaves [count, H]; empty where
        the policy has none."""
        if not self.has_memory:
            return ()
        owners = ("policy",) if self.config.shared_trunk else ("policy", "value")
        return {owner: jnp.zeros((count, self.config.memory_size)) for owner in owners}

    def forget(self, memory: Any, ended: jax.Array) -> Any:
        """The memory [N, ...] where episodes ended [N] begins anew."""
        return select(ended, jax.tree.map(jnp.zeros_like, memory), memory)

    # -- acting --------------------------------------------------------------------------

    def __call__(self, state: PolicyState, obs: Any, memory: Any = ()) -> tuple[jax.Array, Any]:
        """Deterministic actions.

        Args:
          state: parameters and statistics.
          obs: observations, leaves [N, ...]; without memory, any leading axes.
          memory: [N, ...].

        Returns:
          actions [N, A] in [-1, 1], or [N] indices of choices; the memory after them.
        """
        gaussian, memory = self.gaussian(state, obs, memory)
        return self.distribution.action(gaussian.mean), memory

    def gaussian(self, state: PolicyState, obs: Any, memory: Any = ()) -> tuple[Gaussian, Any]:
        """Distribution of the raw actions, and the memory after them; arguments as of a call."""
        if not self.has_memory:
            return self.gaussians(state, obs)
        obs = jax.tree.map(lambda x: x[None], obs)
        reset = jnp.zeros((1, jax.tree.leaves(obs)[0].shape[1]), bool)
        gaussian, memory = self.gaussians(state, obs, memory, reset)
        return jax.tree.map(lambda x: x[0] if x.ndim == 3 else x, gaussian), memory

    def gaussians(
        self, state: PolicyState, obs: Any, memory: Any = (), reset: Any = None
    ) -> tuple[Gaussian, Any]:
        """Distributions of the raw actions of a sequence, and the memory after it.

        Args:
          state: parameters and statistics.
          obs: leaves [T, N, ...].
          memory: [N, ...] before the first step.
          reset: [T, N] bool, before which steps an episode began.
        """
        return self.network.apply(
            state.params, self.normalized(state, obs), memory, reset, method="policy"
        )

    def values(
        self, state: PolicyState, obs: Any, memory: Any = (), reset: Any = None
    ) -> tuple[jax.Array, Any]:
        """State values [T, N] of a sequence and the value's memory after each step [T, N, H];
        arguments as `gaussians`."""
        return self.network.apply(
            state.params, self.normalized(state, obs), memory, reset, method="value"
        )

    # -- observations --------------------------------------------------------------------

    def normalized(self, state: PolicyState, obs: Any) -> Any:
        """Observations [..., *S] scaled; images are left to their encoders."""
        if not self.normalizes:
            return obs
        vectors = normalizer.normalize(state.normalizer, self._vectors(obs))
        if isinstance(obs, dict):
            return obs | vectors
        return obs if is_image(self.parts[WHOLE]) else vectors

    def seen(self, state: PolicyState, obs: Any) -> RunningStatistics:
        """The statistics after some more observations [..., *S]."""
        if not self.normalizes:
            return state.normalizer
        return normalizer.update(state.normalizer, self._vectors(obs))

    def _vectors(self, obs: Any) -> Any:
        """The parts of an observation that are no images; {} if it is one image."""
        if isinstance(obs, dict):
            return {key: x for key, x in obs.items() if not is_image(self.parts[key])}
        return {} if is_image(self.parts[WHOLE]) else obs
