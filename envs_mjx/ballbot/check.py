"""Checks that the ballbot balances for 20 s in C MuJoCo: `python -m envs_mjx.ballbot.check`.

Runs LQR and PD on both drive models, from a tilt of 3 deg, with a push of 0.2 m/s at 10 s.
Exits with status 1 if the robot falls in one of the runs.
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from envs_mjx.ballbot.controllers import gravity_in_body, linear_control, lqr_gain, pd_gain
from envs_mjx.ballbot.model import DRIVES, MAX_TORQUE
from envs_mjx.ballbot.task import Ballbot
from envs_mjx.physics import CSimulation

SECONDS = 20.0
PUSH = 0.2  # m/s


def balance(drive: str, gain: np.ndarray, seconds: float = SECONDS) -> dict[str, float]:
    """Seconds upright, largest and final tilt (deg) and drift (m) of one run."""
    task = Ballbot(drive=drive)
    physics = task.physics
    sim = CSimulation(physics, 1)
    qpos, qvel = physics.rest[None].copy(), np.zeros((1, physics.nv))
    half = np.deg2rad(3.0) / 2
    qpos[0, 3:7] = [np.cos(half), np.sin(half), 0, 0]
    sim.reset(qpos, qvel)
    control = jax.jit(
        lambda q, v: linear_control(gain, q, v, position=np.zeros(2), velocity=np.zeros(2))
    )
    tilts = []
    steps = round(seconds / task.control_dt)
    for step in range(steps):
        torque = np.clip(control(qpos[0], qvel[0]), -MAX_TORQUE, MAX_TORQUE)
        if step == steps // 2:
            qvel[0, :2] += PUSH / np.sqrt(2)
            sim.reset(qpos, qvel)
        qpos, qvel = sim.step(np.asarray(torque, np.float64)[None])
        up = -float(gravity_in_body(qpos[0, 3:7])[2])
        tilts.append(np.rad2deg(np.arccos(np.clip(up, -1, 1))))
        if tilts[-1] > task.max_tilt:
            break
    return {
        "seconds": len(tilts) * task.control_dt,
        "largest_tilt_deg": max(tilts),
        "final_tilt_deg": tilts[-1],
        "drift_m": float(np.hypot(*qpos[0, :2])),
    }


def main() -> int:
    task = Ballbot()
    gains = {"lqr": lqr_gain(task.timestep, task.substeps), "pd": pd_gain()}
    fell = 0
    for drive in DRIVES:
        for name, gain in gains.items():
            r = balance(drive, gain)
            fell += r["seconds"] < SECONDS - 1e-6
            print(
                f"{drive:10} {name:4} stood {r['seconds']:5.2f} s  "
                f"largest tilt {r['largest_tilt_deg']:5.2f} deg  "
                f"final tilt {r['final_tilt_deg']:5.2f} deg  drift {r['drift_m']:.3f} m"
            )
    return int(fell > 0)


if __name__ == "__main__":
    sys.exit(main())
