"""Action delay, observation noise and observation history between a policy and a task."""

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
    """Settings of delay, noise and history for any task; noise and history apply to each part of
    a dictionary observation."""

    action_delay: tuple[int, ...] = option(
        (0,),
        "control steps from an action until it takes effect; two numbers: each episode "
        "draws a delay between them",
        minimum=0,
        maximum=1000,
    )
    observation_noise: tuple[float, ...] = option(
        (0.0,),
        "standard deviation of noise that is added to observations, in their units: one"
        " number for all components, or one for each",
        minimum=0,
    )
    history: int = option(
        1,
        "number of past observations that the policy sees at once, the newest included",
        minimum=1,
        maximum=1000,
    )

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return not any(self.action_delay) and not any(self.observation_noise) and self.history == 1


class Info(struct.PyTreeNode):
    """The `info` of a wrapped task's state.

    Attributes:
      task: the task's own `info`.
      obs: the task's observation without noise.
      frames: leaves [H, O], the last H noisy observations, newest last.
      actions: [D, A] the last D actions, or [D] indices, newest last.
      delay: scalar int32, action delay of this episode in control steps.
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
    """A task with action delay, observation noise and history; the rest is the task's own.

    Args:
      task: the task.
      wrap: settings.

    Raises:
      UserError: settings do not fit the task.
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
                    f"env.wrap.observation_noise: got {noise} numbers for an observation of the "
                    f"shape {list(spec.shape)}; give one number, or one for each component of a "
                    "vector"
                )

    constants = property(attrgetter("task.constants"))
    constants_setting = property(attrgetter("task.constants_setting"))
    sense_every = property(attrgetter("task.sense_every"))
    episode_length = property(attrgetter("task.episode_length"))
    control_dt = property(attrgetter("task.control_dt"))
    action_spec = property(attrgetter("task.action_spec"))
    curriculum = property(attrgetter("task.curriculum"))
    randomizations = property(attrgetter("task.randomizations"))
    success_criterion = property(attrgetter("task.success_criterion"))
    can_render = property(attrgetter("task.can_render"))
    engine_name = property(attrgetter("task.engine_name"))
    check_engine = property(attrgetter("task.check_engine"))
    render = property(attrgetter("task.render"))
    simulators = property(attrgetter("task.simulators"))
    unwrapped = property(attrgetter("task"))

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        return jax.tree.map(self._with_history, self.task.observation_spec, is_leaf=_is_spec)

    def _with_history(self, spec: ArraySpec) -> ArraySpec:
        names = tuple(
            f"{name}[{i}]" for i in range(1 - self.wrap.history, 1) for name in spec.names
        )
        if spec.is_image:
            shape = (*spec.shape[:-1], self.wrap.history * spec.shape[-1])
        else:
            shape = (self.wrap.history * spec.shape[0], *spec.shape[1:])
        return dataclasses.replace(spec, shape=shape, names=names)

    def reset(self, key: jax.Array, *level: jax.Array) -> State:
        """Resets the task; past actions are zero, and the first observation fills the history."""
        key_task, key_delay, key_noise = jax.random.split(key, 3)
        state = self.task.reset(key_task, *level)
        min_delay, max_delay = self.wrap.action_delay[0], self.wrap.action_delay[-1]
        spec = self.task.action_spec
        kind = int if spec.discrete else float
        key_now, key_noise = jax.random.split(key_noise)
        noisy = self._noisy(state.obs, key_now)
        frames = jax.tree.map(lambda x: jnp.stack([x] * self.wrap.history), noisy)
        info = Info(
            task=state.info,
            obs=state.obs,
            frames=frames,
            actions=jnp.zeros((max_delay + 1, *(() if spec.discrete else spec.shape)), kind),
            delay=jax.random.randint(key_delay, (), min_delay, max_delay + 1),
            key=key_noise,
        )
        return state.replace(obs=_flat(frames), info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """Steps the task with the action that was given `delay` control steps ago."""
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

    def with_constants(self, arrays: Any) -> Wrapped:
        return dataclasses.replace(self, task=self.task.with_constants(arrays))

    def sense(self, state: State) -> State:
        """Senses in the task; the newest frame has the new values, with noise."""
        info: Info = state.info
        new = self.task.sense(self.inner_state(state))
        key_now, key_noise = jax.random.split(info.key)
        noisy = self._noisy(new.obs, key_now)
        frames = jax.tree.map(lambda old, x: old.at[-1].set(x), info.frames, noisy)
        info = info.replace(task=new.info, obs=new.obs, frames=frames, key=key_noise)
        return new.replace(obs=_flat(frames), info=info)

    def on(self, simulator: str) -> Wrapped:
        """Returns the wrapped task in another simulator, if the task supports it."""
        return dataclasses.replace(self, task=self.task.on(simulator))

    def runtime(self, wrap: WrapConfig | None = None) -> Runtime:
        return self.task.runtime(wrap or self.wrap)

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Returns the task's baselines, which get its state without noise or history."""

        def on_inner_state(act: Callable[[State], jax.Array]) -> Callable[[State], jax.Array]:
            return lambda state: act(self.inner_state(state))

        return {name: on_inner_state(act) for name, act in self.task.baselines().items()}

    def inner_state(self, state: State) -> State:
        """Returns the state in the form that the task itself uses."""
        return state.replace(obs=state.info.obs, info=state.info.task)

    def _noisy(self, obs: Any, key: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(obs)
        std = jnp.asarray(self.wrap.observation_noise)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            x + std * jax.random.normal(k, x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else x
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _flat(frames: Any) -> Any:
    """Frames [K, ...] in one array: vectors one after the other, images by their channels."""

    def join(x: jax.Array) -> jax.Array:
        if x.ndim == 4:
            return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, frames)
