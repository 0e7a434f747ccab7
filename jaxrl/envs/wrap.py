"""What lies between a policy and any robot: delay, noise, and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.task import ArraySpec, State, Task
from jaxrl.errors import UserError
from jaxrl.options import option

if TYPE_CHECKING:
    from jaxrl.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class WrapConfig:
    """Settings that every task has; a dictionary observation has them for each entry."""

    action_delay: tuple[int, ...] = option(
        (0,),
        "control steps until an action acts; two numbers: drawn from that range",
        minimum=0,
        maximum=1000,
    )
    observation_noise: tuple[float, ...] = option(
        (0.0,),
        "std of noise on observations, in their units; one number, or one a component",
        minimum=0,
    )
    history: int = option(
        1, "newest observations that a policy sees side by side", minimum=1, maximum=1000
    )

    @property
    def is_off(self) -> bool:
        """It would change nothing."""
        return not any(self.action_delay) and not any(self.observation_noise) and self.history == 1


class Info(struct.PyTreeNode):
    """The task's memory and the wrapper's.

    Attributes:
      task: the task's own.
      obs: the task's observation without noise.
      frames: leaves [H, O], noisy observations, newest last.
      actions: [D, A] actions, or [D] indices, newest last.
      delay: scalar int32, of this episode.
      key: PRNG key of the noise.
    """

    task: Any
    obs: Any
    frames: Any
    actions: jax.Array
    delay: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Wrapped(Task):
    """A task behind delay, noise and history; all else is the task's.

    Args:
      task: the task.
      wrap: settings.

    Raises:
      UserError: settings that do not fit the task.
    """

    task: Task
    wrap: WrapConfig

    def __post_init__(self) -> None:
        delay = list(self.wrap.action_delay)
        if not 1 <= len(delay) <= 2 or delay != sorted(delay):
            raise UserError(
                f"env.wrap.action_delay: got {delay}, expected one number or a range LOW,HIGH"
            )
        noise = len(self.wrap.observation_noise)
        for spec in jax.tree.leaves(self.task.observation_spec, is_leaf=_is_spec):
            if noise != 1 and (len(spec.shape) != 1 or noise != spec.shape[0]):
                raise UserError(
                    f"env.wrap.observation_noise: got {noise} numbers for an observation of "
                    f"{spec.shape[0]} (give one, or one a component)"
                )

    episode_length = property(attrgetter("task.episode_length"))
    control_dt = property(attrgetter("task.control_dt"))
    action_spec = property(attrgetter("task.action_spec"))
    curriculum = property(attrgetter("task.curriculum"))
    randomizations = property(attrgetter("task.randomizations"))
    success_criterion = property(attrgetter("task.success_criterion"))
    can_render = property(attrgetter("task.can_render"))
    render = property(attrgetter("task.render"))
    simulators = property(attrgetter("task.simulators"))
    unwrapped = property(attrgetter("task"))

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        return jax.tree.map(self._longer, self.task.observation_spec, is_leaf=_is_spec)

    def _longer(self, spec: ArraySpec) -> ArraySpec:
        names = tuple(
            f"{name}[{i}]" for i in range(1 - self.wrap.history, 1) for name in spec.names
        )
        shape = (self.wrap.history * spec.shape[0], *spec.shape[1:])
        return dataclasses.replace(spec, shape=shape, names=names)

    def reset(self, key: jax.Array, *level: jax.Array) -> State:
        """As the task's; no action has been given, and the first observation fills the
        history."""
        key_task, key_delay, key_noise = jax.random.split(key, 3)
        state = self.task.reset(key_task, *level)
        least, most = self.wrap.action_delay[0], self.wrap.action_delay[-1]
        spec = self.task.action_spec
        kind = int if spec.discrete else float
        key_now, key_noise = jax.random.split(key_noise)
        noisy = self._noisy(state.obs, key_now)
        frames = jax.tree.map(lambda x: jnp.stack([x] * self.wrap.history), noisy)
        info = Info(
            task=state.info,
            obs=state.obs,
            frames=frames,
            actions=jnp.zeros((most + 1, *(() if spec.discrete else spec.shape)), kind),
            delay=jax.random.randint(key_delay, (), least, most + 1),
            key=key_noise,
        )
        return state.replace(obs=_flat(frames), info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """As the task's, under the action given `delay` steps ago."""
        info: Info = state.info
        action = jnp.asarray(action, info.actions.dtype)
        actions = jnp.concatenate([info.actions[1:], action[None]])
        new = self.task.step(self.inner_state(state), actions[-1 - info.delay])
        key_now, key_noise = jax.random.split(info.key)
        noisy = self._noisy(new.obs, key_now)
        frames = jax.tree.map(
            lambda old, x: jnp.concatenate([old[1:], x[None]]), info.frames, noisy
        )
        info = info.replace(
            task=new.info, obs=new.obs, frames=frames, actions=actions, key=key_noise
        )
        return new.replace(obs=_flat(frames), info=info)

    def on(self, simulator: str) -> Wrapped:
        """The same in another simulator, if the task can be played in one."""
        return dataclasses.replace(self, task=self.task.on(simulator))

    def runtime(self, wrap: WrapConfig | None = None) -> Runtime:
        return self.task.runtime(wrap or self.wrap)

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """The task's, which see its state without delay or noise."""

        def behind(act: Callable[[State], jax.Array]) -> Callable[[State], jax.Array]:
            return lambda state: act(self.inner_state(state))

        return {name: behind(act) for name, act in self.task.baselines().items()}

    def inner_state(self, state: State) -> State:
        """The state as the task knows it."""
        return state.replace(obs=state.info.obs, info=state.info.task)

    def _noisy(self, obs: Any, key: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(obs)
        std = jnp.asarray(self.wrap.observation_noise)
        keys = jax.random.split(key, len(leaves))
        noisy = [x + std * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noisy)


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _flat(frames: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), frames)
