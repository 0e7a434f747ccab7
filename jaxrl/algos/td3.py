"""Twin delayed deterministic policy gradient, fused with the simulation.

Source: Fujimoto et al. 2018, "Addressing function approximation error in actor-critic
methods"; the scaling options after Seo et al. 2025, "FastTD3".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.algos.base import TrainState
from jaxrl.algos.off_policy import Learner, OffPolicy, OffPolicyConfig, soft_update
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.options import option
from jaxrl.policy import PolicyState
from jaxrl.rl.replay import Transitions


@dataclasses.dataclass(frozen=True)
class TD3Config(OffPolicyConfig):
    """Settings of TD3."""

    policy_delay: int = option(2, "updates of the critics for one of the policy", minimum=1)
    exploration_noise: float = option(
        0.4, "std of the noise in the world with the most", minimum=0, traced=True
    )
    exploration_noise_least: float = option(
        0.05, "and in the one with the least", minimum=0, traced=True
    )
    target_noise: float = option(
        0.2, "std of the noise on the targets' actions", minimum=0, traced=True
    )
    target_noise_clip: float = option(0.5, "bound of that noise", minimum=0, traced=True)


class TD3(OffPolicy):
    """TD3 on `num_envs` copies of a task; arguments as `Algorithm`.

    `Learner.extra` is the slow copy of the policy's parameters.
    """

    name = "td3"
    Config = TD3Config
    delayed_targets = True

    def _check(self) -> None:
        super()._check()
        c = self.config
        if c.exploration_noise_least > c.exploration_noise:
            raise UserError(
                f"td3.exploration_noise_least: got {c.exploration_noise_least}, must be at most "
                f"exploration_noise, {c.exploration_noise}"
            )

    def _init_extra(self, params: Any, hyper: dict[str, jax.Array]) -> Any:
        return jax.tree.map(jnp.copy, params)

    def _explore(self, state: TrainState, obs: Any, key: jax.Array) -> jax.Array:
        """Noise of another size in each world, evenly from least to most."""
        hyper = state.hyper
        share = (jnp.arange(self.num_envs) + 0.5)[:, None] / self.num_envs
        std = hyper["exploration_noise_least"] + share * (
            hyper["exploration_noise"] - hyper["exploration_noise_least"]
        )
        action, _ = self.policy(state.policy, obs)
        return jnp.clip(action + std * jax.random.normal(key, action.shape), -1.0, 1.0)

    def _next_action(
        self,
        policy: PolicyState,
        learner: Learner,
        hyper: dict[str, jax.Array],
        obs: Any,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        action, _ = self.policy(policy.replace(params=learner.extra), obs)
        noise = hyper["target_noise"] * jax.random.normal(key, action.shape)
        noise = jnp.clip(noise, -hyper["target_noise_clip"], hyper["target_noise_clip"])
        return jnp.clip(action + noise, -1.0, 1.0), jnp.zeros(action.shape[0])

    def _policy_loss(
        self, params: Any, state: TrainState, learner: Learner, batch: Transitions, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # The least of the critics, as for SAC, where the paper takes the first.
        policy = state.policy.replace(params=params)
        action, _ = self.policy(policy, batch.obs)
        loss = -self._least_value(learner, policy, batch.obs, action).mean()
        return loss, {columns.ACTOR_LOSS: loss}

    def _update_extra(
        self,
        extra: Any,
        params: Any,
        metrics: dict[str, jax.Array],
        *,
        hyper: dict[str, jax.Array],
        rate: jax.Array,
    ) -> tuple[Any, dict[str, jax.Array]]:
        return soft_update(params, extra, hyper["tau"]), {}
