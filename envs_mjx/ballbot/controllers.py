"""Classical controllers of the ballbot: LQR and PD, on the full state.

Both are linear in the reduced state [p, l, v, w] of `reduced_state` and give wheel
torques. They are baselines, and show that the task can be solved.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from envs_mjx.ballbot import model as m
from envs_mjx.physics import CPhysics, CSimulation, Physics


def heading(quat: jax.Array) -> jax.Array:
    """Cosine and sine [2] of the yaw of a w-first quaternion [4]."""
    w, x, y, z = quat
    c, s = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z)
    return jnp.stack([c, s]) / jnp.sqrt(jnp.maximum(c * c + s * s, 1e-12))


def to_heading(vector: jax.Array, quat: jax.Array) -> jax.Array:
    """A world-frame vector [2] in the frame that shares the body's yaw."""
    c, s = heading(quat)
    return jnp.stack([c * vector[0] + s * vector[1], c * vector[1] - s * vector[0]])


def gravity_in_body(quat: jax.Array) -> jax.Array:
    """Unit vector [3] of gravity in the body frame; (0, 0, -1) when upright."""
    w, x, y, z = quat
    return -jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def reduced_state(qpos: jax.Array, qvel: jax.Array, position: jax.Array) -> jax.Array:
    """[9] position error 2 (heading frame), lean 2, velocity 2 (heading frame), angular
    velocity 3.

    Args:
      qpos, qvel: state of either drive model; the base's free joint comes first.
      position: [2] reference position in the world (m).
    """
    quat = qpos[3:7]
    return jnp.concatenate(
        [
            to_heading(qpos[:2] - position, quat),
            gravity_in_body(quat)[:2],
            to_heading(qvel[:2], quat),
            qvel[3:6],
        ]
    )


def _linearise(physics: Physics) -> tuple[np.ndarray, np.ndarray]:
    """A [9, 9], B [9, 3] of one control step about rest, by central differences in C MuJoCo."""
    nq, nv, eps = physics.nq, physics.nv, 1e-4
    rest = np.tile(physics.rest, (1, 1))
    sim = CSimulation(physics, 1)
    sim.reset(rest, np.zeros((1, nv)))
    for _ in range(25):  # sink to the contacts' equilibrium
        qpos, _ = sim.step(np.zeros((1, 3)))
    height = qpos[0, 2]

    def after(index: int, delta: float) -> np.ndarray:
        """[9] reduced state after a step with a change of one state (0-8) or control (9-11)."""
        qpos, qvel, ctrl = physics.rest.copy(), np.zeros(nv), np.zeros(3)
        qpos[2] = height
        state = np.zeros(9)
        if index < 9:
            state[index] = delta
        else:
            ctrl[index - 9] = delta
        qpos[:2] = state[:2]
        # Lean l is gravity in the body frame: rotate by the angle (l_y, -l_x) / -1.
        rotation = np.array([-state[3], state[2], 0.0]) / 2
        qpos[3:7] = [np.sqrt(1 - rotation @ rotation), *rotation]
        qvel[:2], qvel[3:6] = state[4:6], state[6:9]
        rolling = np.array([-state[5], state[4], 0.0]) / m.BALL_RADIUS
        qvel[6:9] = rolling - state[6:9]
        sim.reset(qpos[None], qvel[None])
        qpos, qvel = sim.step(ctrl[None])
        return np.asarray(reduced_state(qpos[0], qvel[0], np.zeros(2)))

    assert nq == 11, "the linear model is that of the no_slip drive"
    columns = [(after(i, eps) - after(i, -eps)) / (2 * eps) for i in range(12)]
    jacobian = np.stack(columns, axis=1)
    return jacobian[:, :9], jacobian[:, 9:]


@functools.lru_cache
def lqr_gain(timestep: float, substeps: int) -> np.ndarray:
    """[3, 9] gain K: wheel torques (N m) per unit of the reduced state; u = -K x.

    Discrete LQR about rest for the no_slip model at the given control rate; the weights
    penalise 0.1 m, 3 deg, 0.2 m/s, 1 rad/s and 3 N m equally.
    """
    physics = CPhysics(m.mjcf("no_slip", timestep), substeps=substeps)
    with jax.ensure_compile_time_eval():
        a, b = _linearise(physics)
    q = np.diag(1 / np.array([0.1, 0.1, 0.05, 0.05, 0.2, 0.2, 1, 1, 1]) ** 2)
    r = np.eye(3) / 3.0**2
    p = scipy.linalg.solve_discrete_are(a, b, q, r)
    return np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)


def pd_gain() -> np.ndarray:
    """[3, 9] gain K of a hand-tuned PD on lean and lean rate with velocity feedback; u = -K x."""
    # Desired torque on the ball (x, y, z), distributed to the wheels along their axles.
    lean, rate, speed, yaw_rate = 90.0, 11.0, 60.0, 1.0
    torque = np.zeros((3, 9))
    torque[0, [3, 5, 6]] = -lean, -speed, rate
    torque[1, [2, 4, 7]] = lean, speed, rate
    torque[2, 8] = -yaw_rate
    return m.AXLES @ torque


def rolling_torque(velocity: jax.Array) -> jax.Array:
    """[3] wheel torques (N m) that keep a velocity [2] (m/s, heading frame) against damping."""
    omega = jnp.stack([-velocity[1], velocity[0], 0.0]) / m.BALL_RADIUS
    return m.WHEEL_DAMPING * m.GEAR @ omega


def linear_control(
    gain: np.ndarray,
    qpos: jax.Array,
    qvel: jax.Array,
    *,
    position: jax.Array,
    velocity: jax.Array,
) -> jax.Array:
    """Wheel torques [3] (N m) that follow a moving reference.

    Args:
      gain: [3, 9] gain K on the reduced state.
      qpos, qvel: state of one world.
      position: [2] reference position, world frame (m).
      velocity: [2] reference velocity, world frame (m/s).
    """
    heading_velocity = to_heading(velocity, qpos[3:7])
    error = reduced_state(qpos, qvel, position).at[4:6].add(-heading_velocity)
    return rolling_torque(heading_velocity) - gain @ error
