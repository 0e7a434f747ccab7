"""Proximal policy optimisation (PPO).

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

from jaxrl import devices, platform
from jaxrl.algos.base import Algorithm, AlgorithmConfig, TrainState, shuffled
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.options import option
from jaxrl.policy import Policy
from jaxrl.rl import losses
from jaxrl.rl.advantages import generalized_advantages
from jaxrl.rl.packing import Packing
from jaxrl.rl.returns import ReturnScale
from jaxrl.rl.rollout import Rollout


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """Imitation of a scripted controller (the expert): for a part of the run, the policy also
    learns the expert's actions in the states that the policy visits."""

    name: str | None = option(
        None,
        "a baseline of the task whose actions the policy also learns to imitate; none: "
        "the policy learns from rewards alone",
    )
    coef: float = option(
        1.0,
        "weight of the squared distance to the expert's actions, at the start of the run",
        greater_than=0,
    )
    until: float = option(
        0.5,
        "share of the run (0 to 1) after which the expert's weight has fallen to 0",
        greater_than=0,
    )


@dataclasses.dataclass(frozen=True)
class PPOConfig(AlgorithmConfig):
    """Settings of PPO."""

    num_epochs: int = option(
        4, "number of passes over the collected data in each iteration", minimum=1, maximum=10_000
    )
    num_minibatches: int = option(4, "number of minibatches in each pass over the data", minimum=1)
    gae_lambda: float = option(
        0.95, "lambda of generalised advantage estimation (GAE)", minimum=0, maximum=1, traced=True
    )
    clip_range: float = option(
        0.2, "clip range of PPO's probability ratio", greater_than=0, traced=True
    )
    value_clip_range: float | None = option(
        None, "clip range of the value loss; none: it is not clipped", greater_than=0
    )
    value_coef: float = option(
        0.5, "weight of the value loss in the total loss", minimum=0, traced=True
    )
    entropy_coef: float = option(
        0.0, "weight of the entropy bonus in the total loss", minimum=0, traced=True
    )
    bounds_coef: float = option(
        0.0,
        "weight of the squared distance of the policy's mean beyond the action's bounds, where a "
        "plain Gaussian no longer explores (distribution normal)",
        minimum=0,
    )
    target_kl: float | None = option(
        None,
        "an iteration makes no more updates when the approximate KL divergence exceeds "
        "1.5 times this; none: no limit",
        greater_than=0,
    )
    normalize_advantage: bool = option(
        True, "normalise the advantages of each minibatch to mean 0 and standard deviation 1"
    )
    expert: ExpertConfig = option(ExpertConfig(), "learn from a scripted controller too")


class Acted(struct.PyTreeNode):
    """Data about the actions in training; leaves [N, ...].

    Attributes:
      raw: [N, A] raw samples of the action distribution.
      log_prob: [N] their log-probabilities.
      expert: [N, A] actions of the expert; None without an expert.
    """

    raw: jax.Array
    log_prob: jax.Array
    expert: jax.Array | None


class Batch(struct.PyTreeNode):
    """Data for the updates; leaves [T, N, ...], or [B, ...] in a minibatch without memory.

    Attributes:
      reset: whether an episode began before the step; None if the policy has no memory.
    """

    obs: Any
    acted: Acted
    value: jax.Array
    advantage: jax.Array
    returns: jax.Array
    reset: jax.Array | None


