"""What every algorithm has: settings, policy, normaliser, optimiser, worlds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl.envs import Env, Timestep, Vector, VectorState
from jaxrl.errors import UserError
from jaxrl.nets import ActorCritic, NetworkConfig
from jaxrl.options import option
from jaxrl.rl import normalizer, schedules
from jaxrl.rl.distributions import DISTRIBUTIONS, Gaussian
from jaxrl.rl.normalizer import RunningStatistics
from jaxrl.rl.returns import ReturnScale

# A step size below which no float32 parameter moves.
LEAST_RATE = 1e-12

# (policy state, observation [..., O]) -> action [..., A] in [-1, 1]
Policy = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Factor of the learning rate over the run."""

    kind: Literal["constant", "linear", "piecewise", "cosine"] = option(
        "constant", "shape of the schedule"
    )
    final: float = option(0.0, "factor at the end (linear, cosine)", least=0)
    boundaries: tuple[float, ...] = option(
        (), "shares of the run where piecewise changes", least=0, most=1
    )
    factors: tuple[float, ...] = option((), "factor after each boundary", least=0)

    def check(self, path: str) -> None:
        """Raises UserError where a piecewise schedule is not one."""
        ordered = list(self.boundaries) == sorted(set(self.boundaries))
        if self.kind == "piecewise" and not (
            self.boundaries and ordered and len(self.boundaries) == len(self.factors)
        ):
            raise UserError(
                f"{path}: piecewise needs increasing boundaries and one factor for each, got "
                f"boundaries {list(self.boundaries)} and factors {list(self.factors)}"
            )
        used = {"piecewise": ("boundaries", "factors"), "constant": ()}.get(self.kind, ("final",))
        for name in ("final", "boundaries", "factors"):
            if getattr(self, name) and name not in used:
                raise UserError(
                    f"{path}.{name}: has no effect with {path}.kind {self.kind} (it has: "
                    f"{', '.join(used) or 'nothing more to set'})"
                )

    def factor(self, progress: jax.Array) -> jax.Array:
        """The factor at `progress` in [0, 1]."""
        return schedules.factor(
            self.kind,
            progress,
            final=self.final,
            boundaries=self.boundaries,
            factors=self.factors,
        )


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """Settings that all algorithms have. Those in an algorithm's `Hyperparameters` are
    traced: changing them does not recompile, and a population may have one each."""

    learning_rate: float = option(3e-4, "Adam's step size at the start", above=0, least=LEAST_RATE)
    schedule: ScheduleConfig = option(ScheduleConfig(), "learning-rate schedule")
    num_steps: int = option(32, "control steps a world in one iteration", least=1)
    gamma: float = option(0.99, "discount", least=0, most=1)
    max_grad_norm: float = option(0.5, "gradient norm clip", above=0)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", least=0)
    normalize_observation: bool = option(True, "running mean and std of observations")
    normalize_reward: bool = option(False, "divide rewards by the std of the return")
    network: NetworkConfig = option(NetworkConfig(), "policy and value networks")


@struct.dataclass
class Hyperparameters:
    """Traced scalars, named as in the configuration."""

    learning_rate: jax.Array
    gamma: jax.Array
    max_grad_norm: jax.Array
    weight_decay: jax.Array


@struct.dataclass
class PolicyState:
    """What acting needs: network parameters and observation statistics."""

    params: Any
    normalizer: RunningStatistics


@struct.dataclass
class TrainState:
    """Everything that training is, in one tree; saved whole.

    Attributes:
      policy: what acting needs; saved apart.
      learner: what the updates need besides, such as optimiser states.
      replay: past steps, where the algorithm keeps any.
      return_scale: for rewards over the std of the return.
      envs: the worlds.
      hyper: the algorithm's `Hyperparameters`.
      key: PRNG key.
      iteration: int32.
    """

    policy: PolicyState
    learner: Any
    replay: Any
    return_scale: ReturnScale
    envs: VectorState
    hyper: Hyperparameters
    key: jax.Array
    iteration: jax.Array


