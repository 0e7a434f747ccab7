"""The tasks with arms, played in C MuJoCo by their scripted experts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs_mjx.physics import CSimulation
from jaxrl.envs import State


def play_in_c(task, worlds: int, steps: int, *, level: float = 1.0) -> tuple[np.ndarray, object]:
    """Lets the task's expert act from random starts.

    Args:
      task: one whose memory has the servos' `controls` and that has `commanded`.
      worlds: how many.
      steps: control steps.
      level: of the curriculum.

    Returns:
      [worlds, nq] final positions, and the task's memory.
    """
    expert = task.baselines()["scripted"]

    @jax.jit
    @jax.vmap
    def act(qpos, qvel, info):
        physics = task.physics.init(qpos, qvel)
        zero = jnp.zeros(())
        state = State(physics, zero, zero, zero > 0, {}, info)
        return task.commanded(info, expert(state))

    keys = jax.random.split(jax.random.key(0), worlds)
    starts = jax.jit(jax.vmap(lambda key: task.reset(key, jnp.full((1,), level))))(keys)
    c = CSimulation(task.physics, worlds)
    qpos = np.asarray(starts.physics.qpos, np.float64)
    qvel, info = np.zeros((worlds, task.physics.model.nv)), starts.info
    c.reset(qpos, qvel)
    for _ in range(steps):
        info = act(jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32), info)
        qpos, qvel = c.step(np.asarray(info.controls, np.float64))
    return qpos, info
