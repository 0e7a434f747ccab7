"""Base class of all algorithms: settings, policy, normaliser, optimiser and worlds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import platform
from jaxrl.envs.task import Task
from jaxrl.errors import UserError
from jaxrl.nets import NetworkConfig
from jaxrl.options import option, traced
from jaxrl.policy import Policy, PolicyState
from jaxrl.rl import schedules
from jaxrl.rl.returns import ReturnScale
from jaxrl.rl.rollout import Rollout

if TYPE_CHECKING:
    from jaxrl.runtime import Worlds

# Smallest learning rate: a smaller one changes hardly any float32 parameter.
MIN_RATE = 1e-12


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule: a factor of the learning rate that changes over the run."""

    kind: Literal["constant", "linear", "piecewise", "cosine"] = option(
        "constant", "how the learning rate changes over the run"
    )
    final: float = option(
        0.0,
        "learning rate at the end of the run, as a factor of the initial one (linear and cosine)",
        minimum=0,
    )
    boundaries: tuple[float, ...] = option(
        (),
        "shares of the run (0 to 1) after which a piecewise schedule changes the learning rate",
        minimum=0,
        maximum=1,
    )
    factors: tuple[float, ...] = option(
        (),
        "factors of the initial learning rate, one for the time after each boundary",
        minimum=0,
    )

    def check(self, path: str) -> None:
        """Raises UserError if boundaries, factors or the final factor do not fit the kind."""
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
                    f"{path}.{name}: has no effect with {path}.kind {self.kind} (settings of this "
                    f"kind: {', '.join(used) or 'none'})"
                )

    def factor(self, progress: jax.Array) -> jax.Array:
        """Returns the factor at `progress`, the share of the run that is done, in [0, 1]."""
        return schedules.factor(
            self.kind,
            progress,
            final=self.final,
            boundaries=self.boundaries,
            factors=self.factors,
        )


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """Settings that all algorithms have."""

    learning_rate: float = option(
        3e-4,
        "learning rate of the optimiser (Adam) at the start of the run",
        greater_than=0,
        minimum=MIN_RATE,
        traced=True,
    )
    schedule: ScheduleConfig = option(ScheduleConfig(), "learning-rate schedule")
    num_steps: int = option(32, "control steps of each world in one iteration", minimum=1)
    gamma: float = option(
        0.99, "discount factor of future rewards", minimum=0, maximum=1, traced=True
    )
    max_grad_norm: float = option(
        0.5, "largest norm of a gradient; larger ones are scaled down", greater_than=0, traced=True
    )
    weight_decay: float = option(0.0, "decoupled weight decay, as in AdamW", minimum=0, traced=True)
    normalize_observation: bool = option(
        True, "normalise observations by their running mean and standard deviation"
    )
    normalize_reward: bool = option(
        False, "divide rewards by the running standard deviation of the discounted return"
    )
    network: NetworkConfig = option(NetworkConfig(), "policy and value networks")


class TrainState(struct.PyTreeNode):
    """Complete state of training, as one tree of arrays that checkpoints save.

    Attributes:
      policy: network parameters and observation statistics; a separate item of a checkpoint.
      learner: other data that the updates need, such as optimiser states.
      replay: replay of past steps; None if the algorithm has none.
      return_scale: statistics of the return, by which rewards are divided.
      envs: the worlds.
      memory: the policy's memory in each world, leaves [N, ...]; empty if it has no memory.
      hyper: the algorithm's traced settings by name.
      key: PRNG key.
      iteration: int32, number of finished iterations.
    """

    policy: PolicyState
    learner: Any
    replay: Any
    return_scale: ReturnScale
    envs: Any
    memory: Any
    hyper: dict[str, jax.Array]
    key: jax.Array
    iteration: jax.Array


