"""MJX against C MuJoCo, and the traps of XLA on a CPU."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx import physics as ph
from envs_mjx.ballbot import Ballbot
from envs_mjx.ballbot.controllers import linear_control, lqr_gain
from envs_mjx.physics import tuning


@pytest.mark.parametrize(("drive", "tolerance"), [("no_slip", 1e-5), ("omniwheel", 1e-3)])
def test_ballbot_in_mjx_follows_c_for_a_second(drive, tolerance):
    """The same controls in both; positions in m and quaternions may differ by `tolerance`."""
    task = Ballbot(drive=drive)
    physics, worlds = task.physics, 4
    tilt = np.deg2rad([0.5, 1.0, 2.0, 3.0]) / 2
    qpos = np.tile(physics.model.qpos0, (worlds, 1))
    qpos[:, 3], qpos[:, 4] = np.cos(tilt), np.sin(tilt)
    qvel = np.zeros((worlds, physics.model.nv))
    gain = lqr_gain(task.timestep, task.substeps)
    control = jax.jit(
        jax.vmap(
            lambda q, v: linear_control(
                gain, q, v, position=q[:2], velocity=jnp.array([0.0, 0.3])
            ).clip(-10, 10)
        )
    )
    c = ph.CSimulation(physics, worlds)
    c.reset(qpos, qvel)
    state = jax.vmap(physics.init)(jnp.asarray(qpos), jnp.asarray(qvel))
    step = jax.jit(jax.vmap(physics.step))
    for _ in range(round(1.0 / task.control_dt)):
        torque = np.asarray(control(qpos, qvel), np.float64)
        qpos, qvel = c.step(torque)
        state = step(state, jnp.asarray(torque, jnp.float32))
    assert np.abs(qpos[:, 1]).min() > 0.1  # it drove
    np.testing.assert_allclose(state.qpos[:, :7], qpos[:, :7], atol=tolerance)


def test_the_drive_models_agree():
    """No slip is what three wheels in contact amount to: within 1 cm after 1 s of driving."""
    ends = []
    for drive in ("no_slip", "omniwheel"):
        task = Ballbot(drive=drive)
        model = task.physics.model
        c = ph.CSimulation(task.physics, 1)
        qpos, qvel = model.qpos0[None].copy(), np.zeros((1, model.nv))
        c.reset(qpos, qvel)
        gain = lqr_gain(task.timestep, task.substeps)
        for step in range(50):
            reference = np.array([0.0, 0.2 * step * task.control_dt])
            torque = linear_control(
                gain, qpos[0], qvel[0], position=reference, velocity=np.array([0.0, 0.2])
            )
            qpos, qvel = c.step(np.asarray(torque, np.float64)[None])
        ends.append(qpos[0, :2])
    assert ends[0][1] > 0.1
    np.testing.assert_allclose(ends[0], ends[1], atol=0.01)


def test_only_what_the_next_step_needs_is_carried():
    state = Ballbot().physics.init(Ballbot().physics.model.qpos0)
    assert [x.shape for x in jax.tree.leaves(state)] == [(11,), (9,), (9,)]


def test_small_cholesky_equals_the_library():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(9, 9))
    a, b = jnp.asarray(a @ a.T + 9 * np.eye(9)), jnp.asarray(rng.normal(size=9))
    linalg = jax.scipy.linalg
    factor = tuning._small_cho_factor(linalg.cho_factor)(a)
    np.testing.assert_allclose(np.triu(factor[0]), np.triu(linalg.cho_factor(a)[0]), rtol=1e-4)
    x = tuning._small_cho_solve(linalg.cho_solve)(factor, b)
    np.testing.assert_allclose(a @ x, b, atol=1e-4)


def chain(joints: int) -> str:
    inner = ""
    for i in reversed(range(joints)):
        axis = "0 1 0" if i % 2 else "0 0 1"
        inner = (
            f'<body pos="0 0 .2"><joint axis="{axis}" armature=".1" damping=".5"/>'
            f'<geom type="capsule" size=".03" fromto="0 0 0 0 0 .2" contype="0" '
            f'conaffinity="0"/>{inner}</body>'
        )
    return (
        '<mujoco><option timestep=".005" integrator="implicitfast"/>'
        f"<worldbody>{inner}</worldbody></mujoco>"
    )


def test_a_six_joint_chain_steps_at_about_its_c_cost():
    """XLA on a CPU makes it a hundred times that without the barriers of `envs_mjx.physics`; in
    CPU seconds, so that other work does not count."""
    physics, worlds, steps = ph.MJXPhysics(chain(6), substeps=1), 512, 100
    qpos = np.random.default_rng(0).uniform(-1, 1, (worlds, 6))
    state = jax.vmap(physics.init)(jnp.asarray(qpos))
    none = jnp.zeros((worlds, 0))
    run = jax.jit(
        lambda s: jax.lax.scan(
            lambda s, _: (jax.vmap(physics.step)(s, none), None), s, length=steps
        )[0]
    )
    c = ph.CSimulation(physics, worlds)
    c.reset(qpos, np.zeros((worlds, 6)))

    def cpu_seconds(work):
        work()
        times = []
        for _ in range(5):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
        return min(times)

    mjx_seconds = cpu_seconds(lambda: jax.block_until_ready(run(state)))
    c_seconds = cpu_seconds(lambda: c._batch.step(nstep=steps))
    assert mjx_seconds < 10.0 * c_seconds, f"MJX {mjx_seconds:.3f} s, C {c_seconds:.3f} s"


STUCK = """
import jaxrl, jax, jax.numpy as jnp
from envs_mjx.ballbot import Ballbot
task = Ballbot(drive="omniwheel")
state = jax.vmap(task.reset)(jax.random.split(jax.random.key(0), 512))
step = jax.jit(jax.vmap(task.step))
for _ in range(20):
    state = step(state, jnp.zeros((512, 3)))
print("finite", bool(jnp.isfinite(state.obs).all()))
"""


@pytest.mark.slow
def test_batch_512_with_contacts_does_not_hang():
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "finite True" in done.stdout