class PPO(Algorithm):
    """PPO on the worlds of a task; arguments as for `Algorithm`."""

    name = "ppo"
    Config = PPOConfig
    adam_epsilon = 1e-5

    def _check(self) -> None:
        super()._check()
        c, network = self.config, self.config.network
        # With a memory, a minibatch holds all steps of some worlds, in their order.
        each = " of a device" if self.devices > 1 else ""
        count, described = (
            self.num_envs * c.num_steps,
            f"num_envs{each} x ppo.num_steps = {self.num_envs} x {c.num_steps}",
        )
        if self.policy.has_memory:
            count, described = self.num_envs, f"with a memory, num_envs{each}"
        if count % c.num_minibatches:
            samples = f"{count} worlds" if self.policy.has_memory else f"{count} samples"
            raise UserError(
                f"ppo.num_minibatches: {described} = {samples} cannot be split evenly into "
                f"{c.num_minibatches} minibatches"
            )
        if network.shared_trunk and network.policy_keys != network.value_keys:
            raise UserError(
                "ppo.network.shared_trunk: needs policy_keys and value_keys to be the same"
            )
        if c.bounds_coef and self.task.action_spec.discrete:
            raise UserError("ppo.bounds_coef: needs continuous actions; set it to 0")
        if c.bounds_coef and network.distribution != "normal":
            raise UserError("ppo.bounds_coef: needs ppo.network.distribution normal; set it to 0")
        if c.expert.name is not None and self.task.action_spec.discrete:
            raise UserError("ppo.expert.name: needs continuous actions; set it to none")
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
        # Collected data, and a packed copy.
        rollout = c.num_steps * self.num_envs * (2 * obs + 3 * action + 24)
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
        acted = Acted(raw, distribution.log_prob(gaussian, raw), self._expert_action(state))
        return distribution.action(raw), acted, memory

    def _expert_coef(self, state: TrainState) -> jax.Array:
        """Current weight of the distance to the expert's actions."""
        c = self.config.expert
        return c.coef * jnp.maximum(1.0 - self.progress(state) / c.until, 0.0)

    def _expert_action(self, state: TrainState) -> jax.Array | None:
        """Returns the expert's actions [N, A], zeros if their weight is 0; None without expert."""
        if self._expert is None:
            return None
        zeros = jnp.zeros((self.num_envs, self.policy.action_size))
        return jax.lax.cond(
            self._expert_coef(state) > 0,
            jax.vmap(self._expert),
            lambda _: zeros,
            state.envs.worlds,
        )

    # -- learning ------------------------------------------------------------------------

    def learn(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Learns from a rollout, and updates the statistics of observations and returns."""
        return_scale, reward = self._scale_reward(state, rollout)
        batch, memory = self._batch(state, rollout.replace(reward=reward))
        params, opt_state, metrics = self._learn(state, batch, rollout.memory, key)
        # Updated only now, so that acting and learning use the same statistics.
        statistics = self.policy.seen(state.policy, rollout.obs)
        state = state.replace(
            policy=state.policy.replace(params=params, normalizer=statistics),
            learner=opt_state,
            return_scale=return_scale,
            memory=memory,
        )
        return state, metrics

    def _scale_reward(self, state: TrainState, rollout: Rollout) -> tuple[ReturnScale, jax.Array]:
        """Returns the statistics of returns, and the rewards [T, N]. With `normalize_reward` the
        statistics are updated, and rewards divided by the standard deviation of the return."""
        if not self.config.normalize_reward:
            return state.return_scale, rollout.reward
        done = rollout.terminated | rollout.truncated
        scale = state.return_scale.update(rollout.reward, done, gamma=state.hyper["gamma"])
        return scale, scale(rollout.reward)

    def _batch(self, state: TrainState, rollout: Rollout) -> tuple[Batch, Any]:
        """Returns the batch of a rollout, leaves [T, N, ...], and the memory after the rollout."""
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
        """Returns values [T, N] of the observations acted on, and of those that followed."""
        observations = jax.tree.map(
            lambda a, b, c: jnp.concatenate([a, b[None], c]),
            rollout.obs,
            rollout.last_obs,
            rollout.limit_obs,
        )
        values, _ = self.policy.values(state.policy, observations)  # [T + 1 + S, N]
        t = self.config.num_steps
        return values[:t], _next_values(rollout, values[1 : t + 1], values[t + 1 :])

    def _values_in_order(
        self, state: TrainState, rollout: Rollout
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """As `_values`, for a policy with a memory; also returns [T, N] bool, steps before which
        the memory is reset, and the memory after the last step."""
        owner = "policy" if self.config.network.shared_trunk else "value"
        done = rollout.terminated | rollout.truncated
        # Before the first step, the memory has been reset already where an episode ended.
        reset = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
        value, states = self.policy.values(state.policy, rollout.obs, rollout.memory, reset)
        after = jnp.where(done[-1][:, None], 0.0, states[-1])  # [N, H]

        def value_of(obs, step_memory):
            """Returns values [N] of observations [N, ...], given the memory [N, H]."""
            obs = jax.tree.map(lambda x: x[None], obs)
            values, _ = self.policy.values(
                state.policy, obs, rollout.memory | {owner: step_memory}, jnp.zeros_like(done[:1])
            )
            return values[0]

        last = value_of(rollout.last_obs, after)
        slots = jax.tree.leaves(rollout.limit_obs)[0].shape[0]
        # The slot in `limit_obs` of each step at a time limit, and the step of each slot.
        slot = jnp.where(rollout.truncated, jnp.cumsum(rollout.truncated, axis=0) - 1, -1)
        step_index = (slot == jnp.arange(slots)[:, None, None]).argmax(1)  # [S, N]
        limit_memory = states[step_index, jnp.arange(self.num_envs)]
        at_limits = jax.vmap(value_of)(rollout.limit_obs, limit_memory)
        following = _next_values(rollout, jnp.concatenate([value[1:], last[None]]), at_limits)
        memory = state.memory if owner == "policy" else state.memory | {owner: after}
        return value, following, reset, memory

    def _learn(
        self, state: TrainState, batch: Batch, memory: Any, key: jax.Array
    ) -> tuple[Any, optax.OptState, dict[str, jax.Array]]:
        """Makes `num_epochs` passes of minibatches over the shuffled samples (or worlds)."""
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
            params, opt_state, stopped, last_metrics = carry
            carry, metrics = jax.lax.cond(
                stopped,
                lambda: ((params, opt_state), last_metrics),
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
        """Returns the number of samples (with a memory: of worlds), and a function that selects
        a minibatch by their indices [B].

        A minibatch is (rows [B, ...], ()), or with a memory (sequences [T, B, ...], the memory
        [B, ...] before them).
        """
        if self.policy.has_memory:
            return self.num_envs, lambda order: (
                jax.tree.map(lambda x: x[:, order], batch),
                jax.tree.map(lambda x: x[order], memory),
            )
        packing = Packing(jax.tree.map(lambda x: x[0, 0], batch))
        packed = packing.pack(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch))

        def take(order):
            return packing.unpack({kind: rows[order] for kind, rows in packed.items()}), ()

        return self.config.num_steps * self.num_envs, take

    def _update(
        self,
        state: TrainState,
        carry: tuple[Any, optax.OptState],
        rows: tuple[Batch, Any],
        rate: jax.Array,
        key: jax.Array,
    ) -> tuple[tuple[Any, optax.OptState], dict[str, jax.Array]]:
        """Makes one gradient step on a minibatch."""
        params, opt_state = carry
        gradient, metrics = devices.mean(
            jax.grad(self._loss, has_aux=True)(params, state, rows, key)
        )
        carry = self._descend(params, opt_state, gradient, state=state, rate=rate)
        return carry, metrics

    def _loss(
        self, params: Any, state: TrainState, rows: tuple[Batch, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar loss of a minibatch, and metrics to log."""
        c, hyper, distribution = self.config, state.hyper, self.policy.distribution
        policy = state.policy.replace(params=params)
        batch, memory = rows
        gaussian, _ = self.policy.gaussians(policy, batch.obs, memory, batch.reset)
        value, _ = self.policy.values(policy, batch.obs, memory, batch.reset)
        advantage = batch.advantage
        if c.normalize_advantage:
            std = jnp.sqrt(devices.variance(advantage))
            advantage = (advantage - devices.mean(advantage.mean())) / (std + 1e-8)
        log_ratio = distribution.log_prob(gaussian, batch.acted.raw) - batch.acted.log_prob
        policy_loss = losses.clipped_surrogate(log_ratio, advantage, hyper["clip_range"]).mean()
        value_loss = losses.value_loss(value, batch.returns, batch.value, c.value_clip_range).mean()
        entropy = distribution.entropy(gaussian, key).mean()
        loss = policy_loss + hyper["value_coef"] * value_loss - hyper["entropy_coef"] * entropy
        clipped = jnp.abs(jnp.expm1(log_ratio)) > hyper["clip_range"]
        metrics = {}
        if c.bounds_coef:
            beyond = gaussian.mean - distribution.action(gaussian.mean)
            loss = loss + c.bounds_coef * jnp.square(beyond).sum(-1).mean()
        if self._expert is not None:
            difference = distribution.action(gaussian.mean) - batch.acted.expert
            distance = jnp.square(difference).sum(-1).mean()
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


def _next_values(rollout: Rollout, following: jax.Array, at_limits: jax.Array) -> jax.Array:
    """Returns the values [T, N] of the observations that each step's action led to.

    Args:
      rollout: the control steps.
      following: [T, N] values of the observations that were acted on next.
      at_limits: [S, N] values of the final observations at time limits.
    """
    # Index of each step among its world's time limits; only used where it is a time limit.
    slot = jnp.maximum(jnp.cumsum(rollout.truncated, axis=0) - 1, 0)
    limit_values = jnp.take_along_axis(at_limits, slot, axis=0)
    return jnp.where(rollout.truncated, limit_values, following)