class Algorithm:
    """Base class of algorithms that learn on the worlds of a task.

    The algorithm chooses actions and computes updates; the task's runtime steps the worlds. A
    subclass defines `learns_every`, `draws`, `act`, `learn`, `init_params` and `_init`.

    Args:
      config: settings.
      task: the task.
      worlds: the task's N worlds; with several devices, those of one device.
      total_iterations: length of the run, for the learning-rate schedule.

    Attributes:
      num_envs: N.
      devices: number of devices.
      all_envs: number of worlds on all devices.
      batch_size: control steps in an iteration, on all devices.

    Raises:
      UserError: settings do not fit together, or do not fit the task.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AlgorithmConfig]]
    adam_epsilon: ClassVar[float] = 1e-8
    learner_carries_over: ClassVar[bool] = False  # whether `learner` has more than optimisers

    def __init__(self, config: Any, task: Task, worlds: Worlds, total_iterations: int):
        self.config = config
        self.task = task
        self.worlds = worlds
        self.num_envs = worlds.num_envs
        self.total_iterations = total_iterations
        self.devices = worlds.devices
        self.all_envs = self.num_envs * self.devices
        self.batch_size = config.num_steps * self.all_envs
        self.policy = self.new_policy(config, task)
        self._frozen = config.network.frozen
        self._check()

    @classmethod
    def new_policy(cls, config: Any, task: Task) -> Policy:
        """Returns the policy that is trained on a task, without its parameters."""
        return Policy(
            config.network,
            task.observation_spec,
            task.action_spec,
            normalize=config.normalize_observation,
            path=f"{cls.name}.network",
            constants=task.constants,
        )

    def _check(self) -> None:
        """Raises UserError if settings do not fit together, or do not fit the task."""
        self.config.schedule.check(f"{self.name}.schedule")

    # -- training -----------------------------------------------------------------

    def hyperparameters(self, config: Any = None) -> dict[str, jax.Array]:
        """Returns the traced settings of `config` (None: the algorithm's own) as scalars."""
        config = config or self.config
        values = vars(config)
        return {name: jnp.asarray(values[name], jnp.float32) for name in traced(type(config))}

    def init(self, key: jax.Array, hyper: dict[str, jax.Array] | None = None) -> TrainState:
        """Returns the training state at the start of a run.

        Args:
          key: PRNG key.
          hyper: values of the traced settings; None: the configured values.
        """
        key, key_net, key_envs = jax.random.split(key, 3)
        envs = self.worlds.init(key_envs)
        hyper = self.hyperparameters() if hyper is None else hyper
        params, learner, replay = self._init(key_net, hyper)
        self._check_frozen([params, learner])
        return TrainState(
            policy=self.policy.state(params),
            learner=learner,
            replay=replay,
            return_scale=ReturnScale.init(self.num_envs),
            envs=envs,
            memory=self.policy.memory(self.num_envs),
            hyper=hyper,
            key=key,
            iteration=jnp.zeros((), jnp.int32),
        )

    def begin_with(self, state: TrainState, policy: PolicyState, *, members: bool) -> TrainState:
        """Returns the state at the start of a run, with another policy.

        Args:
          state: training state at the start.
          policy: the policy's state.
          members: whether their leaves begin with the axis of a population's members.
        """
        return state.replace(policy=policy)

    def worlds_axes(self, shapes: TrainState) -> TrainState:
        """The axis of each array along which the worlds lie; -1 for arrays without one.

        Args:
          shapes: the training state as shapes.
        """
        none = jax.tree.map(lambda _: -1, shapes)
        return none.replace(
            return_scale=none.return_scale.replace(running=0),
            envs=self.worlds.axes(shapes.envs),
            memory=jax.tree.map(lambda _: 0, shapes.memory),
        )

    def shared(self, axes: TrainState) -> TrainState:
        """Replaces the member axis by None where all members of a population share an array.

        Args:
          axes: a training state with the member axis in place of each array.
        """
        return axes.replace(iteration=None)

    # -- methods that a subclass defines --------------------------------------------------

    @property
    def learns_every(self) -> int:
        """T: number of control steps of all worlds in the rollout that `learn` gets."""
        raise NotImplementedError

    def draws(self, key: jax.Array, steps: int) -> Any:
        """Returns the random numbers of `act` for `steps` control steps, leaves [steps, ...]."""
        raise NotImplementedError

    def act(self, state: TrainState, draw: Any) -> tuple[jax.Array, Any, Any]:
        """Chooses actions in training.

        Args:
          state: training state with the current observations in `state.envs.obs`, and the memory.
          draw: random numbers of one control step, from `draws`.

        Returns:
          actions [N, A]; data about the actions that `learn` needs; the memory after them.
        """
        raise NotImplementedError

    def learn(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes the updates after `learns_every` control steps.

        Returns:
          the new training state; scalars to log, NaN where a scalar was not computed.
        """
        raise NotImplementedError

    @classmethod
    def init_params(cls, policy: Policy, key: jax.Array) -> Any:
        """Returns new parameters of the policy's network, with the heads that it trains."""
        raise NotImplementedError

    def _init(self, key: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        """Returns the initial policy parameters, learner and replay."""
        raise NotImplementedError

    # -- shared methods ------------------------------------------------------------------

    def rate(self, state: TrainState) -> jax.Array:
        """Current factor of the learning-rate schedule."""
        return self.config.schedule.factor(self.progress(state))

    def progress(self, state: TrainState) -> jax.Array:
        """Share of the run that is done."""
        return state.iteration / jnp.float32(max(self.total_iterations, 1))

    def interrupt(self, state: TrainState) -> TrainState:
        """Returns the state with all running episodes ended, as at a time limit. A resumed run
        needs it if the worlds themselves could not be saved."""
        scale = state.return_scale
        return state.replace(
            return_scale=scale.replace(running=jnp.zeros_like(scale.running)),
            memory=self.policy.memory(self.num_envs),
        )

    @property
    def refill_steps(self) -> int:
        """Number of control steps that a run resumed without its replay plays before the first
        update."""
        return 0

    def memory_needs(self, shapes: TrainState) -> Iterator[tuple[str, tuple[int, str]]]:
        """Yields (part of training, (minimum bytes on the device, settings that determine them)).

        Args:
          shapes: the training state as shapes.
        """
        yield (
            "networks",
            (
                platform.tree_bytes((shapes.policy, shapes.learner)),
                f"{self.name}.network (policy_hidden, value_hidden)",
            ),
        )
        yield (
            "worlds",
            (platform.tree_bytes(shapes.envs), f"num_envs, {self.name}.num_steps, env.wrap"),
        )

    def _optimizer(self, hyper: dict[str, jax.Array]) -> optax.GradientTransformation:
        """Gradient clipping and AdamW, without the learning rate, which `_descend` applies."""
        return optax.chain(
            optax.clip_by_global_norm(hyper["max_grad_norm"]),
            optax.scale_by_adam(eps=self.adam_epsilon),
            optax.add_decayed_weights(hyper["weight_decay"]),
        )

    def _descend(
        self,
        params: Any,
        opt_state: optax.OptState,
        gradient: Any,
        *,
        state: TrainState,
        rate: jax.Array,
    ) -> tuple[Any, optax.OptState]:
        """Makes one step of the optimiser, with learning rate `rate`; frozen parameters stay."""
        updates, opt_state = self._optimizer(state.hyper).update(gradient, opt_state, params)
        until = self.config.network.frozen_until
        frozen_rate = None if until >= 1 else rate * (self.progress(state) >= until)

        def step(path: tuple[Any, ...], p: jax.Array, u: jax.Array) -> jax.Array:
            if not self._is_frozen(path):
                return p - rate * u
            return p if frozen_rate is None else p - frozen_rate * u

        return jax.tree_util.tree_map_with_path(step, params, updates), opt_state

    def _is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Whether the parameter lies in a frozen part (setting `network.frozen`)."""
        name = _parameter_name(path)
        return any(_lies_in(name, part) for part in self._frozen)

    def _check_frozen(self, params: Any) -> None:
        """Raises UserError if a name in `network.frozen` matches no parameter.

        Args:
          params: parameters of all networks.
        """
        paths = [_parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for part in self._frozen:
            if not any(_lies_in(path, part) for path in paths):
                known = dict.fromkeys(path.rpartition("/")[0] or path for path in paths)
                raise UserError(
                    f"{self.name}.network.frozen: the networks have no part {part!r} (they have: "
                    f"{', '.join(known)})"
                )


def _parameter_name(path: tuple[Any, ...]) -> str:
    """Returns a parameter's name, such as "policy_trunk/Dense_0/kernel"."""
    keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return "/".join(key for key in keys if key != "params")


def _lies_in(name: str, part: str) -> bool:
    """Whether the parameter `name` is the part `part` of the networks, or lies in it."""
    return name == part or name.startswith(f"{part}/")


def shuffled(key: jax.Array, count: int) -> jax.Array:
    """Returns the numbers 0 to count - 1 in random order, [count] (one sort of random bits)."""
    return jnp.argsort(jax.random.bits(key, (count,)))
