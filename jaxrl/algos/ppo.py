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

from jaxrl.algos.common import (
    EpisodeSums,
    Policy,
    ScheduleConfig,
    concat_keys,
    episode_sums,
    pack,
    shuffled,
)
from jaxrl.envs import Env, Vector, VectorState
from jaxrl.errors import UserError
from jaxrl.nets import ActorCritic, NetworkConfig
from jaxrl.options import option
from jaxrl.rl import losses, normalizer
from jaxrl.rl.advantages import generalized_advantages
from jaxrl.rl.distributions import DISTRIBUTIONS, Gaussian
from jaxrl.rl.normalizer import RunningStatistics


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. Those in `Hyperparameters` are traced: changing them does not recompile."""

    learning_rate: float = option(3e-4, "Adam's step size at the start", above=0)
    schedule: ScheduleConfig = option(ScheduleConfig(), "learning-rate schedule")
    num_steps: int = option(32, "control steps a world between updates", least=1)
    num_epochs: int = option(4, "passes over the collected data", least=1)
    num_minibatches: int = option(4, "minibatches a pass", least=1)
    gamma: float = option(0.99, "discount", least=0, most=1)
    gae_lambda: float = option(0.95, "trace decay of the advantages", least=0, most=1)
    clip_range: float = option(0.2, "policy ratio clip", above=0)
    value_clip_range: float | None = option(None, "value clip; none: no clipping", above=0)
    value_coef: float = option(0.5, "weight of the value loss", least=0)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", least=0)
    max_grad_norm: float = option(0.5, "gradient norm clip", above=0)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", least=0)
    target_kl: float | None = option(
        None, "no more updates in an iteration once the KL passes 1.5 times this", above=0
    )
    normalize_advantage: bool = option(True, "scale advantages to mean 0, std 1 a minibatch")
    normalize_observation: bool = option(True, "running mean and std of observations")
    normalize_reward: bool = option(False, "divide rewards by the std of the return")
    network: NetworkConfig = option(NetworkConfig(), "policy and value networks")


@struct.dataclass
class Hyperparameters:
    """The numbers of `PPOConfig` as traced scalars."""

    learning_rate: jax.Array
    gamma: jax.Array
    gae_lambda: jax.Array
    clip_range: jax.Array
    value_coef: jax.Array
    entropy_coef: jax.Array
    max_grad_norm: jax.Array
    weight_decay: jax.Array


@struct.dataclass
class PolicyState:
    """What acting needs: network parameters and observation statistics."""

    params: Any
    normalizer: RunningStatistics


@struct.dataclass
class ReturnScale:
    """Statistics of the running discounted return, to scale rewards with."""

    running: jax.Array  # [N] discounted return so far
    statistics: RunningStatistics


@struct.dataclass
class TrainState:
    """Everything that training is, in one tree; saved whole."""

    policy: PolicyState
    opt_state: optax.OptState
    return_scale: ReturnScale
    envs: VectorState
    hyper: Hyperparameters
    key: jax.Array
    iteration: jax.Array  # int32


@struct.dataclass
class Batch:
    """What the updates learn from; leaves [T, N, ...], then [B, ...]."""

    obs: Any
    raw_action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    returns: jax.Array


@struct.dataclass
class Rollout:
    """One rollout; leaves [T, N, ...] but for the two last."""

    obs: Any
    raw_action: jax.Array
    log_prob: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    limit_obs: Any  # [S, N, ...] final observations of episodes the time limit ended
    last_obs: Any  # [N, ...]


class PPO:
    """PPO on `num_envs` copies of a task.

    Args:
      config: settings.
      env: the task.
      num_envs: number of worlds N.
      total_iterations: length of the run, for the learning-rate schedule.

    Raises:
      UserError: settings that do not fit together.
    """

    def __init__(self, config: PPOConfig, env: Env, num_envs: int, total_iterations: int):
        self.config = config
        self.env = env
        self.num_envs = num_envs
        self.total_iterations = total_iterations
        self.batch_size = config.num_steps * num_envs
        self._check()
        self.vector = Vector(env, num_envs, starts=2 + config.num_steps // 16)
        self.network = ActorCritic(config.network, env.action_spec.shape[0])
        self.distribution = DISTRIBUTIONS[config.network.distribution]
        # A world meets its time limit at most this often in one rollout.
        self.limit_slots = -(-config.num_steps // env.episode_length)

    def _check(self) -> None:
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
        spec = self.env.observation_spec
        known = sorted(spec) if isinstance(spec, dict) else []
        for field in ("policy_keys", "value_keys"):
            wrong = [key for key in getattr(network, field) if key not in known]
            if wrong:
                raise UserError(
                    f"ppo.network.{field}: the observation has no {wrong[0]!r} (it has: "
                    f"{', '.join(known) or 'no keys, it is one array'})"
                )
        c.schedule.check("ppo.schedule")

    # -- acting ---------------------------------------------------------------------

    def _keys(self, state: PolicyState, obs: Any, keys: tuple[str, ...]) -> jax.Array:
        """[..., I] normalised observation with the named keys side by side."""
        if self.config.normalize_observation:
            obs = normalizer.normalize(state.normalizer, obs)
        return concat_keys(obs, keys)

    def _gaussian(self, state: PolicyState, obs: Any) -> Gaussian:
        x = self._keys(state, obs, self.config.network.policy_keys)
        return self.network.apply(state.params, x, method="policy")

    def _value(self, state: PolicyState, obs: Any) -> jax.Array:
        x = self._keys(state, obs, self.config.network.value_keys)
        return self.network.apply(state.params, x, method="value")

    @property
    def policy(self) -> Policy:
        """Deterministic policy: (PolicyState, obs [..., O]) -> action [..., A]."""
        return lambda state, obs: self.distribution.action(self._gaussian(state, obs).mean)

    # -- training -----------------------------------------------------------------

    def hyperparameters(self) -> Hyperparameters:
        """The configured numbers as scalars of a train state."""
        return Hyperparameters(
            **{
                f.name: jnp.asarray(getattr(self.config, f.name), jnp.float32)
                for f in dataclasses.fields(Hyperparameters)
            }
        )

    def init(self, key: jax.Array) -> TrainState:
        """A new run from one key."""
        key, key_net, key_envs = jax.random.split(key, 3)
        envs = self.vector.init(key_envs)
        one = jax.tree.map(lambda x: x[0], envs.obs)
        network = self.config.network
        params = self.network.init(
            key_net, concat_keys(one, network.policy_keys), concat_keys(one, network.value_keys)
        )
        hyper = self.hyperparameters()
        return TrainState(
            policy=PolicyState(params=params, normalizer=normalizer.init(one)),
            opt_state=self._optimizer(hyper).init(params),
            return_scale=ReturnScale(
                running=jnp.zeros(self.num_envs), statistics=normalizer.init(jnp.zeros(()))
            ),
            envs=envs,
            hyper=hyper,
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def step(self, state: TrainState) -> tuple[TrainState, tuple[dict, EpisodeSums]]:
        """One iteration: collect, learn, normalise. Scalars and episode sums come out."""
        key, key_starts, key_act, key_learn = jax.random.split(state.key, 4)
        envs = self.vector.refill(state.envs, key_starts)
        envs, rollout, episodes = self._collect(state.policy, envs, key_act)
        return_scale, reward = self._scale_reward(state, rollout)
        batch = self._batch(state, rollout.replace(reward=reward))
        params, opt_state, metrics = self._learn(state, batch, key_learn)
        # Acting and learning used the same statistics; now they may move.
        statistics = state.policy.normalizer
        if self.config.normalize_observation:
            statistics = normalizer.update(statistics, rollout.obs)
        state = state.replace(
            policy=PolicyState(params=params, normalizer=statistics),
            opt_state=opt_state,
            return_scale=return_scale,
            envs=envs,
            key=key,
            iteration=state.iteration + 1,
        )
        return state, (metrics, episodes)

    def _collect(
        self, policy: PolicyState, envs: VectorState, key: jax.Array
    ) -> tuple[VectorState, Rollout, EpisodeSums]:
        """`num_steps` control steps of all worlds."""
        action_size = self.network.action_size
        noise = jax.random.normal(key, (self.config.num_steps, self.num_envs, action_size))
        limit_obs = jax.tree.map(
            lambda x: jnp.zeros((self.limit_slots, *x.shape), x.dtype), envs.obs
        )
        slots = jnp.arange(self.limit_slots)[:, None]

        def act(carry, noise):
            envs, limit_obs, limits = carry
            gaussian = self._gaussian(policy, envs.obs)
            raw = self.distribution.sample(gaussian, noise)
            log_prob = self.distribution.log_prob(gaussian, raw)
            new, step = self.vector.step(envs, self.distribution.action(raw))
            here = (slots == limits) & step.truncated  # [S, N]
            limit_obs = jax.tree.map(
                lambda kept, x: jnp.where(here.reshape(*here.shape, *[1] * (x.ndim - 1)), x, kept),
                limit_obs,
                step.final_obs,
            )
            out = (envs.obs, raw, log_prob, step.reward, step.terminated, step.truncated)
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

        def forward(running, step):
            reward, done = step
            running = running * state.hyper.gamma + reward
            return jnp.where(done, 0.0, running), running

        running, returns = jax.lax.scan(forward, state.return_scale.running, (rollout.reward, done))
        statistics = normalizer.update(state.return_scale.statistics, returns)
        scaled = rollout.reward / jnp.sqrt(statistics.variance + 1e-8)
        return ReturnScale(running=running, statistics=statistics), scaled

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
        )

    def _learn(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[Any, optax.OptState, dict[str, jax.Array]]:
        """`num_epochs` passes of minibatches over the shuffled samples."""
        c = self.config
        explained = 1.0 - (batch.returns - batch.value).var() / (batch.returns.var() + 1e-8)
        packed, unpack = pack(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch))
        rate = state.hyper.learning_rate * c.schedule.factor(
            state.iteration / max(self.total_iterations, 1)
        )

        def epoch(carry, key):
            key_order, key_noise = jax.random.split(key)
            order = shuffled(key_order, self.batch_size).reshape(c.num_minibatches, -1)
            keys = jax.random.split(key_noise, c.num_minibatches)
            return jax.lax.scan(minibatch, carry, (order, keys))

        def minibatch(carry, x):
            order, key = x
            rows = unpack(packed[order])
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

        carry = (state.policy.params, state.opt_state)
        if c.target_kl is not None:
            blank = jax.eval_shape(
                lambda: self._update(
                    state,
                    carry,
                    unpack(packed[: self.batch_size // c.num_minibatches]),
                    rate,
                    key,
                )[1]
            )
            carry = (*carry, jnp.zeros((), bool), jax.tree.map(lambda x: jnp.zeros(x.shape), blank))
        carry, metrics = jax.lax.scan(epoch, carry, jax.random.split(key, c.num_epochs))
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["train/explained_variance"] = explained
        metrics["train/learning_rate"] = rate
        return carry[0], carry[1], metrics

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        """AdamW but for the step size, which `_update` applies."""
        return optax.chain(
            optax.clip_by_global_norm(hyper.max_grad_norm),
            optax.scale_by_adam(eps=1e-5),
            optax.add_decayed_weights(hyper.weight_decay),
        )

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
        updates, opt_state = self._optimizer(state.hyper).update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, opt_state), metrics

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
        return loss, {
            "train/loss": loss,
            "train/policy_gradient_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": losses.approximate_kl(log_ratio).mean(),
            "train/clip_fraction": clipped.mean(),
            "train/std": jnp.exp(gaussian.log_std).mean(),
        }
