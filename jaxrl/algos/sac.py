"""Soft actor-critic (SAC).

Source: Haarnoja et al. 2018, "Soft actor-critic algorithms and applications".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl.algos import base, off_policy
from jaxrl.algos.base import TrainState
from jaxrl.algos.off_policy import Learner, OffPolicy, OffPolicyConfig
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.nets import NetworkConfig
from jaxrl.options import option
from jaxrl.policy import PolicyState
from jaxrl.rl import losses
from jaxrl.rl.replay import Transitions


@dataclasses.dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Settings of SAC."""

    network: NetworkConfig = option(
        dataclasses.replace(off_policy.NETWORK, state_dependent_std=True),
        "policy and critic networks",
    )
    initial_temperature: float = option(
        0.1,
        "weight of the entropy at the start of the run; a resumed run continues with the "
        "weight that it had reached",
        greater_than=0,
        traced=True,
    )
    temperature_learning_rate: float = option(
        3e-4,
        "learning rate of the entropy's weight; 0: the weight does not change",
        minimum=0,
        traced=True,
    )
    target_entropy: float = option(
        -1.0,
        "target value of the policy's entropy, for each component of the action (nats)",
        traced=True,
    )


class Temperature(struct.PyTreeNode):
    """Logarithm of the entropy's weight, and the state of its optimiser."""

    log: jax.Array
    opt_state: optax.OptState


class SAC(OffPolicy):
    """Soft actor-critic on the worlds of a task; arguments as for `Algorithm`."""

    name = "sac"
    Config = SACConfig

    def _check(self) -> None:
        super()._check()
        if self.config.network.distribution != "tanh_normal":
            raise UserError(
                f"sac.network.distribution: got {self.config.network.distribution}, must be "
                "tanh_normal"
            )
        if 0 < self.config.temperature_learning_rate < base.MIN_RATE:
            raise UserError(
                f"sac.temperature_learning_rate: got {self.config.temperature_learning_rate}, must "
                f"be 0 or at least {base.MIN_RATE}"
            )

    def _init_extra(self, params: Any, hyper: dict[str, jax.Array]) -> Temperature:
        log = jnp.log(hyper["initial_temperature"])
        return Temperature(log=log, opt_state=optax.scale_by_adam().init(log))

    def _sample(self, policy: PolicyState, obs: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns sampled actions [B, A] and their log-probabilities [B]."""
        gaussian, _ = self.policy.gaussian(policy, obs)
        distribution = self.policy.distribution
        raw = distribution.sample(gaussian, jax.random.normal(key, gaussian.mean.shape))
        return distribution.action(raw), distribution.log_prob(gaussian, raw)

    def _explore(self, state: TrainState, obs: Any, key: jax.Array) -> jax.Array:
        return self._sample(state.policy, obs, key)[0]

    def _next_action(
        self,
        policy: PolicyState,
        learner: Learner,
        hyper: dict[str, jax.Array],
        obs: Any,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        action, log_prob = self._sample(policy, obs, key)
        return action, -jnp.exp(learner.extra.log) * log_prob

    def _policy_loss(
        self, params: Any, state: TrainState, learner: Learner, batch: Transitions, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy = state.policy.replace(params=params)
        action, log_prob = self._sample(policy, batch.obs, key)
        value = self._minimum_value(learner, policy, batch.obs, action)
        loss = losses.soft_policy_loss(log_prob, value, jnp.exp(learner.extra.log)).mean()
        return loss, {columns.ACTOR_LOSS: loss, columns.ENTROPY: -log_prob.mean()}

    def _update_extra(
        self,
        extra: Temperature,
        params: Any,
        metrics: dict[str, jax.Array],
        *,
        hyper: dict[str, jax.Array],
        rate: jax.Array,
    ) -> tuple[Temperature, dict[str, jax.Array]]:
        target = hyper["target_entropy"] * self.policy.action_size
        loss, gradient = jax.value_and_grad(losses.temperature_loss)(
            extra.log, metrics[columns.ENTROPY], target
        )
        update, opt_state = optax.scale_by_adam().update(gradient, extra.opt_state)
        log = extra.log - rate * hyper["temperature_learning_rate"] * update
        extra = Temperature(log=log, opt_state=opt_state)
        return extra, {columns.TEMPERATURE: jnp.exp(log), columns.TEMPERATURE_LOSS: loss}
