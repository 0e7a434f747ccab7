"""The ballbot task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx.ballbot import Ballbot, model
from envs_mjx.ballbot.check import balance
from envs_mjx.ballbot.controllers import lqr_gain, pd_gain
from jaxrl.commands.evaluate import baselines
from jaxrl.envs import Task
from jaxrl.evaluation import summarize


def test_masses_and_geometry_are_the_measured_ones():
    for drive in model.DRIVES:
        m = Ballbot(drive=drive).physics.model
        assert m.body_mass.sum() == pytest.approx(4.021, abs=1e-3)
    mass, com, inertia = model.rigid_body(with_wheels=True)
    assert com[2] == pytest.approx(0.13, abs=1e-9)
    assert mass == pytest.approx(3.4512 + 2 * 0.067 + 3 * 0.0893)
    assert (np.linalg.eigvalsh(inertia) > 0).all()
    np.testing.assert_allclose(np.einsum("ij,ij->i", model.CONTACTS, model.AXLES), 0, atol=1e-12)
    # The speed ceiling: wheel damping takes all 10 N m at 12.5 rad/s.
    ceiling = 12.5 * model.WHEEL_RADIUS / np.cos(model.WHEEL_ZENITH)
    assert ceiling == pytest.approx(0.437, abs=1e-3)


def test_contract():
    task = Ballbot()
    assert isinstance(task, Task)
    assert (task.episode_length, task.control_dt) == (400, 0.02)
    state = task.reset(jax.random.key(0))
    after = jax.jit(task.step)(state, jnp.zeros(3))
    assert state.obs.shape == task.observation_spec.shape == (17,)
    assert len(task.observation_spec.names) == 17
    assert jax.tree.structure(state) == jax.tree.structure(after)
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(after)]
    rewards = sum(v for k, v in after.metrics.items() if k.startswith("reward/"))
    assert float(after.reward) == pytest.approx(float(rewards))


def test_the_observation_does_not_depend_on_the_yaw():
    """Turning robot, motion and command together about the vertical changes nothing."""
    task = Ballbot()
    state = task.reset(jax.random.key(1))
    angle = 1.1
    c, s = np.cos(angle), np.sin(angle)
    turn = jnp.array([[c, -s], [s, c]])
    half = jnp.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])

    def product(a, b):
        w, x, y, z = a
        return jnp.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]) @ b

    physics = state.physics
    qpos = physics.qpos.at[3:7].set(product(half, physics.qpos[3:7]))
    qvel = physics.qvel.at[:2].set(turn @ physics.qvel[:2])
    turned = physics.replace(qpos=qpos, qvel=qvel)
    info = state.info.replace(commands=state.info.commands @ turn.T)
    np.testing.assert_allclose(task._observe(turned, info), state.obs, atol=1e-5)


def test_the_command_follows_its_schedule():
    task = Ballbot(episode_seconds=8.0, command_period=2.0)
    info = task.reset(jax.random.key(2)).info
    assert info.commands.shape == (4, 2)
    speeds = np.linalg.norm(info.commands, axis=1)
    assert (speeds <= task.max_speed + 1e-6).all()
    for step, which in ((0, 0), (99, 0), (100, 1), (399, 3), (4000, 3)):
        now = task.command(info.replace(step=jnp.int32(step)))
        np.testing.assert_array_equal(now, info.commands[which])
    goal = Ballbot(goal="original").reset(jax.random.key(0)).info.commands
    np.testing.assert_allclose(goal, [[0, Ballbot().max_speed]] * 2)


def test_torque_jumps_are_limited():
    task = Ballbot(torque_rate=100.0)
    state = jax.jit(task.step)(task.reset(jax.random.key(0)), jnp.array([1.0, -1.0, 0.1]))
    np.testing.assert_allclose(state.info.last_action, [0.2, -0.2, 0.1], atol=1e-6)


@pytest.mark.parametrize("drive", model.DRIVES)
@pytest.mark.parametrize("name", ["lqr", "pd"])
def test_it_can_be_balanced(drive, name):
    gain = lqr_gain(0.005, 4) if name == "lqr" else pd_gain()
    result = balance(drive, gain, seconds=6.0)
    assert result["seconds"] == pytest.approx(6.0)
    assert result["final_tilt_deg"] < 1.0
    assert result["drift_m"] < 0.5


def test_the_scripted_controller_solves_the_task_and_zero_does_not():
    task = Ballbot(max_speed=0.3, goal="original")
    success = {}
    for name in ("zero", "lqr"):
        evaluator = task.runtime().evaluator(baselines(task)[name], 16)
        table = evaluator(None, jax.random.key(0))
        summary = summarize(evaluator.statistics, table, resamples=10)
        success[name] = summary["success"]["mean"]
        if name == "lqr":
            assert summary["final/goal_speed"]["mean"] > 0.25
            assert summary["final/original_return"]["mean"] > 90
    assert success == {"zero": 0.0, "lqr": 1.0}