class Algorithm:
    """A learning algorithm on `num_envs` copies of a task.

    A subclass gives `_init` and `_iterate`.

    Args:
      config: settings.
      env: the task.
      num_envs: number of worlds N.
      total_iterations: length of the run, for the learning-rate schedule.
      members: how many copies of the algorithm will run side by side under `vmap`.

    Raises:
      UserError: settings that do not fit together.
    """

    name: ClassVar[str]
    Hyperparameters: ClassVar[type] = Hyperparameters
    adam_epsilon: ClassVar[float] = 1e-8

    def __init__(
        self,
        config: Any,
        env: Env,
        num_envs: int,
        total_iterations: int,
        *,
        members: int = 1,
    ):
        self.config = config
        self.env = env
        self.num_envs = num_envs
        self.total_iterations = total_iterations
        self.batch_size = config.num_steps * num_envs
        self._check()
        if hasattr(env, "make_vector"):
            self.vector = env.make_vector(num_envs)
        else:
            self.vector = Vector(env, num_envs, members=members, training=True)
        self.network = ActorCritic(config.network, env.action_spec.shape[0])
        discrete = env.action_spec.discrete
        self.distribution = DISTRIBUTIONS[
            "categorical" if discrete else config.network.distribution
        ]

    def _check(self) -> None:
        network, spec = self.config.network, self.env.observation_spec
        known = sorted(spec) if isinstance(spec, dict) else []
        for field in ("policy_keys", "value_keys"):
            wrong = [key for key in getattr(network, field) if key not in known]
            if wrong:
                raise UserError(
                    f"{self.name}.network.{field}: the observation has no {wrong[0]!r} (it has: "
                    f"{', '.join(known) or 'no keys, it is one array'})"
                )
        self.config.schedule.check(f"{self.name}.schedule")

    # -- acting ---------------------------------------------------------------------

    def _keys(self, state: PolicyState, obs: Any, keys: tuple[str, ...]) -> jax.Array:
        """[..., I] normalised observation with the named keys side by side."""
        if self.config.normalize_observation:
            obs = normalizer.normalize(state.normalizer, obs)
        return concat_keys(obs, keys)

    def _gaussian(self, state: PolicyState, obs: Any) -> Gaussian:
        x = self._keys(state, obs, self.config.network.policy_keys)
        return self.network.apply(state.params, x, method="policy")

    @property
    def policy(self) -> Policy:
        """Deterministic policy: (PolicyState, obs [..., O]) -> action [..., A]."""
        return lambda state, obs: self.distribution.action(self._gaussian(state, obs).mean)

    # -- training -----------------------------------------------------------------

    def hyperparameters(self, config: Any = None) -> Hyperparameters:
        """The numbers of a configuration (its own, if none) as scalars of a train state."""
        names = [field.name for field in dataclasses.fields(self.Hyperparameters)]
        values = {name: getattr(config or self.config, name) for name in names}
        return self.Hyperparameters(
            **{name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        )

    def init(self, key: jax.Array, hyper: Hyperparameters | None = None) -> TrainState:
        """A new run from one key.

        Args:
          key: PRNG key.
          hyper: other numbers than the configured ones.
        """
        key, key_net, key_envs = jax.random.split(key, 3)
        envs = self.vector.init(key_envs)
        one = jax.tree.map(lambda x: x[0], envs.obs)
        hyper = self.hyperparameters() if hyper is None else hyper
        params, learner, replay = self._init(key_net, one, hyper)
        return TrainState(
            policy=PolicyState(params=params, normalizer=normalizer.init(one)),
            learner=learner,
            replay=replay,
            return_scale=ReturnScale.init(self.num_envs),
            envs=envs,
            hyper=hyper,
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def shared(self, axes: TrainState) -> TrainState:
        """Member axes of a population's state: None for what is the same for all members."""
        return axes.replace(iteration=None)

    def step(self, state: TrainState) -> tuple[TrainState, tuple[dict, EpisodeSums]]:
        """One iteration. Scalars to log and episode sums come out."""
        key, key_iterate = jax.random.split(state.key)
        envs = self.vector.advance(state.envs)
        rate = state.hyper.learning_rate * self.rate(state)
        state, (metrics, episodes) = self._iterate(state.replace(envs=envs), key_iterate)
        redrawn = state.envs.redrawn - envs.redrawn
        episodes = episodes.replace(nonfinite=episodes.nonfinite + redrawn)
        metrics["train/learning_rate"] = rate
        if envs.curriculum is not None:
            for i, level in enumerate(envs.curriculum.level):
                metrics[f"rollout/level_{i}" if i else "rollout/level"] = level
        return state.replace(key=key, iteration=state.iteration + 1), (metrics, episodes)

    # -- training where the worlds live elsewhere ----------------------------------------

    @property
    def learns_every(self) -> int:
        """Control steps that `learn` takes at once."""
        raise NotImplementedError

    def act(self, state: TrainState, key: jax.Array) -> tuple[jax.Array, Any]:
        """Actions [N, A] on `state.envs.obs` while training, and what `learn` will need to
        know of them."""
        raise NotImplementedError

    def learn(
        self,
        state: TrainState,
        obs: Any,
        action: jax.Array,
        more: Any,
        step: Timestep,
        key: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The updates after `learns_every` control steps; leaves [T, N, ...]."""
        raise NotImplementedError

    def _init(self, key: jax.Array, one: Any, hyper: Hyperparameters) -> tuple[Any, Any, Any]:
        """Policy parameters, learner and replay for observations such as `one`."""
        raise NotImplementedError

    def _iterate(
        self, state: TrainState, key: jax.Array
    ) -> tuple[TrainState, tuple[dict, EpisodeSums]]:
        """`num_steps` control steps of all worlds, and the updates that go with them."""
        raise NotImplementedError

    def rate(self, state: TrainState) -> jax.Array:
        """Factor of the schedule now."""
        return self.config.schedule.factor(self.progress(state))

    def progress(self, state: TrainState) -> jax.Array:
        """Share of the run that is done."""
        return state.iteration / jnp.float32(max(self.total_iterations, 1))

    def interrupt(self, state: TrainState) -> TrainState:
        """The state where all episodes under way were cut short, as at a time limit, since the
        worlds themselves are gone."""
        scale = state.return_scale
        return state.replace(return_scale=scale.replace(running=jnp.zeros_like(scale.running)))

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        """AdamW but for the step size, which `_descend` applies."""
        return optax.chain(
            optax.clip_by_global_norm(hyper.max_grad_norm),
            optax.scale_by_adam(eps=self.adam_epsilon),
            optax.add_decayed_weights(hyper.weight_decay),
        )

    def _descend(
        self,
        params: Any,
        opt_state: optax.OptState,
        gradient: Any,
        *,
        hyper: Hyperparameters,
        rate: jax.Array,
    ) -> tuple[Any, optax.OptState]:
        """One step of the optimiser."""
        updates, opt_state = self._optimizer(hyper).update(gradient, opt_state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state


@struct.dataclass
class EpisodeSums:
    """Episodes that ended within some steps, summed up.

    Attributes:
      count: scalar, whole episodes that ended.
      sums: [2 + M] sums of their statistics, columns as `Vector.statistics`.
      nonfinite: scalar, worlds reset because the simulation diverged, and starts drawn again.
      out_of_range: scalar, steps whose observation or reward was cut.
    """

    count: jax.Array
    sums: jax.Array
    nonfinite: jax.Array
    out_of_range: jax.Array


def episode_sums(step: Timestep) -> EpisodeSums:
    """The sums of one step of all worlds."""
    return EpisodeSums(
        count=step.ended.sum(),
        sums=step.episode.sum(0),
        nonfinite=step.nonfinite.sum(),
        out_of_range=step.out_of_range.sum(),
    )


def shuffled(key: jax.Array, count: int) -> jax.Array:
    """[count] the numbers below `count` in random order: one sort of random words."""
    return jnp.argsort(jax.random.bits(key, (count,)))


def concat_keys(obs: Any, keys: tuple[str, ...]) -> jax.Array:
    """Observations side by side, [..., I].

    Args:
      obs: array [..., O], or a dictionary of such arrays with the same leading axes.
      keys: which entries of a dictionary, in this order; all of them, sorted, if empty.
    """
    if not isinstance(obs, dict):
        return obs
    return jnp.concatenate([obs[key] for key in keys or sorted(obs)], axis=-1)
