"""Environments of Brax and of MuJoCo Playground as tasks: `brax:ant`,
`playground:CartpoleBalance`.

They are used as they are, without the wrappers of their own trainers: `done` is termination
and nothing else, the time limit and fresh starts are the vectoriser's, and no action is
repeated. Of Playground, the `dm_control_suite` environments need nothing more; the others
fetch robot models with git when they are first made.
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

# Of Brax 0.14: one has no physics; the other's drag calls a JAX function with an argument
# that it no longer takes.
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
# By environment; what is not here trains with the algorithms' own defaults.
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
    own = {"name": name, "presets": PRESETS.get(name, {}), "__doc__": f"Brax's {name}."}
    return type(f"Brax_{name}", (BraxTask,), own)


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
    field = ("episode_length", int, option(limit, "time limit in control steps", minimum=1))
    return dataclasses.make_dataclass(
        f"Playground_{name}",
        [field],
        bases=(PlaygroundTask,),
        namespace={"name": name, "__doc__": f"MuJoCo Playground's {name}."},
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

    Metrics that Brax calls "reward_x" are "reward/x" here. `physics` is what the environment
    simulates with; all else that it keeps in its own state is in `info`.

    Attributes:
      name: of the environment.
      part: field of the environment's state that holds the physics.
    """

    name: ClassVar[str]
    part: ClassVar[str]

    @functools.cached_property
    def env(self) -> Any:
        """The environment, made once. Its constants are made outside of any tracing."""
        with jax.ensure_compile_time_eval(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Brax's physics is no longer developed
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
            return round(float(self.env.dt), 6)  # Brax has it in float32

    def reset(self, key: jax.Array) -> State:
        """The environment's own start; it is given the key as the two words it expects."""
        state = self._state(self.env.reset(jax.random.key_data(key)))
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)

    def step(self, state: State, action: jax.Array) -> State:
        """One step of the environment; structure and types stay those of `reset`."""
        before = state.info.replace(
            **{self.part: state.physics},
            obs=state.obs,
            reward=state.reward,
            done=state.terminated.astype(jnp.float32),
        )
        # Some environments write into the dictionaries of the state that they are given.
        after = self.env.step(jax.tree.map(lambda x: x, before), action)
        after = after.replace(
            info={name: after.info.get(name, old) for name, old in before.info.items()},
            metrics={name: after.metrics.get(name, old) for name, old in before.metrics.items()},
        )
        return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), self._state(after), state)

    def _state(self, own: Any) -> State:
        metrics = {
            name.replace("reward_", "reward/", 1) if name.startswith("reward_") else name: x
            for name, x in own.metrics.items()
        }
        return State(
            physics=getattr(own, self.part),
            obs=own.obs,
            reward=jnp.asarray(own.reward, jnp.float32),
            terminated=jnp.asarray(own.done, bool),
            metrics={name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()},
            info=own.replace(**{self.part: None}, obs=None, reward=None, done=None),
        )

    def render(self, states: Any, stride: int) -> np.ndarray:
        """[F, 480, 640, 3] pictures of every `stride`-th of the physics states [T, ...]."""
        count = len(jax.tree.leaves(states)[0])
        chosen = [jax.tree.map(lambda x, t=t: x[t], states) for t in range(0, count, stride)]
        try:
            return np.stack(self._draw(chosen, height=480, width=640))
        except Exception as error:  # each OpenGL binding fails in its own way
            raise no_opengl(error) from error

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        raise NotImplementedError


def _camera(model: Any) -> str | None:
    """Name of the model's first camera, which follows the robot where it moves away."""
    return (model.ncam and model.camera(0).name) or None


@dataclasses.dataclass(frozen=True)
class BraxTask(BridgedTask):
    """Settings of a Brax environment."""

    backend: Literal["generalized", "positional", "spring", "mjx"] = option(
        "generalized", "Brax's physics"
    )
    episode_length: int = option(1000, "time limit in control steps", minimum=1)

    part: ClassVar[str] = "pipeline_state"

    def _make(self) -> Any:
        from brax import envs

        return envs.get_environment(self.name, backend=self.backend)

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        return self.env.render(states, camera=_camera(self.env.sys.mj_model), **size)


class PlaygroundTask(BridgedTask):
    """A MuJoCo Playground environment, on MJX's JAX physics. Its time limit is its own
    configuration's unless set."""

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
                f"first made, which failed: {error}"
            ) from error

    def _draw(self, states: list[Any], **size: int) -> list[np.ndarray]:
        wrapped = [types.SimpleNamespace(data=state) for state in states]
        return self.env.render(wrapped, camera=_camera(self.env.mj_model), **size)
