"""Environments of Brax and of MuJoCo Playground as tasks: `brax:ant`,
`playground:CartpoleBalance`.

The environments are used without the wrappers of their own trainers: `done` means termination
only, the vectoriser applies the time limit and makes new starts, and no action is repeated.
Playground's `dm_control_suite` environments need no download; the others fetch robot models with
git when they are first made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import types
import warnings
from subprocess import CalledProcessError
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.registry import unknown
from jaxrl.envs.task import ArraySpec, State, Task
from jaxrl.errors import UserError, no_opengl
from jaxrl.options import option

# Environments of Brax 0.14 that cannot be used: "fast" has no physics; the drag model of "swimmer"
# calls a JAX function with an argument that JAX no longer accepts.
UNUSABLE = ("fast", "swimmer")

OFF_POLICY = {
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "gamma": 0.98,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gradient_steps": 4,
    "network": {"policy_hidden": [64, 64], "value_hidden": [64, 64]},
}
RARE = {"eval": {"every": 2000, "episodes": 32}, "checkpoint": {"every": 10_000}}
INVERTED_PENDULUM = {
    "ppo": {
        "num_envs": 64,
        "total_timesteps": 300_000,
        "eval": {"every": 20_000, "episodes": 32},
        "ppo": {"num_steps": 32, "learning_rate": 1e-3, "gamma": 0.98},
    },
    "sac": {"num_envs": 4, "total_timesteps": 20_000, "sac": OFF_POLICY} | RARE,
    "td3": {"num_envs": 4, "total_timesteps": 20_000, "td3": OFF_POLICY} | RARE,
}
# Presets by environment; all other environments train with the algorithms' defaults.
PRESETS = {"inverted_pendulum": {"cpu": INVERTED_PENDULUM, "gpu": INVERTED_PENDULUM}}


@functools.cache
def brax_class(name: str) -> type:
    """The task class of a Brax environment, such as "ant".

    Raises:
      UserError: Brax is not installed, or has no such environment.
    """
    known = [n for n in _import("brax.envs", f"brax:{name}")._envs if n not in UNUSABLE]
    if name not in known:
        raise unknown("task", f"brax:{name}", [f"brax:{n}" for n in known])
    namespace = {
        "name": name,
        "presets": PRESETS.get(name, {}),
        "__doc__": f"The environment {name} of Brax.",
    }
    return type(f"Brax_{name}", (BraxTask,), namespace)


@functools.cache
def playground_class(name: str) -> type:
    """The task class of a MuJoCo Playground environment, such as "CartpoleBalance".

    Raises:
      UserError: Playground is not installed, or has no such environment.
    """
    registry = _import("mujoco_playground", f"playground:{name}").registry
    if name not in registry.ALL_ENVS:
        raise unknown("task", f"playground:{name}", [f"playground:{n}" for n in registry.ALL_ENVS])
    limit = registry.get_default_config(name).episode_length
    field = (
        "episode_length",
        int,
        option(limit, "time limit of an episode (control steps)", minimum=1),
    )
    return dataclasses.make_dataclass(
        f"Playground_{name}",
        [field],
        bases=(PlaygroundTask,),
        namespace={"name": name, "__doc__": f"The environment {name} of MuJoCo Playground."},
        frozen=True,
    )


def _import(module: str, task: str) -> types.ModuleType:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
            return importlib.import_module(module)
    except ImportError as error:
        extra = task.partition(":")[0]
        raise UserError(
            f"env.name: {task} needs `pip install 'jaxrl[{extra}]'` ({error})"
        ) from error


class BridgedTask(Task):
    """A task made of an environment with Brax's interface.

    Metrics that Brax calls "reward_x" are "reward/x" here. `State.physics` is the state of the
    simulator; `State.info` holds all other fields of the environment's own state.

    Attributes:
      name: name of the environment.
      part: field of the environment's own state that holds the state of the simulator.
    """

    name: ClassVar[str]
    part: ClassVar[str]

    @functools.cached_property
    def env(self) -> Any:
        """The environment, made once. Its constants are made outside of any JAX tracing."""
        with jax.ensure_compile_time_eval(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Brax's physics is no longer developed"
            return self._make()

    def _make(self) -> Any:
        raise NotImplementedError

    @functools.cached_property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        obs = jax.eval_shape(self.reset, jax.random.key(0)).obs
        return jax.tree.map(lambda x: ArraySpec(x.shape), obs)

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((self.env.action_size,), -1.0, 1.0)

    @property
    def control_dt(self) -> float:
        with jax.ensure_compile_time_eval():
            return round(float(self.env.dt), 6)  # float32 in Brax

    def reset(self, key: jax.Array) -> State:
        """A start of the environment, which expects the key as its two raw words."""
        state = self._state(self.env.reset(jax.random.key_data(key)))
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)

    def step(self, state: State, action: jax.Array) -> State:
        """One step of the environment; structure and types are the same as after `reset`."""
        before = state.info.replace(
            **{self.part: state.physics},
            obs=state.obs,
            reward=state.reward,
            done=state.terminated.astype(jnp.float32),
        )
        # The copy is needed: some environments write into the dictionaries of their argument.
        after = self.env.step(jax.tree.map(lambda x: x, before), action)
        after = after.replace(
            info={name: after.info.get(name, old) for name, old in before.info.items()},
            metrics={name: after.metrics.get(name, old) for name, old in before.metrics.items()},
        )
        return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), self._state(after), state)

    def _state(self, env_state: Any) -> State:
        """The `State` of a task, made of the environment's own state."""
        metrics = {
            name.replace("reward_", "reward/", 1) if name.startswith("reward_") else name: x
            for name, x in env_state.metrics.items()
        }
        return State(
            physics=getattr(env_state, self.part),
            obs=env_state.obs,
            reward=jnp.asarray(env_state.reward, jnp.float32),
            terminated=jnp.asarray(env_state.done, bool),
            metrics={name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()},
            info=env_state.replace(**{self.part: None}, obs=None, reward=None, done=None),
        )

    def render(self, states: Any, stride: int) -> np.ndarray:
        """Pictures [F, 480, 640, 3] of every `stride`-th of the physics states [T, ...]."""
        count = len(jax.tree.leaves(states)[0])
        chosen = [jax.tree.map(lambda x, t=t: x[t], states) for t in range(0, count, stride)]
        try:
            return np.stack(self._draw(chosen, height=480, width=640))
        except Exception as error:  # each OpenGL binding raises its own exceptions
            raise no_opengl(error) from error

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        raise NotImplementedError


