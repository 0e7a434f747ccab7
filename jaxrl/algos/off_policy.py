"""Base class of SAC and TD3: stores steps in a replay, samples from it and learns critics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import devices, platform
from jaxrl.algos import base
from jaxrl.algos.base import Algorithm, AlgorithmConfig, TrainState
from jaxrl.envs.task import Task
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.nets import NetworkConfig, critic_ensemble
from jaxrl.nets.encoders import ONLY_PART
from jaxrl.options import option
from jaxrl.policy import Policy, PolicyState
from jaxrl.rl.augmentation import random_shift
from jaxrl.rl.replay import Replay, Transitions
from jaxrl.rl.rollout import Rollout
from jaxrl.rl.values import CategoricalValue, ScalarValue

if TYPE_CHECKING:
    from jaxrl.runtime import Worlds

STORAGE = ("float32", "bfloat16", "float16", "int32", "int16", "int8", "uint16", "uint8")

NETWORK = NetworkConfig(
    policy_hidden=(256, 256),
    value_hidden=(256, 256),
    activation="relu",
    distribution="tanh_normal",
)


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(AlgorithmConfig):
    """Settings that SAC and TD3 share."""

    num_steps: int = option(16, "control steps of each world in one iteration", minimum=1)
    max_grad_norm: float = option(
        10.0, "largest norm of a gradient; larger ones are scaled down", greater_than=0, traced=True
    )
    network: NetworkConfig = option(NETWORK, "policy and critic networks")
    critic_learning_rate: float = option(
        3e-4,
        "learning rate of the critics",
        greater_than=0,
        minimum=base.MIN_RATE,
        traced=True,
    )
    batch_size: int = option(256, "number of samples in the batch of one update", minimum=1)
    gradient_steps: int = option(
        1,
        "number of updates after each control step of all worlds; divided by num_envs, "
        "it is the update-to-data ratio",
        minimum=1,
    )
    buffer_size: int = option(
        1_000_000, "number of control steps that the replay buffer holds", minimum=1, maximum=10**15
    )
    storage: tuple[str, ...] = option(
        (),
        "number type in which the replay buffer stores observations: one for all parts,"
        " or PART=TYPE for each (float32, bfloat16, uint8, ...)",
    )
    learning_starts: int = option(
        5_000, "control steps with random actions before the first update", minimum=0
    )
    image_shift: int = option(
        0,
        "largest random shift of the images in each update (pixels); 4 suits images of 84 x 84",
        minimum=0,
        maximum=1000,
    )
    n_step: int = option(
        1,
        "number of rewards in an n-step target; later rewards are estimated by the critic",
        minimum=1,
    )
    tau: float = option(
        0.005,
        "share of the critics' parameters that each update mixes into the target critics",
        greater_than=0,
        maximum=1,
        traced=True,
    )
    policy_delay: int = option(
        1, "number of updates of the critics for each update of the policy", minimum=1
    )
    num_critics: int = option(
        2, "number of critics; the smallest of their estimates is used", minimum=1, maximum=1000
    )
    num_atoms: int = option(
        1,
        "number of atoms of a distributional critic (C51); 1: an ordinary critic",
        minimum=1,
        maximum=10_000,
    )
    value_range: tuple[float, ...] = option(
        (-10.0, 10.0), "smallest and largest return that a distributional critic represents"
    )


class Learner(struct.PyTreeNode):
    """Data that the updates change, apart from the policy's parameters.

    Attributes:
      critic, target: parameters of the critics, and of the target critics (slow copies).
      policy_opt, critic_opt: optimiser states.
      extra: data that only the subclass uses.
      updates: int32, number of updates of the critics.
    """

    critic: Any
    target: Any
    policy_opt: optax.OptState
    critic_opt: optax.OptState
    extra: Any
    updates: jax.Array


class OffPolicy(Algorithm):
    """Actor-critic algorithm that learns from a replay; arguments as for `Algorithm`.

    A subclass defines the methods at the end.
    """

    def __init__(self, config: Any, task: Task, worlds: Worlds, total_iterations: int):
        super().__init__(config, task, worlds, total_iterations)
        c, policy = self.config, self.policy
        obs = worlds.observation()
        self.replay = Replay(
            c.buffer_size // self.all_envs,
            self.num_envs,
            obs,
            policy.action_size,
            episode_length=worlds.min_episode_length,
            n_step=c.n_step,
            storage=self._storage(obs),
        )
        self.value: ScalarValue | CategoricalValue = ScalarValue()
        if c.num_atoms > 1:
            self.value = CategoricalValue(c.value_range[0], c.value_range[1], c.num_atoms)
        self.critics = critic_ensemble(
            c.network, c.num_critics, self.value.outputs, policy.parts, policy.encoders
        )
        # Rows in the replay (control steps of all worlds) before the first update.
        self.start_rows = max(math.ceil(c.learning_starts / self.all_envs), c.n_step + 1)

    def _check(self) -> None:
        super()._check()
        c, name = self.config, self.name
        if c.batch_size % self.devices:
            raise UserError(
                f"{name}.batch_size: got {c.batch_size}, must be a multiple of the number of "
                f"devices, {self.devices}"
            )
        if self.task.action_spec.discrete:
            raise UserError(f"algo: {name} needs continuous actions; use ppo for discrete ones")
        if self.policy.has_memory:
            raise UserError(f"{name}.network.memory: only ppo supports it; set it to none")
        if c.network.shared_trunk:
            raise UserError(
                f"{name}.network.shared_trunk: not possible, because critics also take the action; "
                "set it to false"
            )
        smallest = self.all_envs * max(c.n_step + 2, math.ceil(c.learning_starts / self.all_envs))
        if c.buffer_size < smallest:
            raise UserError(
                f"{name}.buffer_size: got {c.buffer_size}, must be at least {smallest} (room for "
                f"learning_starts, and {c.n_step + 2} control steps of {self.all_envs} worlds)"
            )
        if c.image_shift and not any(part.is_image for part in self.policy.parts.values()):
            raise UserError(
                f"{name}.image_shift: got {c.image_shift}, but the observation has no images; set "
                "it to 0"
            )
        if len(c.value_range) != 2 or c.value_range[0] >= c.value_range[1]:
            raise UserError(
                f"{name}.value_range: got {list(c.value_range)}, expected two increasing numbers"
            )

    def _storage(self, obs: Any) -> Any:
        """Returns the name of each leaf's storage type, as a tree with the structure of `obs`."""
        kinds = dict(item.partition("=")[::2] for item in self.config.storage if "=" in item)
        others = [item for item in self.config.storage if "=" not in item]
        known = sorted(obs) if isinstance(obs, dict) else []
        wrong = [k for k in kinds if k not in known] or [
            k for k in [*kinds.values(), *others] if k not in STORAGE
        ]
        if wrong or len(others) > 1:
            raise UserError(
                f"{self.name}.storage: got {list(self.config.storage)}, expected one of "
                f"{', '.join(STORAGE)}, or PART=TYPE for parts of the observation (its parts: "
                f"{', '.join(known) or 'none, it is one array'})"
            )

        def kind(path, leaf):
            key = getattr(path[0], "key", None) if path else None
            return kinds.get(key, others[0] if others else str(leaf.dtype))

        return jax.tree_util.tree_map_with_path(kind, obs)

    @classmethod
    def init_params(cls, policy: Policy, key: jax.Array) -> Any:
        return policy.init(key, value=False)

    def _init(self, key: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        key_policy, key_critic = jax.random.split(key)
        params = self.init_params(self.policy, key_policy)
        obs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.worlds.observation())
        critic = self.critics.init(key_critic, obs, jnp.zeros(self.policy.action_size))
        optimizer = self._optimizer(hyper)
        learner = Learner(
            critic=critic,
            target=jax.tree.map(jnp.copy, critic),
            policy_opt=optimizer.init(params),
            critic_opt=optimizer.init(critic),
            extra=self._init_extra(params, hyper),
            updates=jnp.zeros((), jnp.int32),
        )
        return params, learner, self.replay.init()

    def begin_with(self, state: TrainState, policy: PolicyState, *, members: bool) -> TrainState:
        init = jax.vmap(self._init_extra) if members else self._init_extra
        learner = state.learner.replace(
            extra=jax.jit(init)(policy.params, state.hyper),
            updates=jnp.ones_like(state.learner.updates),  # no actions at random, see `act`
        )
        return state.replace(policy=policy, learner=learner)

    @property
    def refill_steps(self) -> int:
        return self.start_rows * self.all_envs

    def memory_needs(self, shapes: TrainState) -> Iterator[tuple[str, tuple[int, str]]]:
        c, name, action = self.config, self.name, 4 * self.policy.action_size
        for part, (need, settings) in super().memory_needs(shapes):
            critics = f", {name}.num_critics, {name}.num_atoms" if part == "networks" else ""
            yield part, (need, settings + critics)
        obs = platform.tree_bytes(shapes.envs.obs) // self.num_envs
        sample = 2 * obs + action + 8 + c.n_step * (action + 12)
        heads = 4 * c.batch_size * c.num_critics * c.num_atoms
        yield (
            "samples",
            (
                c.gradient_steps * c.batch_size * sample + heads,
                f"{name}.batch_size, {name}.gradient_steps, {name}.n_step",
            ),
        )

    def shared(self, axes: TrainState) -> TrainState:
        return (
            super()
            .shared(axes)
            .replace(
                learner=axes.learner.replace(updates=None),
                replay=axes.replay.replace(inserted=None),
            )
        )

    def worlds_axes(self, shapes: TrainState) -> TrainState:
        rows = jax.tree.map(lambda _: 1, shapes.replay)
        return super().worlds_axes(shapes).replace(replay=rows.replace(limits=0, inserted=-1))

    def interrupt(self, state: TrainState) -> TrainState:
        state = super().interrupt(state)
        return state.replace(replay=self.replay.cut(state.replay, state.envs.obs))

    # -- acting and learning -------------------------------------------------------------

    learns_every = 1
    learner_carries_over = True

    def draws(self, key: jax.Array, steps: int) -> jax.Array:
        return key[None] if steps == 1 else jax.random.split(key, steps)

    def act(self, state: TrainState, draw: jax.Array) -> tuple[jax.Array, Any, Any]:
        shape = (self.num_envs, self.policy.action_size)
        action = jax.lax.cond(
            state.learner.updates == 0,  # before the first update
            lambda: jax.random.uniform(draw, shape, minval=-1.0, maxval=1.0),
            lambda: self._explore(state, state.envs.obs, draw),
        )
        return action, (), state.memory

    def learn(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Stores one control step of all worlds, and learns from samples of the replay."""
        key_sample, key_learn = jax.random.split(key)
        statistics = self.policy.seen(state.policy, rollout.obs)
        scale = state.return_scale
        if self.config.normalize_reward:
            done = rollout.terminated | rollout.truncated
            scale = scale.update(rollout.reward, done, gamma=state.hyper["gamma"])
        state = state.replace(
            policy=state.policy.replace(normalizer=statistics),
            return_scale=scale,
            replay=self.replay.insert(state.replay, rollout),
        )
        ready = state.replay.inserted >= self.start_rows
        (params, learner), metrics = self._learn(state, ready, key_sample, key_learn)
        return state.replace(policy=state.policy.replace(params=params), learner=learner), metrics

    def _learn(
        self, state: TrainState, ready: jax.Array, key_sample: jax.Array, key_learn: jax.Array
    ) -> tuple[tuple[Any, Learner], dict[str, jax.Array]]:
        """Makes `gradient_steps` updates, each on a new batch; none while `ready` is false.

        Metrics that an update did not compute are NaN, and the means leave them out.
        """
        c = self.config

        def learn(carry):
            size = c.batch_size // self.devices
            samples = self.replay.sample(
                state.replay,
                key_sample,
                c.gradient_steps * size,
                gamma=state.hyper["gamma"],
            )
            if c.normalize_reward:
                samples = samples.replace(reward=state.return_scale(samples.reward))
            samples = self._shifted(samples, key_sample)
            batches = jax.tree.map(
                lambda x: x.reshape(c.gradient_steps, size, *x.shape[1:]), samples
            )
            keys = jax.random.split(key_learn, c.gradient_steps)
            carry, metrics = jax.lax.scan(
                lambda carry, x: self._update(state, carry, *x), carry, (batches, keys)
            )
            return carry, jax.tree.map(jnp.nanmean, metrics)

        return update_if(ready, learn, (state.policy.params, state.learner))

    def _shifted(self, samples: Transitions, key: jax.Array) -> Transitions:
        """Samples [B, ...] whose images are shifted at random (`image_shift`)."""
        if not self.config.image_shift:
            return samples

        def shifted(obs: Any, key: jax.Array) -> Any:
            parts = obs if isinstance(obs, dict) else {ONLY_PART: obs}
            images = [name for name, part in self.policy.parts.items() if part.is_image]
            for i, name in enumerate(images):
                key_part = jax.random.fold_in(key, i)
                parts = parts | {name: random_shift(key_part, parts[name], self.config.image_shift)}
            return parts if isinstance(obs, dict) else parts[ONLY_PART]

        key, key_next = jax.random.split(jax.random.fold_in(key, 1))
        return samples.replace(
            obs=shifted(samples.obs, key), next_obs=shifted(samples.next_obs, key_next)
        )

    def _update(
        self, state: TrainState, carry: tuple[Any, Learner], batch: Transitions, key: jax.Array
    ) -> tuple[tuple[Any, Learner], dict[str, jax.Array]]:
        """Updates the critics on a batch, and the policy in every `policy_delay`-th call."""
        learner, hyper, rate = carry[1], state.hyper, self.rate(state)
        key_next, key_policy = jax.random.split(key)
        target = self._critic_target(state, carry, batch, key_next)
        gradient, metrics = devices.mean(
            jax.grad(self._critic_loss, has_aux=True)(learner.critic, state, batch, target)
        )
        critic, critic_opt = self._descend(
            learner.critic,
            learner.critic_opt,
            gradient,
            state=state,
            rate=rate * hyper["critic_learning_rate"],
        )
        learner = learner.replace(critic=critic, critic_opt=critic_opt, updates=learner.updates + 1)

        def policy_step(carry):
            params, learner = carry
            gradient, metrics = devices.mean(
                jax.grad(self._policy_loss, has_aux=True)(params, state, learner, batch, key_policy)
            )
            params, policy_opt = self._descend(
                params,
                learner.policy_opt,
                gradient,
                state=state,
                rate=rate * hyper["learning_rate"],
            )
            extra, extra_metrics = self._update_extra(
                learner.extra, params, metrics, hyper=hyper, rate=rate
            )
            learner = learner.replace(policy_opt=policy_opt, extra=extra)
            return (params, learner), metrics | extra_metrics

        is_policy_turn = learner.updates % self.config.policy_delay == 0
        if self.config.policy_delay == 1:
            carry, policy_metrics = policy_step((carry[0], learner))
        else:
            carry, policy_metrics = update_if(is_policy_turn, policy_step, (carry[0], learner))
        params, learner = carry
        tau = hyper["tau"]
        if self.delayed_targets:
            tau = jnp.where(is_policy_turn, tau, 0.0)
        target = soft_update(learner.critic, learner.target, tau)
        return (params, learner.replace(target=target)), metrics | policy_metrics

    # -- losses -------------------------------------------------------------------------

    def _heads(self, critic: Any, policy: PolicyState, obs: Any, action: jax.Array) -> jax.Array:
        """Returns the outputs of all critics, [K, B, Z]."""
        heads: Any = self.critics.apply(critic, self.policy.normalized(policy, obs), action)
        return heads

    def _critic_target(
        self, state: TrainState, carry: tuple[Any, Learner], batch: Transitions, key: jax.Array
    ) -> jax.Array:
        """Returns the critics' targets [B, Z]: r + discount (q' + bonus), where q' is the
        smallest value of the target critics (Fujimoto et al. 2018, "Addressing function
        approximation error in actor-critic methods", eq. 10)."""
        params, learner = carry
        policy = state.policy.replace(params=params)
        action, bonus = self._next_action(policy, learner, state.hyper, batch.next_obs, key)
        heads = self._heads(learner.target, policy, batch.next_obs, action)
        smallest = self.value.mean(heads).argmin(0)
        head = jnp.take_along_axis(heads, smallest[None, :, None], axis=0)[0]
        return self.value.target(head, batch.reward + batch.discount * bonus, batch.discount)

    def _critic_loss(
        self, critic: Any, state: TrainState, batch: Transitions, target: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar loss (mean over the batch, sum over the critics), and metrics."""
        heads = self._heads(critic, state.policy, batch.obs, batch.action)
        loss = self.value.loss(heads, target).mean(1).sum()
        return loss, {columns.CRITIC_LOSS: loss, columns.Q_VALUE: self.value.mean(heads).mean()}

    def _minimum_value(
        self, learner: Learner, policy: PolicyState, obs: Any, action: jax.Array
    ) -> jax.Array:
        """Returns the smallest of the critics' values, [B]."""
        return self.value.mean(self._heads(learner.critic, policy, obs, action)).min(0)

    # -- methods that a subclass defines --------------------------------------------------

    delayed_targets: ClassVar[bool] = False  # whether targets change only with the policy

    def _init_extra(self, params: Any, hyper: dict[str, jax.Array]) -> Any:
        """Returns the initial `Learner.extra`."""
        raise NotImplementedError

    def _explore(self, state: TrainState, obs: Any, key: jax.Array) -> jax.Array:
        """Returns the actions of training, with exploration, [N, A]."""
        raise NotImplementedError

    def _next_action(
        self,
        policy: PolicyState,
        learner: Learner,
        hyper: dict[str, jax.Array],
        obs: Any,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the next actions in the targets [B, A], and the bonus on their values [B]."""
        raise NotImplementedError

    def _policy_loss(
        self, params: Any, state: TrainState, learner: Learner, batch: Transitions, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar loss of the policy, and metrics to log."""
        raise NotImplementedError

    def _update_extra(
        self,
        extra: Any,
        params: Any,
        metrics: dict[str, jax.Array],
        *,
        hyper: dict[str, jax.Array],
        rate: jax.Array,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Returns `Learner.extra` after an update of the policy, and metrics to log."""
        raise NotImplementedError


def soft_update(fast: Any, slow: Any, tau: jax.Array) -> Any:
    """Moves the slow copy of the parameters towards the fast ones, by the share `tau`."""
    return optax.incremental_update(fast, slow, tau)


def update_if(
    flag: jax.Array, update: Callable[[Any], tuple[Any, dict[str, jax.Array]]], carry: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns `update(carry)` if the flag is set; otherwise the carry unchanged and NaN metrics.

    It is a loop of one round or none, because a loop changes the carry in place; a conditional
    would copy it.
    """
    metrics = jax.eval_shape(update, carry)[1]
    unknown = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), metrics)
    return jax.lax.fori_loop(
        0, flag.astype(jnp.int32), lambda _, pair: update(pair[0]), (carry, unknown)
    )
