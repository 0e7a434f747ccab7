"""Proximal policy optimisation, fused with the simulation.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl.algos import base
from jaxrl.algos.base import (
    Algorithm,
    AlgorithmConfig,
    EpisodeSums,
    PolicyState,
    TrainState,
    concat_keys,
    episode_sums,
    shuffled,
)
from jaxrl.envs import Timestep, VectorState
from jaxrl.errors import UserError
from jaxrl.options import option
from jaxrl.rl import losses, normalizer
from jaxrl.rl.advantages import generalized_advantages
from jaxrl.rl.packing import Packing
from jaxrl.rl.returns import ReturnScale


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """A scripted controller that shows the policy what it would do in the states that the
    policy visits, for a part of the run."""

    name: str | None = option(None, "one of the task's baselines; none: reward alone teaches")
    coef: float = option(1.0, "weight of the squared distance to its actions", above=0)
    until: float = option(0.5, "share of the run where the weight has fallen to 0", above=0)


@dataclasses.dataclass(frozen=True)
class PPOConfig(AlgorithmConfig):
    """Settings of PPO."""

    num_epochs: int = option(4, "passes over the collected data", least=1, most=10_000)
    num_minibatches: int = option(4, "minibatches a pass", least=1)
    gae_lambda: float = option(0.95, "trace decay of the advantages", least=0, most=1)
    clip_range: float = option(0.2, "policy ratio clip", above=0)
    value_clip_range: float | None = option(None, "value clip; none: no clipping", above=0)
    value_coef: float = option(0.5, "weight of the value loss", least=0)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", least=0)
    target_kl: float | None = option(
        None, "no more updates in an iteration once the KL passes 1.5 times this", above=0
    )
    normalize_advantage: bool = option(True, "scale advantages to mean 0, std 1 a minibatch")
    expert: ExpertConfig = option(ExpertConfig(), "learn from a scripted controller too")


@struct.dataclass
class Hyperparameters(base.Hyperparameters):
    """The numbers of `PPOConfig` as traced scalars."""

    gae_lambda: jax.Array
    clip_range: jax.Array
    value_coef: jax.Array
    entropy_coef: jax.Array


@struct.dataclass
class Batch:
    """What the updates learn from; leaves [T, N, ...], then [B, ...]."""

    obs: Any
    raw_action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    returns: jax.Array
    expert: jax.Array | None  # [..., A] what the expert would do


@struct.dataclass
class Rollout:
    """One rollout; leaves [T, N, ...] but for the two last."""

    obs: Any
    raw_action: jax.Array
    log_prob: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    expert: jax.Array | None
    limit_obs: Any  # [S, N, ...] final observations of episodes the time limit ended
    last_obs: Any  # [N, ...]


class PPO(Algorithm):
    """PPO on `num_envs` copies of a task; arguments as `Algorithm`."""

    name = "ppo"
    Hyperparameters = Hyperparameters
    adam_epsilon = 1e-5

    @property
    def _limit_slots(self) -> int:
        """A world meets its time limit at most this often in one rollout."""
        return -(-self.config.num_steps // self.vector.least_episode)

    def _check(self) -> None:
        super()._check()
        c, network = self.config, self.config.network
        if self.batch_size % c.num_minibatches:
            raise UserError(
                f"ppo.num_minibatches: num_envs x ppo.num_steps = {self.num_envs} x "
                f"{c.num_steps} = {self.batch_size} samples do not divide into "
                f"{c.num_minibatches} minibatches"
            )
        if network.shared_trunk and network.policy_keys != network.value_keys:
            raise UserError(
                "ppo.network.shared_trunk: needs policy_keys and value_keys to be the same"
            )
        if c.expert.name is not None and self.env.action_spec.discrete:
            raise UserError("ppo.expert.name: needs continuous actions")
        experts = getattr(self.env, "baselines", dict)()
        if c.expert.name is not None and c.expert.name not in experts:
            raise UserError(
                f"ppo.expert.name: the task has no baseline {c.expert.name!r} (it has: "
                f"{', '.join(experts) or 'none'})"
            )
        self._expert = experts[c.expert.name] if c.expert.name else None

    def _expert_coef(self, state: TrainState) -> jax.Array:
        """Weight of the expert's advice now."""
        c = self.config.expert
        return c.coef * jnp.maximum(1.0 - self.progress(state) / c.until, 0.0)

    def _advice(self, envs: VectorState, wanted: jax.Array) -> jax.Array | None:
        """[N, A] what the expert would do, zero unless `wanted`; None without one."""
        if self._expert is None:
            return None
        none = jnp.zeros((self.num_envs, self.network.action_size))
        return jax.lax.cond(wanted, jax.vmap(self._expert), lambda _: none, envs.worlds)

    def _value(self, state: PolicyState, obs: Any) -> jax.Array:
        x = self._keys(state, obs, self.config.network.value_keys)
        return self.network.apply(state.params, x, method="value")

    def _init(self, key: jax.Array, one: Any, hyper: Hyperparameters) -> tuple[Any, Any, Any]:
        network = self.config.network
        params = self.network.init(
            key, concat_keys(one, network.policy_keys), concat_keys(one, network.value_keys)
        )
        return params, self._optimizer(hyper).init(params), None

    def _iterate(
        self, state: TrainState, key: jax.Array
    ) -> tuple[TrainState, tuple[dict, EpisodeSums]]:
        """Collect, learn, normalise."""
        key_act, key_learn = jax.random.split(key)
        envs, rollout, episodes = self._collect(state, key_act)
        state, metrics = self._improve(state.replace(envs=envs), rollout, key_learn)
        return state, (metrics, episodes)

    def _improve(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Learn from a rollout, then normalise."""
        return_scale, reward = self._scale_reward(state, rollout)
        batch = self._batch(state, rollout.replace(reward=reward))
        params, opt_state, metrics = self._learn(state, batch, key)
        # Acting and learning used the same statistics; now they may move.
        statistics = state.policy.normalizer
        if self.config.normalize_observation:
            statistics = normalizer.update(statistics, rollout.obs)
        state = state.replace(
            policy=PolicyState(params=params, normalizer=statistics),
            learner=opt_state,
            return_scale=return_scale,
        )
        return state, metrics

    @property
    def learns_every(self) -> int:
        return self.config.num_steps

    def act(self, state: TrainState, key: jax.Array) -> tuple[jax.Array, Any]:
        noise = jax.random.normal(key, (self.num_envs, self.network.action_size))
        return self._sampled(state.policy, state.envs.obs, noise)

    def _sampled(
        self, policy: PolicyState, obs: Any, noise: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Actions [N, A], and raw actions and their log-probabilities."""
        gaussian = self._gaussian(policy, obs)
        raw = self.distribution.sample(gaussian, noise)
        return self.distribution.action(raw), (raw, self.distribution.log_prob(gaussian, raw))

    def learn(
        self,
        state: TrainState,
        obs: Any,
        action: jax.Array,
        more: Any,
        step: Timestep,
        key: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # The steps [S, N] at which the time limit ended a world's first, second, .. episode.
        slots = jnp.arange(self._limit_slots)[:, None, None]
        nth = jnp.where(step.truncated, jnp.cumsum(step.truncated, axis=0) - 1, -1)
        when, world = (nth == slots).argmax(1), jnp.arange(self.num_envs)
        rollout = Rollout(
            obs,
            *more,
            step.reward,
            step.terminated,
            step.truncated,
            expert=None,
            limit_obs=jax.tree.map(lambda x: x[when, world], step.final_obs),
            last_obs=state.envs.obs,
        )
        return self._improve(state, rollout, key)

    def _collect(
        self, state: TrainState, key: jax.Array
    ) -> tuple[VectorState, Rollout, EpisodeSums]:
        """`num_steps` control steps of all worlds."""
        policy, envs = state.policy, state.envs
        learns_from_expert = self._expert_coef(state) > 0
        action_size = self.network.action_size
        noise = jax.random.normal(key, (self.config.num_steps, self.num_envs, action_size))
        limit_obs = jax.tree.map(
            lambda x: jnp.zeros((self._limit_slots, *x.shape), x.dtype), envs.obs
        )
        slots = jnp.arange(self._limit_slots)[:, None]

        def act(carry, noise):
            envs, limit_obs, limits = carry
            action, (raw, log_prob) = self._sampled(policy, envs.obs, noise)
            advice = self._advice(envs, learns_from_expert)
            new, step = self.vector.step(envs, action)
            here = (slots == limits) & step.truncated  # [S, N]
            limit_obs = jax.tree.map(
                lambda kept, x: jnp.where(here.reshape(*here.shape, *[1] * (x.ndim - 1)), x, kept),
                limit_obs,
                step.final_obs,
            )
            out = (envs.obs, raw, log_prob, step.reward, step.terminated, step.truncated, advice)
            return (new, limit_obs, limits + step.truncated), (out, episode_sums(step))

        start = (envs, limit_obs, jnp.zeros(self.num_envs, jnp.int32))
        (envs, limit_obs, _), (out, sums) = jax.lax.scan(act, start, noise)
        rollout = Rollout(*out, limit_obs=limit_obs, last_obs=envs.obs)
        return envs, rollout, jax.tree.map(lambda x: x.sum(0), sums)

    def _scale_reward(self, state: TrainState, rollout: Rollout) -> tuple[ReturnScale, jax.Array]:
        """[T, N] rewards over the std of the discounted return (if so configured)."""
        if not self.config.normalize_reward:
            return state.return_scale, rollout.reward
        done = rollout.terminated | rollout.truncated
        scale = state.return_scale.update(rollout.reward, done, gamma=state.hyper.gamma)
        return scale, scale(rollout.reward)

    def _batch(self, state: TrainState, rollout: Rollout) -> Batch:
        """Values, advantages and returns; leaves stay [T, N, ...]."""
        seen = jax.tree.map(
            lambda a, b, c: jnp.concatenate([a, b[None], c]),
            rollout.obs,
            rollout.last_obs,
            rollout.limit_obs,
        )
        values = self._value(state.policy, seen)  # [T + 1 + S, N]
        t = self.config.num_steps
        value, at_limit = values[:t], values[t + 1 :]
        # Which of the world's time limits each step is, if it is one.
        slot = jnp.maximum(jnp.cumsum(rollout.truncated, axis=0) - 1, 0)
        next_value = jnp.where(
            rollout.truncated, jnp.take_along_axis(at_limit, slot, axis=0), values[1 : t + 1]
        )
        advantage = generalized_advantages(
            rollout.reward,
            value,
            next_value,
            rollout.terminated,
            rollout.truncated,
            gamma=state.hyper.gamma,
            gae_lambda=state.hyper.gae_lambda,
        )
        return Batch(
            obs=rollout.obs,
            raw_action=rollout.raw_action,
            log_prob=rollout.log_prob,
            value=value,
            advantage=advantage,
            returns=advantage + value,
            expert=rollout.expert,
        )

    def _learn(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[Any, optax.OptState, dict[str, jax.Array]]:
        """`num_epochs` passes of minibatches over the shuffled samples."""
        c = self.config
        explained = 1.0 - (batch.returns - batch.value).var() / (batch.returns.var() + 1e-8)
        packing = Packing(jax.tree.map(lambda x: x[0, 0], batch))
        packed = packing.pack(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch))
        rate = state.hyper.learning_rate * self.rate(state)

        def take(order):
            return packing.unpack({kind: rows[order] for kind, rows in packed.items()})

        def epoch(carry, key):
            key_order, key_noise = jax.random.split(key)
            order = shuffled(key_order, self.batch_size).reshape(c.num_minibatches, -1)
            keys = jax.random.split(key_noise, c.num_minibatches)
            return jax.lax.scan(minibatch, carry, (order, keys))

        def minibatch(carry, x):
            order, key = x
            rows = take(order)
            if c.target_kl is None:
                return self._update(state, carry, rows, rate, key)
            params, opt_state, stopped, last = carry
            carry, metrics = jax.lax.cond(
                stopped,
                lambda: ((params, opt_state), last),
                lambda: self._update(state, (params, opt_state), rows, rate, key),
            )
            stopped |= metrics["train/approx_kl"] > 1.5 * c.target_kl
            return (*carry, stopped, metrics), metrics

        carry = (state.policy.params, state.learner)
        if c.target_kl is not None:
            blank = jax.eval_shape(
                lambda: self._update(
                    state,
                    carry,
                    take(jnp.arange(self.batch_size // c.num_minibatches)),
                    rate,
                    key,
                )[1]
            )
            carry = (*carry, jnp.zeros((), bool), jax.tree.map(lambda x: jnp.zeros(x.shape), blank))
        carry, metrics = jax.lax.scan(epoch, carry, jax.random.split(key, c.num_epochs))
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["train/explained_variance"] = explained
        return carry[0], carry[1], metrics

    def _update(
        self,
        state: TrainState,
        carry: tuple[Any, optax.OptState],
        rows: Batch,
        rate: jax.Array,
        key: jax.Array,
    ) -> tuple[tuple[Any, optax.OptState], dict[str, jax.Array]]:
        """One gradient step on a minibatch."""
        params, opt_state = carry
        gradient, metrics = jax.grad(self._loss, has_aux=True)(params, state, rows, key)
        carry = self._descend(params, opt_state, gradient, hyper=state.hyper, rate=rate)
        return carry, metrics

    def _loss(
        self, params: Any, state: TrainState, rows: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar loss of a minibatch [B, ...] and what to log of it."""
        c, hyper = self.config, state.hyper
        policy = state.policy.replace(params=params)
        gaussian, value = self._gaussian(policy, rows.obs), self._value(policy, rows.obs)
        advantage = rows.advantage
        if c.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = self.distribution.log_prob(gaussian, rows.raw_action) - rows.log_prob
        policy_loss = losses.clipped_surrogate(log_ratio, advantage, hyper.clip_range).mean()
        value_loss = losses.value_loss(value, rows.returns, rows.value, c.value_clip_range).mean()
        entropy = self.distribution.entropy(gaussian, key).mean()
        loss = policy_loss + hyper.value_coef * value_loss - hyper.entropy_coef * entropy
        clipped = jnp.abs(jnp.expm1(log_ratio)) > hyper.clip_range
        metrics = {}
        if self._expert is not None:
            away = self.distribution.action(gaussian.mean) - rows.expert
            distance = jnp.square(away).sum(-1).mean()
            coef = self._expert_coef(state)
            loss = loss + coef * distance
            metrics = {"train/expert_loss": jnp.where(coef > 0, distance, jnp.nan)}
        return loss, metrics | {
            "train/loss": loss,
            "train/policy_gradient_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": losses.approximate_kl(log_ratio).mean(),
            "train/clip_fraction": clipped.mean(),
            "train/std": jnp.exp(gaussian.log_std).mean(),
        }
