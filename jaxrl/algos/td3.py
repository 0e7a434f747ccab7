"""Twin delayed deterministic policy gradient (TD3).

Source: Fujimoto et al. 2018, "Addressing function approximation error in actor-critic
methods"; the options for many worlds follow Seo et al. 2025, "FastTD3".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import devices
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

    policy_delay: int = option(
        2, "number of updates of the critics for each update of the policy", minimum=1
    )
    exploration_noise: float = option(
        0.4,
        "standard deviation of the exploration noise in the world with the most noise; "
        "the other worlds have evenly spaced values below it",
        minimum=0,
        traced=True,
    )
    exploration_noise_minimum: float = option(
        0.05,
        "standard deviation of the exploration noise in the world with the least noise",
        minimum=0,
        traced=True,
        formerly="exploration_noise_least",
    )
    target_noise: float = option(
        0.2,
        "standard deviation of the noise on actions in the critics' targets",
        minimum=0,
        traced=True,
    )
    target_noise_clip: float = option(
        0.5,
        "largest absolute value of the noise on actions in the critics' targets",
        minimum=0,
        traced=True,
    )


class TD3(OffPolicy):
    """TD3 on the worlds of a task; arguments as for `Algorithm`.

    `Learner.extra` holds the parameters of the target policy, a slow copy of the policy's.
    """

    name = "td3"
    Config = TD3Config
    delayed_targets = True

    def _check(self) -> None:
        super()._check()
        c = self.config
        if c.exploration_noise_minimum > c.exploration_noise:
            raise UserError(
                f"td3.exploration_noise_minimum: got {c.exploration_noise_minimum}, must be at "
                f"most exploration_noise, {c.exploration_noise}"
            )

    def _init_extra(self, params: Any, hyper: dict[str, jax.Array]) -> Any:
        return jax.tree.map(jnp.copy, params)

    def _explore(self, state: TrainState, obs: Any, key: jax.Array) -> jax.Array:
        """Returns actions with noise; its size grows evenly from the first world to the last."""
        hyper = state.hyper
        place = devices.index() * self.num_envs + jnp.arange(self.num_envs)
        share = (place + 0.5)[:, None] / self.all_envs
        std = hyper["exploration_noise_minimum"] + share * (
            hyper["exploration_noise"] - hyper["exploration_noise_minimum"]
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
        # The smallest value of all critics, as in SAC; the paper uses the first critic alone.
        policy = state.policy.replace(params=params)
        action, _ = self.policy(policy, batch.obs)
        loss = -self._minimum_value(learner, policy, batch.obs, action).mean()
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
