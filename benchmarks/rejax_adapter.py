"""jaxrl tasks as gymnax environments, and rejax's PPO and SAC as trainers for them.

Runs with rejax 0.1.3 and gymnax 0.0.9, the version with the `step` that rejax calls; nothing
else in the project imports them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import rejax
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl.envs import State, Task


@struct.dataclass
class Timed(environment.EnvState):
    """A task's state, and as `time` the number of control steps in the episode."""

    state: State


class GymnaxTask(environment.Environment):
    """A jaxrl task as a gymnax environment; gymnax resets it, with a new start each time.

    gymnax 0.0.9 has only one kind of episode end, so rejax treats a time limit as a termination.

    Args:
      task: any task with an array observation.
      action_limit: rejax's actions range from -action_limit to action_limit; its PPO begins
        with a standard deviation of 1.
    """

    def __init__(self, task: Task, action_limit: float = 1.0):
        self.task = task
        self.action_limit = action_limit

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=self.task.episode_length)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, Timed]:
        state = self.task.reset(key)
        return state.obs, Timed(time=jnp.zeros((), jnp.int32), state=state)

    def step_env(self, key: jax.Array, state: Timed, action: jax.Array, params: Any) -> tuple:
        after = self.task.step(state.state, action / self.action_limit)
        time = state.time + 1
        done = after.terminated | (time >= params.max_steps_in_episode)
        return after.obs, Timed(time=time, state=after), after.reward, done, {}

    def action_space(self, params: Any = None) -> spaces.Box:
        limit = self.action_limit
        return spaces.Box(-limit, limit, self.task.action_spec.shape)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.task.observation_spec.shape)


class Rejax:
    """One of rejax's algorithms on a jaxrl task, without changes to rejax's code.

    Args:
      name: "ppo" or "sac".
      task: the task.
      action_limit: as in `GymnaxTask`.
      settings: settings of the algorithm, by rejax's names.
    """

    def __init__(self, name: str, task: Task, *, action_limit: float = 1.0, **settings: Any):
        env = GymnaxTask(task, action_limit)
        self.algo = rejax.get_algo(name).create(env=env, **settings)
        self._squash = jnp.tanh if name == "sac" else lambda x: jnp.clip(x / action_limit, -1, 1)
        # Control steps of an iteration.
        self.batch_size = settings["num_envs"] * settings.get("num_steps", 1)

    def init(self, key: jax.Array) -> Any:
        """The training state of a new run."""
        state = self.algo.init_state(key)
        return _as(jax.eval_shape(self.algo.train_iteration, state), state)

    def update(self, state: Any, _: None = None) -> tuple[Any, None]:
        """Runs one iteration."""
        return _as(state, self.algo.train_iteration(state)), None

    def policy(self, state: Any) -> Any:
        """The first argument of `act`: the actor's parameters and the observation statistics."""
        return state.actor_ts.params, state.obs_rms_state

    def act(self, policy: Any, obs: jax.Array) -> jax.Array:
        """[N, A] deterministic actions in [-1, 1] for observations [N, O]."""
        params, statistics = policy
        if self.algo.normalize_observations:
            obs = self.algo.normalize_obs(statistics, obs)
        return self._squash(self.algo.actor.apply(params, obs, method="_action_dist").loc)


def _as(like: Any, tree: Any) -> Any:
    """`tree` with the types of `like`, and none of them weak: a compiled function compiles again
    if the types of its arguments change."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), tree, like)
