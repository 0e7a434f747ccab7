"""The torque-limited pendulum: swing up and balance. Closed form, no simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs import ArraySpec, State, Task
from jaxrl.options import option

PPO = {
    "num_steps": 32,
    "num_minibatches": 8,
    "learning_rate": 3e-3,
    "gamma": 0.95,
    "normalize_reward": True,
}
OFF_POLICY = {
    "num_steps": 50,
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "schedule": {"kind": "linear", "final": 0.1},
    "gamma": 0.98,
    "buffer_size": 100_000,
    "learning_starts": 400,
    "gradient_steps": 4,
    "tau": 0.02,
    "network": {"policy_hidden": [64, 64], "value_hidden": [64, 64]},
}
RARE = {"eval": {"every": 2000}, "checkpoint": {"every": 10_000}}
GRAVITY, MASS, LENGTH, MAX_SPEED = 10.0, 1.0, 1.0, 8.0  # m/s^2, kg, m, rad/s


@dataclasses.dataclass(frozen=True)
class Pendulum(Task):
    """Settings of the task. With the defaults it is Gymnasium's `Pendulum-v1`.

    Physics [2]: angle from upright (rad, any number of turns), angular velocity (rad/s) of
    a uniform rod. Observation [3]: cosine and sine of the angle, angular velocity.
    Action [1]: torque as a share of `max_torque`.
    """

    episode_length: int = option(200, "time limit of an episode (control steps)", minimum=1)
    max_torque: float = option(
        2.0, "largest torque (N m); about 5 can hold the rod horizontal", greater_than=0
    )
    control_dt: float = option(0.05, "length of a control step (s)", greater_than=0, maximum=0.1)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        device: {
            "ppo": {"num_envs": 64, "total_timesteps": 200_000, "ppo": PPO},
            "sac": {"num_envs": 4, "total_timesteps": 20_000, "sac": OFF_POLICY} | RARE,
            "td3": {"num_envs": 4, "total_timesteps": 20_000, "td3": OFF_POLICY} | RARE,
        }
        for device in ("cpu", "gpu")
    }

    observation_parts: ClassVar[dict[str, int]] = {"cos": 1, "sin": 1, "speed": 1}

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((1,), -1.0, 1.0, ("torque",))

    def reset(self, key: jax.Array) -> State:
        """Starts at any angle, with an angular velocity of up to 1 rad/s in either direction."""
        bounds = jnp.array([jnp.pi, 1.0])
        return self._state(
            jax.random.uniform(key, (2,), minval=-bounds, maxval=bounds), jnp.zeros(3)
        )

    def step(self, state: State, action: jax.Array) -> State:
        """One semi-implicit Euler step; the reward is that of the state before the step."""
        angle, speed = state.physics
        torque = self.max_torque * jnp.clip(action[0], -1.0, 1.0)
        wrapped = jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi
        terms = -jnp.stack([wrapped**2, 0.1 * speed**2, 0.001 * torque**2])
        inertia = MASS * LENGTH**2 / 3
        gravity = MASS * GRAVITY * LENGTH / 2 * jnp.sin(angle)
        speed = speed + (gravity + torque) / inertia * self.control_dt
        speed = jnp.clip(speed, -MAX_SPEED, MAX_SPEED)
        return self._state(jnp.stack([angle + speed * self.control_dt, speed]), terms)

    def _state(self, physics: jax.Array, terms: jax.Array) -> State:
        angle, speed = physics
        return State(
            physics=physics,
            obs=self.observe(cos=jnp.cos(angle), sin=jnp.sin(angle), speed=speed),
            reward=terms.sum(),
            terminated=jnp.zeros((), bool),
            metrics=dict(zip(("reward/angle", "reward/speed", "reward/torque"), terms)),
            info=(),
        )

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Energy pumping up to the energy of upright rest, then PD once the torque suffices."""

        def swing_up(state: State) -> jax.Array:
            cos, sin, speed = state.obs
            inertia, weight = MASS * LENGTH**2 / 3, MASS * GRAVITY * LENGTH / 2
            missing_energy = weight * (1 - cos) - inertia * speed**2 / 2
            pump = missing_energy * jnp.where(speed < 0, -1.0, 1.0)
            hold = -2 * weight * sin - 2 * speed
            near = (cos > 0.9) & (jnp.abs(hold) < 2 * self.max_torque)
            return jnp.clip(jnp.where(near, hold, pump) / self.max_torque, -1.0, 1.0)[None]

        return {"swing_up": swing_up}

    def render(self, states: jax.Array, stride: int) -> np.ndarray:
        """[F, 256, 256, 3] pictures of the rod, at every `stride`-th of the states [T, 2]."""
        y, x = np.mgrid[1.3:-1.3:256j, -1.3:1.3:256j]
        angle = np.asarray(states)[::stride, 0, None, None]
        along, across = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
        rod = (np.abs(across) < 0.08) & (np.abs(along - LENGTH / 2) < LENGTH / 2)
        return np.where(rod[..., None], [180, 60, 60], 255).astype(np.uint8)
