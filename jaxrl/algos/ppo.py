"""Proximal policy optimisation, fused with the simulation.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import platform
from jaxrl.algos.base import Algorithm, AlgorithmConfig, TrainState, shuffled
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.options import option
from jaxrl.policy import Policy, PolicyState
from jaxrl.rl import losses
from jaxrl.rl.advantages import generalized_advantages
from jaxrl.rl.packing import Packing
from jaxrl.rl.returns import ReturnScale
from jaxrl.rl.rollout import Rollout


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """A scripted controller that shows the policy what it would do in the states that the
    policy visits, for a part of the run."""

    name: str | None = option(None, "one of the task's baselines; none: reward alone teaches")
    coef: float = option(1.0, "weight of the squared distance to its actions", greater_than=0)
    until: float = option(0.5, "share of the run where the weight has fallen to 0", greater_than=0)


@dataclasses.dataclass(frozen=True)
class PPOConfig(AlgorithmConfig):
    """Settings of PPO."""

    num_epochs: int = option(4, "passes over the collected data", minimum=1, maximum=10_000)
    num_minibatches: int = option(4, "minibatches a pass", minimum=1)
    gae_lambda: float = option(
        0.95, "trace decay of the advantages", minimum=0, maximum=1, traced=True
    )
    clip_range: float = option(0.2, "policy ratio clip", greater_than=0, traced=True)
    value_clip_range: float | None = option(None, "value clip; none: no clipping", greater_than=0)
    value_coef: float = option(0.5, "weight of the value loss", minimum=0, traced=True)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", minimum=0, traced=True)
    target_kl: float | None = option(
        None, "no more updates in an iteration once the KL passes 1.5 times this", greater_than=0
    )
    normalize_advantage: bool = option(True, "scale advantages to mean 0, std 1 a minibatch")
    expert: ExpertConfig = option(ExpertConfig(), "learn from a scripted controller too")


class Acted(struct.PyTreeNode):
    """What PPO notes of its actions; leaves [N, ...].

    Attributes:
      raw: [N, A] samples of the Gaussian.
      log_prob: [N].
      expert: [N, A] what the expert would do; None without one.
    """

    raw: jax.Array
    log_prob: jax.Array
    expert: jax.Array | None


class Batch(struct.PyTreeNode):
    """What the updates learn from; leaves [T, N, ...], then [B, ...].

    Attributes:
      reset: an episode began before the step; None unless the policy has a memory.
    """

    obs: Any
    acted: Acted
    value: jax.Array
    advantage: jax.Array
    returns: jax.Array
    reset: jax.Array | None


class PPO(Algorithm):
    """PPO on the worlds of a task; arguments as `Algorithm`."""

    name = "ppo"
    Config = PPOConfig
    adam_epsilon = 1e-5

    def _check(self) -> None:
        super()._check()
        c, network = self.config, self.config.network
        # A policy with a memory learns from whole worlds, in the order of their steps.
        count, what = self.batch_size, f"num_envs x ppo.num_steps = {self.num_envs} x {c.num_steps}"
        if self.policy.has_memory:
            count, what = self.num_envs, "with a memory, num_envs"
        if count % c.num_minibatches:
            samples = f"{count} worlds" if self.policy.has_memory else f"{count} samples"
            raise UserError(
                f"ppo.num_minibatches: {what} = {samples} do not divide into "
                f"{c.num_minibatches} minibatches"
            )
        if network.shared_trunk and network.policy_keys != network.value_keys:
            raise UserError(
                "ppo.network.shared_trunk: needs policy_keys and value_keys to be the same"
            )
        if c.expert.name is not None and self.task.action_spec.discrete:
            raise UserError("ppo.expert.name: needs continuous actions")
        experts = self.task.baselines()
        if c.expert.name is not None and c.expert.name not in experts:
            raise UserError(
                f"ppo.expert.name: the task has no baseline {c.expert.name!r} (it has: "
                f"{', '.join(experts) or 'none'})"
            )
        self._expert = experts[c.expert.name] if c.expert.name else None

    @classmethod
    def init_params(cls, policy: Policy, key: jax.Array) -> Any:
        return policy.init(key, value=True)

    def _init(self, key: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        params = self.init_params(self.policy, key)
        return params, self._optimizer(hyper).init(params), None

    def memory_needs(self, shapes: TrainState) -> Iterator[tuple[str, tuple[int, str]]]:
        yield from super().memory_needs(shapes)
        c, action = self.config, 4 * self.policy.action_size
        obs = platform.tree_bytes(shapes.envs.obs) // self.num_envs
        rollout = self.batch_size * (2 * obs + 3 * action + 24)  # collected, and packed once more
        passes = 32 * c.num_epochs * c.num_minibatches
        yield "rollout", (rollout + passes, "num_envs, ppo.num_steps, ppo.num_epochs")

    # -- acting --------------------------------------------------------------------------

    @property
    def learns_every(self) -> int:
        return self.config.num_steps

    def draws(self, key: jax.Array, steps: int) -> jax.Array:
        return jax.random.normal(key, (steps, self.num_envs, self.policy.action_size))

    def act(self, state: TrainState, draw: jax.Array) -> tuple[jax.Array, Acted, Any]:
        gaussian, memory = self.policy.gaussian(state.policy, state.envs.obs, state.memory)
        distribution = self.policy.distribution
        raw = distribution.sample(gaussian, draw)
        acted = Acted(raw, distribution.log_prob(gaussian, raw), self._advice(state))
        return distribution.action(raw), acted, memory

    def _expert_coef(self, state: TrainState) -> jax.Array:
        """Weight of the expert's advice now."""
        c = self.config.expert
        return c.coef * jnp.maximum(1.0 - self.progress(state) / c.until, 0.0)

    def _advice(self, state: TrainState) -> jax.Array | None:
        """[N, A] what the expert would do, zero once its weight is; None without one."""
        if self._expert is None:
            return None
        nothing = jnp.zeros((self.num_envs, self.policy.action_size))
        return jax.lax.cond(
            self._expert_coef(state) > 0,
            jax.vmap(self._expert),
            lambda _: nothing,
            state.envs.worlds,
        )

    # -- learning ------------------------------------------------------------------------

    def learn(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Learns from a rollout, and moves the statistics of observations and returns."""
        return_scale, reward = self._scale_reward(state, rollout)
        batch, memory = self._batch(state, rollout.replace(reward=reward))
        params, opt_state, metrics = self._learn(state, batch, rollout.memory, key)
        # Acting and learning used the same statistics; now they may move.
        statistics = self.policy.seen(state.policy, rollout.obs)
        state = state.replace(
            policy=PolicyState(params=params, normalizer=statistics),
            learner=opt_state,
            return_scale=return_scale,
            memory=memory,
        )
        return state, metrics

    def _scale_reward(self, state: TrainState, rollout: Rollout) -> tuple[ReturnScale, jax.Array]:
        """[T, N] rewards over the std of the discounted return (if so configured)."""
        if not self.config.normalize_reward:
            return state.return_scale, rollout.reward
        done = rollout.terminated | rollout.truncated
        scale = state.return_scale.update(rollout.reward, done, gamma=state.hyper["gamma"])
        return scale, scale(rollout.reward)

    def _batch(self, state: TrainState, rollout: Rollout) -> tuple[Batch, Any]:
        """Values, advantages and returns, leaves still [T, N, ...]; and the memory after them."""
        if self.policy.has_memory:
            value, next_value, reset, memory = self._values_in_order(state, rollout)
        else:
            value, next_value = self._values(state, rollout)
            reset, memory = None, state.memory
        advantage = generalized_advantages(
            rollout.reward,
            value,
            next_value,
            rollout.terminated,
            rollout.truncated,
            gamma=state.hyper["gamma"],
            gae_lambda=state.hyper["gae_lambda"],
        )
        batch = Batch(
            obs=rollout.obs,
            acted=rollout.act_info,
            value=value,
            advantage=advantage,
            returns=advantage + value,
            reset=reset,
        )
        return batch, memory

    def _values(self, state: TrainState, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
        """[T, N] values of the observations acted on, and of what followed."""
        seen = jax.tree.map(
            lambda a, b, c: jnp.concatenate([a, b[None], c]),
            rollout.obs,
            rollout.last_obs,
            rollout.limit_obs,
        )
        values, _ = self.policy.values(state.policy, seen)  # [T + 1 + S, N]
        t = self.config.num_steps
        return values[:t], _at_limits(rollout, values[1 : t + 1], values[t + 1 :])

    def _values_in_order(
        self, state: TrainState, rollout: Rollout
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """As `_values`, of a policy with a memory; also [T, N] where it is forgotten, and the
        memory after the last step."""
        owner = "policy" if self.config.network.shared_trunk else "value"
        done = rollout.terminated | rollout.truncated
        # What was kept in memory before the first step has been forgotten already.
        reset = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
        value, states = self.policy.values(state.policy, rollout.obs, rollout.memory, reset)
        after = jnp.where(done[-1][:, None], 0.0, states[-1])  # [N, H]

        def step(obs, kept):
            """[N] values of observations seen with a memory [N, H]."""
            obs = jax.tree.map(lambda x: x[None], obs)
            values, _ = self.policy.values(
                state.policy, obs, rollout.memory | {owner: kept}, jnp.zeros_like(done[:1])
            )
            return values[0]

        last = step(rollout.last_obs, after)
        slots = jax.tree.leaves(rollout.limit_obs)[0].shape[0]
        nth = jnp.where(rollout.truncated, jnp.cumsum(rollout.truncated, axis=0) - 1, -1)
        when = (nth == jnp.arange(slots)[:, None, None]).argmax(1)  # [S, N]
        kept = states[when, jnp.arange(self.num_envs)]
        at_limits = jax.vmap(step)(rollout.limit_obs, kept)
        following = _at_limits(rollout, jnp.concatenate([value[1:], last[None]]), at_limits)
        memory = state.memory if owner == "policy" else state.memory | {owner: after}
        return value, following, reset, memory

    def _learn(
        self, state: TrainState, batch: Batch, memory: Any, key: jax.Array
    ) -> tuple[Any, optax.OptState, dict[str, jax.Array]]:
        """`num_epochs` passes of minibatches over the shuffled samples, or over the worlds."""
        c = self.config
        explained = 1.0 - (batch.returns - batch.value).var() / (batch.returns.var() + 1e-8)
        count, take = self._minibatches(batch, memory)
        rate = state.hyper["learning_rate"] * self.rate(state)

        def epoch(carry, key):
            key_order, key_noise = jax.random.split(key)
            order = shuffled(key_order, count).reshape(c.num_minibatches, -1)
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
            stopped |= metrics[columns.KL] > 1.5 * c.target_kl
            return (*carry, stopped, metrics), metrics

        carry: tuple[Any, ...] = (state.policy.params, state.learner)
        if c.target_kl is not None:
            rows = take(jnp.arange(count // c.num_minibatches))
            blank = jax.eval_shape(lambda: self._update(state, carry, rows, rate, key)[1])
            carry = (*carry, jnp.zeros((), bool), jax.tree.map(lambda x: jnp.zeros(x.shape), blank))
        carry, metrics = jax.lax.scan(epoch, carry, jax.random.split(key, c.num_epochs))
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics[columns.EXPLAINED_VARIANCE] = explained
        return carry[0], carry[1], metrics

    def _minibatches(
        self, batch: Batch, memory: Any
    ) -> tuple[int, Callable[[jax.Array], tuple[Batch, Any]]]:
        """How many samples or worlds there are, and what takes some of them by their numbers:
        rows [B, ...], or of a policy with a memory sequences [T, B, ...] and the memory [B, ...]
        before them."""
        if self.policy.has_memory:
            return self.num_envs, lambda order: (
                jax.tree.map(lambda x: x[:, order], batch),
                jax.tree.map(lambda x: x[order], memory),
            )
        packing = Packing(jax.tree.map(lambda x: x[0, 0], batch))
        packed = packing.pack(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch))

        def take(order):
            return packing.unpack({kind: rows[order] for kind, rows in packed.items()}), ()

        return self.batch_size, take

    def _update(
        self,
        state: TrainState,
        carry: tuple[Any, optax.OptState],
        rows: tuple[Batch, Any],
        rate: jax.Array,
        key: jax.Array,
    ) -> tuple[tuple[Any, optax.OptState], dict[str, jax.Array]]:
        """One gradient step on a minibatch."""
        params, opt_state = carry
        gradient, metrics = jax.grad(self._loss, has_aux=True)(params, state, rows, key)
        carry = self._descend(params, opt_state, gradient, hyper=state.hyper, rate=rate)
        return carry, metrics

    def _loss(
        self, params: Any, state: TrainState, rows: tuple[Batch, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar loss of a minibatch and the memory before it, and what to log of it."""
        c, hyper, distribution = self.config, state.hyper, self.policy.distribution
        policy = state.policy.replace(params=params)
        batch, memory = rows
        gaussian, _ = self.policy.gaussians(policy, batch.obs, memory, batch.reset)
        value, _ = self.policy.values(policy, batch.obs, memory, batch.reset)
        advantage = batch.advantage
        if c.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = distribution.log_prob(gaussian, batch.acted.raw) - batch.acted.log_prob
        policy_loss = losses.clipped_surrogate(log_ratio, advantage, hyper["clip_range"]).mean()
        value_loss = losses.value_loss(value, batch.returns, batch.value, c.value_clip_range).mean()
        entropy = distribution.entropy(gaussian, key).mean()
        loss = policy_loss + hyper["value_coef"] * value_loss - hyper["entropy_coef"] * entropy
        clipped = jnp.abs(jnp.expm1(log_ratio)) > hyper["clip_range"]
        metrics = {}
        if self._expert is not None:
            away = distribution.action(gaussian.mean) - batch.acted.expert
            distance = jnp.square(away).sum(-1).mean()
            coef = self._expert_coef(state)
            loss = loss + coef * distance
            metrics = {columns.EXPERT_LOSS: jnp.where(coef > 0, distance, jnp.nan)}
        return loss, metrics | {
            columns.LOSS: loss,
            columns.POLICY_LOSS: policy_loss,
            columns.VALUE_LOSS: value_loss,
            columns.ENTROPY_LOSS: -entropy,
            columns.KL: losses.approximate_kl(log_ratio).mean(),
            columns.CLIP_FRACTION: clipped.mean(),
            columns.STD: jnp.exp(gaussian.log_std).mean(),
        }


def _at_limits(rollout: Rollout, following: jax.Array, at_limits: jax.Array) -> jax.Array:
    """[T, N] values of what followed each step.

    Args:
      rollout: the steps.
      following: [T, N] values of the observations that were acted on next.
      at_limits: [S, N] values of the final observations at time limits.
    """
    # Which of the world's time limits each step is, if it is one.
    slot = jnp.maximum(jnp.cumsum(rollout.truncated, axis=0) - 1, 0)
    limited = jnp.take_along_axis(at_limits, slot, axis=0)
    return jnp.where(rollout.truncated, limited, following)