def _camera(model: Any) -> str | None:
    """Name of the model's first camera, which follows a moving robot; None: no named camera."""
    return (model.ncam and model.camera(0).name) or None


@dataclasses.dataclass(frozen=True)
class BraxTask(BridgedTask):
    """Settings of a Brax environment."""

    backend: Literal["generalized", "positional", "spring", "mjx"] = option(
        "generalized", "Brax's physics pipeline"
    )
    episode_length: int = option(1000, "time limit of an episode (control steps)", minimum=1)

    part: ClassVar[str] = "pipeline_state"

    def _make(self) -> Any:
        from brax import envs

        return envs.get_environment(self.name, backend=self.backend)

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        return self.env.render(states, camera=_camera(self.env.sys.mj_model), **size)


class PlaygroundTask(BridgedTask):
    """A MuJoCo Playground environment, with MJX's JAX physics. The default of `episode_length` is
    the value in the environment's own configuration."""

    part: ClassVar[str] = "data"

    def _make(self) -> Any:
        from mujoco_playground import registry

        config = registry.get_default_config(self.name)
        if "impl" in config:
            config.impl = "jax"
        try:
            return registry.load(self.name, config)
        except (CalledProcessError, OSError) as error:
            raise UserError(
                f"env.name: playground:{self.name} fetches robot models with git when it is "
                f"first made, but this failed: {error}"
            ) from error

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        wrapped = [types.SimpleNamespace(data=state) for state in states]
        return self.env.render(wrapped, camera=_camera(self.env.mj_model), **size)
