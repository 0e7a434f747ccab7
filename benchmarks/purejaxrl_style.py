"""PPO in the style of PureJaxRL, to compare jaxrl with.

Written after `ppo_continuous_action.py` of github.com/luchris429/purejaxrl (Lu et al. 2022).
As in that file, observation statistics are updated in every step, every world is fully reset in
every step, the value network is evaluated in the rollout, and time limits count as terminations.
The networks are jaxrl's, so that they are equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.algos import PPOConfig
from jaxrl.envs import Task
from jaxrl.nets import ActorCritic
from jaxrl.rl import normalizer
from jaxrl.rl.distributions import DISTRIBUTIONS


class Transition(NamedTuple):
    """Data of the rollout; leaves [T, N, ...]."""

    done: jax.Array
    action: jax.Array
    value: jax.Array
    reward: jax.Array
    log_prob: jax.Array
    obs: jax.Array


class Runner(NamedTuple):
    """The training state between two updates."""

    params: Any
    opt_state: Any
    worlds: Any
    steps: jax.Array
    statistics: normalizer.RunningStatistics
    key: jax.Array


class PureJaxRL:
    """PPO on `num_envs` copies of a task, in the style of PureJaxRL."""

    def __init__(self, config: PPOConfig, task: Task, num_envs: int):
        self.config, self.task, self.num_envs = config, task, num_envs
        self.network = ActorCritic(config.network, task.action_spec.shape[0])
        self.distribution = DISTRIBUTIONS[config.network.distribution]
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adam(config.learning_rate, eps=1e-5),
        )

    def act(self, params: Any, obs: jax.Array) -> jax.Array:
        """Deterministic action; `params` is (network parameters, statistics)."""
        gaussian, _ = self._apply(params[0], normalizer.normalize(params[1], obs))
        return self.distribution.action(gaussian.mean)

    def init(self, key: jax.Array) -> Runner:
        key, key_net, key_reset = jax.random.split(key, 3)
        worlds = jax.vmap(self.task.reset)(jax.random.split(key_reset, self.num_envs))
        params = self.network.init(key_net, worlds.obs[0], worlds.obs[0])
        return Runner(
            params=params,
            opt_state=self.optimizer.init(params),
            worlds=worlds,
            steps=jnp.zeros(self.num_envs, jnp.int32),
            statistics=normalizer.init(worlds.obs[0]),
            key=key,
        )

    def update(self, runner: Runner, _) -> tuple[Runner, jax.Array]:
        """Runs one iteration; also returns the mean reward."""
        runner, batch = jax.lax.scan(self._env_step, runner, length=self.config.num_steps)
        obs = normalizer.normalize(runner.statistics, runner.worlds.obs)
        advantages = self._advantages(batch, self._apply(runner.params, obs)[1])
        learned = (batch, advantages, advantages + batch.value)
        learned = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), learned)
        key, key_epochs = jax.random.split(runner.key)

        def epoch(carry, key):
            order = jax.random.permutation(key, self.config.num_steps * self.num_envs)
            minibatches = jax.tree.map(
                lambda x: x[order].reshape(self.config.num_minibatches, -1, *x.shape[1:]), learned
            )
            return jax.lax.scan(self._minibatch, carry, minibatches)

        (params, opt_state), _ = jax.lax.scan(
            epoch,
            (runner.params, runner.opt_state),
            jax.random.split(key_epochs, self.config.num_epochs),
        )
        runner = runner._replace(params=params, opt_state=opt_state, key=key)
        return runner, batch.reward.mean()

    def _apply(self, params: Any, obs: jax.Array):
        return self.network.apply(params, obs, obs)

    def _env_step(self, runner: Runner, _) -> tuple[Runner, Transition]:
        key, key_act, key_reset = jax.random.split(runner.key, 3)
        statistics = normalizer.update(runner.statistics, runner.worlds.obs)
        obs = normalizer.normalize(statistics, runner.worlds.obs)
        gaussian, value = self._apply(runner.params, obs)
        noise = jax.random.normal(key_act, gaussian.mean.shape)
        raw = self.distribution.sample(gaussian, noise)
        worlds = jax.vmap(self.task.step)(runner.worlds, self.distribution.action(raw))
        fresh = jax.vmap(self.task.reset)(jax.random.split(key_reset, self.num_envs))
        steps = runner.steps + 1
        done = worlds.terminated | (steps >= self.task.episode_length)

        def pick(a, b):
            return jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        log_prob = self.distribution.log_prob(gaussian, raw)
        transition = Transition(done, raw, value, worlds.reward, log_prob, obs)
        runner = runner._replace(
            worlds=jax.tree.map(pick, fresh, worlds),
            steps=jnp.where(done, 0, steps),
            statistics=statistics,
            key=key,
        )
        return runner, transition

    def _advantages(self, batch: Transition, last_value: jax.Array) -> jax.Array:
        gamma, gae_lambda = self.config.gamma, self.config.gae_lambda

        def backward(carry, t):
            gae, next_value = carry
            delta = t.reward + gamma * next_value * (1 - t.done) - t.value
            gae = delta + gamma * gae_lambda * (1 - t.done) * gae
            return (gae, t.value), gae

        start = (jnp.zeros_like(last_value), last_value)
        return jax.lax.scan(backward, start, batch, reverse=True, unroll=16)[1]

    def _minibatch(self, carry, minibatch):
        params, opt_state = carry
        grad = jax.grad(self._loss)(params, *minibatch)
        updates, opt_state = self.optimizer.update(grad, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def _loss(
        self, params: Any, batch: Transition, advantages: jax.Array, targets: jax.Array
    ) -> jax.Array:
        c = self.config
        gaussian, value = self._apply(params, batch.obs)
        ratio = jnp.exp(self.distribution.log_prob(gaussian, batch.action) - batch.log_prob)
        gae = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - c.clip_range, 1 + c.clip_range)
        actor = -jnp.minimum(ratio * gae, clipped * gae).mean()
        critic = jnp.square(value - targets).mean()
        return actor + c.value_coef * critic
