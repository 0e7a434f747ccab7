"""jaxrl tasks as Brax environments, and the settings for Brax's PPO to train them.

Runs with brax 0.14.2; nothing else in the project imports Brax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import brax.envs
import jax
import jax.numpy as jnp
from brax.training.agents.ppo import networks as brax_networks
from brax.training.agents.ppo import train as brax_ppo
from flax import linen as nn
from flax import struct
from mujoco import mjx

from envs_mjx.physics import MJXPhysics, PhysicsState
from envs_mjx.physics.mjx import _step
from jaxrl.algos import PPOConfig
from jaxrl.envs import State, Task


@struct.dataclass
class StockState(PhysicsState):
    """A world's state with MJX's whole `Data`."""

    data: mjx.Data | None = None


class StockPhysics(MJXPhysics):
    """Physics as in Brax and MuJoCo Playground: unchanged MJX, with the whole `Data` as state.

    Args:
      tuned: the task's physics, to take the model and the substeps from.
    """

    def __init__(self, tuned: MJXPhysics):
        vars(self).update(vars(tuned))

    def init(self, *args: Any, **kwargs: Any) -> StockState:
        state = super().init(*args, **kwargs)
        return StockState(**vars(state), data=self._data(state))

    def step(self, state: StockState, ctrl: jax.Array) -> StockState:
        def substep(data: mjx.Data, _) -> tuple[mjx.Data, None]:
            return _step(self, self.mjx_model, data.replace(ctrl=ctrl)), None

        data = jax.lax.scan(substep, state.data, length=self.substeps)[0]
        return self._with_poses(self._updated(state.replace(data=data), data))


def stock(task: Task) -> Task:
    """The same task on `StockPhysics`."""
    task = dataclasses.replace(task, engine="mjx")
    vars(task)["physics"] = StockPhysics(task.physics)  # replaces the cached property's value
    return task


class BraxTask(brax.envs.Env):
    """A jaxrl task as a Brax environment.

    Brax's automatic reset restores `pipeline_state` and `obs` only, so the task's memory is
    stored in `pipeline_state`, next to the physics.

    Args:
      task: any task with an array observation.
    """

    def __init__(self, task: Task):
        self.task = task

    def reset(self, rng: jax.Array) -> brax.envs.State:
        return self._state(self.task.reset(rng), info={})

    def step(self, state: brax.envs.State, action: jax.Array) -> brax.envs.State:
        physics, memory = state.pipeline_state
        before = State(
            physics=physics,
            obs=state.obs,
            reward=state.reward,
            terminated=state.done.astype(bool),
            metrics=state.metrics,
            info=memory,
        )
        return self._state(self.task.step(before, action), info=state.info)

    def _state(self, state: State, info: dict[str, Any]) -> brax.envs.State:
        return brax.envs.State(
            pipeline_state=(state.physics, state.info),
            obs=state.obs,
            reward=state.reward,
            done=state.terminated.astype(jnp.float32),
            metrics=dict(state.metrics),
            info=info,
        )

    @property
    def observation_size(self) -> int:
        return self.task.observation_spec.shape[-1]

    @property
    def action_size(self) -> int:
        return self.task.action_spec.shape[-1]

    @property
    def backend(self) -> str:
        return "mjx"


def brax_settings(config: PPOConfig, task: Task, num_envs: int) -> dict[str, Any]:
    """Arguments of `brax.training.agents.ppo.train` that match a jaxrl configuration."""
    network = config.network

    def make_networks(*args, **kwargs):
        return brax_networks.make_ppo_networks(
            *args,
            policy_hidden_layer_sizes=network.policy_hidden,
            value_hidden_layer_sizes=network.value_hidden,
            activation=getattr(nn, network.activation),
            distribution_type=network.distribution,
            noise_std_type="log",
            init_noise_std=network.initial_std,
            **kwargs,
        )

    if num_envs % config.num_minibatches:
        raise ValueError(f"Brax: {config.num_minibatches} minibatches must divide {num_envs} envs")
    return {
        "environment": BraxTask(task),
        "episode_length": task.episode_length,
        "num_envs": num_envs,
        "unroll_length": config.num_steps,
        "batch_size": num_envs // config.num_minibatches,
        "num_minibatches": config.num_minibatches,
        "num_updates_per_batch": config.num_epochs,
        "learning_rate": config.learning_rate,
        "entropy_cost": config.entropy_coef,
        "discounting": config.gamma,
        "gae_lambda": config.gae_lambda,
        "clipping_epsilon": config.clip_range,
        "max_grad_norm": config.max_grad_norm,
        # Brax halves the squared error, jaxrl does not.
        "vf_loss_coefficient": 2 * config.value_coef,
        "normalize_observations": config.normalize_observation,
        "normalize_advantage": config.normalize_advantage,
        "network_factory": make_networks,
        "run_evals": False,
    }


def train_brax(
    settings: dict[str, Any],
    *,
    timesteps: int,
    chunks: int,
    seed: int,
    after: Callable[[int, Callable, Any], None],
) -> None:
    """Trains with Brax's PPO, in `chunks` compiled calls.

    Args:
      settings: from `brax_settings`.
      timesteps: total number of control steps.
      chunks: number of calls.
      seed: seed of all random numbers.
      after: called before the first chunk and after each chunk, with (timesteps so far, Brax's
        policy factory, parameters).
    """
    restore_removed_jax_function()
    brax_ppo.train(
        **settings,
        num_timesteps=timesteps,
        num_evals=chunks + 1,
        seed=seed,
        policy_params_fn=after,
    )


def restore_removed_jax_function() -> None:
    """Restores `jax.device_put_replicated`: JAX has removed it, Brax's trainers still call it."""
    if hasattr(jax, "device_put_replicated"):
        return

    def device_put_replicated(tree: Any, devices: list) -> Any:
        # The layout of `jax.pmap`'s results, so that its second call does not compile again.
        mesh = jax.sharding.Mesh(devices, (brax_ppo._PMAP_AXIS_NAME,))
        layout = jax.sharding.NamedSharding(mesh, jax.P(brax_ppo._PMAP_AXIS_NAME))
        stacked = jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)
        return jax.device_put(stacked, layout)

    jax.device_put_replicated = device_put_replicated
