"""What every algorithm has: settings, policy, normaliser, optimiser, worlds."""

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

# A step size below which no float32 parameter moves.
LEAST_RATE = 1e-12


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Factor of the learning rate over the run."""

    kind: Literal["constant", "linear", "piecewise", "cosine"] = option(
        "constant", "shape of the schedule"
    )
    final: float = option(0.0, "factor at the end (linear, cosine)", minimum=0)
    boundaries: tuple[float, ...] = option(
        (), "shares of the run where piecewise changes", minimum=0, maximum=1
    )
    factors: tuple[float, ...] = option((), "factor after each boundary", minimum=0)

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
    """Settings that all algorithms have."""

    learning_rate: float = option(
        3e-4, "Adam's step size at the start", greater_than=0, minimum=LEAST_RATE, traced=True
    )
    schedule: ScheduleConfig = option(ScheduleConfig(), "learning-rate schedule")
    num_steps: int = option(32, "control steps a world in one iteration", minimum=1)
    gamma: float = option(0.99, "discount", minimum=0, maximum=1, traced=True)
    max_grad_norm: float = option(0.5, "gradient norm clip", greater_than=0, traced=True)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", minimum=0, traced=True)
    normalize_observation: bool = option(True, "running mean and std of observations")
    normalize_reward: bool = option(False, "divide rewards by the std of the return")
    network: NetworkConfig = option(NetworkConfig(), "policy and value networks")


class TrainState(struct.PyTreeNode):
    """Everything that training is, in one tree; saved whole.

    Attributes:
      policy: what acting needs; saved apart.
      learner: what the updates need besides, such as optimiser states.
      replay: past steps, where the algorithm keeps any.
      return_scale: for rewards over the std of the return.
      envs: the worlds.
      memory: of the policy in each world, leaves [N, ...]; empty where it has none.
      hyper: the algorithm's traced settings by name.
      key: PRNG key.
      iteration: int32.
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
    """A learning algorithm on the worlds of a task.

    It acts and learns; the task's runtime steps the worlds in between. A subclass gives
    `learns_every`, `draws`, `act`, `learn` and `_init`.

    Args:
      config: settings.
      task: the task.
      worlds: of the task, N of them.
      total_iterations: length of the run, for the learning-rate schedule.

    Raises:
      UserError: settings that do not fit together.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AlgorithmConfig]]
    adam_epsilon: ClassVar[float] = 1e-8

    def __init__(self, config: Any, task: Task, worlds: Worlds, total_iterations: int):
        self.config = config
        self.task = task
        self.worlds = worlds
        self.num_envs = worlds.num_envs
        self.total_iterations = total_iterations
        self.batch_size = config.num_steps * self.num_envs
        self.policy = Policy(
            config.network,
            task.observation_spec,
            task.action_spec,
            normalize=config.normalize_observation,
            path=f"{self.name}.network",
        )
        self._frozen = config.network.frozen
        self._check()

    def _check(self) -> None:
        """Raises UserError where settings do not fit together, or the task."""
        self.config.schedule.check(f"{self.name}.schedule")

    # -- training -----------------------------------------------------------------

    def hyperparameters(self, config: Any = None) -> dict[str, jax.Array]:
        """The traced settings of a configuration (its own, if none) as scalars."""
        config = config or self.config
        values = vars(config)
        return {name: jnp.asarray(values[name], jnp.float32) for name in traced(type(config))}

    def init(self, key: jax.Array, hyper: dict[str, jax.Array] | None = None) -> TrainState:
        """A new run from one key.

        Args:
          key: PRNG key.
          hyper: other numbers than the configured ones.
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

    def shared(self, axes: TrainState) -> TrainState:
        """Member axes of a population's state: None for what is the same for all members."""
        return axes.replace(iteration=None)

    # -- what an algorithm gives ---------------------------------------------------------

    @property
    def learns_every(self) -> int:
        """T: control steps of all worlds that `learn` takes at once."""
        raise NotImplementedError

    def draws(self, key: jax.Array, steps: int) -> Any:
        """The random numbers that `act` needs in so many control steps, leaves [steps, ...]."""
        raise NotImplementedError

    def act(self, state: TrainState, draw: Any) -> tuple[jax.Array, Any, Any]:
        """How to act while training.

        Args:
          state: with the observations to act on in `state.envs.obs`, and the memory.
          draw: one step of `draws`.

        Returns:
          actions [N, A]; what `learn` will need to know of them; the memory after them.
        """
        raise NotImplementedError

    def learn(
        self, state: TrainState, rollout: Rollout, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The updates after `learns_every` control steps, and scalars to log; those that were
        not computed are NaN."""
        raise NotImplementedError

    @classmethod
    def init_params(cls, policy: Policy, key: jax.Array) -> Any:
        """Parameters of the policy's network, as this algorithm trains them."""
        raise NotImplementedError

    def _init(self, key: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        """Policy parameters, learner and replay."""
        raise NotImplementedError

    # -- what they share -----------------------------------------------------------------

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
        return state.replace(
            return_scale=scale.replace(running=jnp.zeros_like(scale.running)),
            memory=self.policy.memory(self.num_envs),
        )

    @property
    def refill_steps(self) -> int:
        """Control steps that are played before learning goes on, where a resumed run has lost
        its replay."""
        return 0

    def memory_needs(self, shapes: TrainState) -> Iterator[tuple[str, tuple[int, str]]]:
        """(part of training, (least bytes it takes on the device, settings it grows with)).

        Args:
          shapes: of the training state.
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
        """AdamW but for the step size, which `_descend` applies."""
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
        hyper: dict[str, jax.Array],
        rate: jax.Array,
    ) -> tuple[Any, optax.OptState]:
        """One step of the optimiser."""
        updates, opt_state = self._optimizer(hyper).update(gradient, opt_state, params)
        return jax.tree_util.tree_map_with_path(
            lambda path, p, u: p if self._is_frozen(path) else p - rate * u, params, updates
        ), opt_state

    def _is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Whether the configuration keeps this parameter as it is."""
        names = _names(path)
        return any(_lies_in(names, part) for part in self._frozen)

    def _check_frozen(self, params: Any) -> None:
        """Refuses names of frozen parts that no parameter has.

        Args:
          params: of all networks.
        """
        paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for part in self._frozen:
            if not any(_lies_in(path, part) for path in paths):
                known = dict.fromkeys(path.rpartition("/")[0] or path for path in paths)
                raise UserError(
                    f"{self.name}.network.frozen: the networks have no part {part!r} (they have: "
                    f"{', '.join(known)})"
                )


def _names(path: tuple[Any, ...]) -> str:
    """A parameter's name, such as "policy_trunk/Dense_0/kernel"."""
    keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return "/".join(key for key in keys if key != "params")


def _lies_in(name: str, part: str) -> bool:
    """Whether a parameter of this name is the part of the networks, or lies in it."""
    return name == part or name.startswith(f"{part}/")


def shuffled(key: jax.Array, count: int) -> jax.Array:
    """[count] the numbers below `count` in random order: one sort of random words."""
    return jnp.argsort(jax.random.bits(key, (count,)))
