"""The Panda's model against its published kinematics and C MuJoCo, and its expert."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import physics as ph
from envs_mjx.franka_reach import FrankaReach
from envs_mjx.franka_reach import model as panda
from envs_mjx.franka_reach.task import Randomize
from jaxrl.envs.randomization import Range, draw
from tests.arms import play_in_c

POSES = np.array(
    [
        panda.HOME,
        [0.5, 0.3, -0.4, -1.2, 0.9, 2.0, -0.6],
        [-1.1, -0.9, 1.3, -2.6, -1.5, 0.8, 2.2],
    ]
)
ONE = Range(1.0, 1.0)
NOMINAL = Randomize(gravity=Range(0.0, 0.0), damping=ONE, gains=ONE, mass=ONE)


def grip_by_hand(q) -> np.ndarray:
    """[3] by Franka's table of a, alpha, d (Craig's convention)."""
    rows = [  # a (m), alpha (quarter turns), d (m)
        (0, 0, 0.333),
        (0, -1, 0),
        (0, 1, 0.316),
        (0.0825, 1, 0),
        (-0.0825, -1, 0.384),
        (0, 1, 0),
        (0.088, 1, 0),
    ]
    pose = np.eye(4)
    for (a, quarter, d), angle in zip(rows, q, strict=True):
        ca, sa = [(1, 0), (0, 1), (0, -1)][quarter]
        c, s = np.cos(angle), np.sin(angle)
        pose = pose @ np.array(
            [
                [c, -s, 0, a],
                [s * ca, c * ca, -sa, -d * sa],
                [s * sa, c * sa, ca, d * ca],
                [0, 0, 0, 1],
            ]
        )
    return pose[:3, 3] + (0.107 + 0.1034) * pose[:3, 2]


@pytest.fixture(scope="module", params=[ph.MJXPhysics, ph.CPhysics])
def physics(request):
    return request.param(panda.mjcf(0.005), substeps=4, sites=("grip",), jacobians=True)


@pytest.mark.parametrize("q", POSES)
def test_the_grip_is_where_the_published_kinematics_put_it(physics, q):
    data = mujoco.MjData(physics.model)
    data.qpos = q
    mujoco.mj_kinematics(physics.model, data)
    np.testing.assert_allclose(data.site("grip").xpos, grip_by_hand(q), atol=1e-6)


def test_masses_limits_and_gains_are_the_published_ones(physics):
    m = physics.model
    assert m.body("link_1").mass[0] == pytest.approx(4.970684)
    assert m.body("link_7").mass[0] == pytest.approx(0.735522)
    np.testing.assert_allclose(m.joint("joint_4").range, [-3.0718, -0.0698])
    np.testing.assert_allclose(m.actuator_forcerange[:, 1], [87, 87, 87, 87, 12, 12, 12])
    np.testing.assert_allclose(m.actuator_gainprm[:, 0], panda.STIFFNESS)


def test_poses_and_jacobians_equal_mujocos(physics):
    data = mujoco.MjData(physics.model)
    data.qpos = POSES[1]
    mujoco.mj_kinematics(physics.model, data)
    mujoco.mj_comPos(physics.model, data)
    jacobian, site = np.zeros((6, 7)), data.site("grip")
    mujoco.mj_jacSite(physics.model, data, jacobian[:3], jacobian[3:], site.id)

    @jax.jit
    def ours(q):
        state = physics.init(q)
        return (*physics.site_pose(state, "grip"), physics.site_jacobian(state, "grip"))

    position, rotation, own = ours(jnp.asarray(POSES[1]))
    np.testing.assert_allclose(position, site.xpos, atol=1e-6)
    np.testing.assert_allclose(rotation, site.xmat.reshape(3, 3), atol=1e-6)
    np.testing.assert_allclose(own, jacobian, atol=1e-6)


def test_engines_follow_c_for_half_a_second(physics):
    c = ph.CSimulation(physics, 1)
    qpos = panda.HOME[None].copy()
    c.reset(qpos, np.zeros((1, 7)))
    state, step = physics.init(jnp.asarray(qpos[0])), jax.jit(physics.step)
    # Slow enough for the torque limits: C and MJX differ while a servo is at its limit.
    swing = np.array([0.07, -0.07, 0.07, -0.07, 0.015, -0.015, 0.015])
    for k in range(25):
        ctrl = panda.HOME + swing * (1 - np.cos(np.pi * k / 25))
        qpos, _ = c.step(ctrl[None])
        state = step(state, jnp.asarray(ctrl, jnp.float32))
    assert np.abs(qpos[0] - panda.HOME).min() > 0.01  # it moved
    np.testing.assert_allclose(state.qpos, qpos[0], atol=1e-4)


def test_derived_constants_follow_masses_as_mujocos_compiler_says(physics):
    task = FrankaReach()
    fields = draw(task.randomizations, physics.field, jax.random.key(3))
    assert set(fields) == {
        "opt.gravity",
        "dof_damping",
        "actuator_gainprm",
        "actuator_biasprm",
        "body_mass",
    }
    own = jax.jit(physics._with_constants)(fields)
    model = mujoco.MjModel.from_xml_string(panda.mjcf(0.005))
    before = model.body_invweight0.copy()
    model.body_mass[:] = fields["body_mass"]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    assert np.abs(model.body_invweight0 / np.maximum(before, 1e-9) - 1)[2:].max() > 0.01
    for name in ("body_subtreemass", "body_invweight0", "dof_invweight0"):
        np.testing.assert_allclose(own[name], getattr(model, name), rtol=1e-5, atol=1e-9)


def test_a_world_with_its_own_model_moves_as_c_does_with_that_model():
    task = dataclasses.replace(FrankaReach(), randomize=Randomize(mass=Range(1.5, 2.0)))
    physics = task.physics
    state = jax.jit(task.reset)(jax.random.key(0)).physics
    model = mujoco.MjModel.from_xml_string(panda.mjcf(0.005))
    for name in ("body_mass", "dof_damping", "actuator_gainprm", "actuator_biasprm"):
        getattr(model, name)[:] = state.model[name]
    model.opt.gravity[:] = state.model["opt.gravity"]
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    data.qpos[:] = state.qpos
    step, ctrl = jax.jit(physics.step), np.asarray(state.qpos)  # it sags
    start = ctrl.copy()
    data.ctrl[:] = ctrl
    for _ in range(20):
        state = step(state, jnp.asarray(ctrl))
        mujoco.mj_step(model, data, physics.substeps)
    assert np.abs(data.qpos - start).max() > 0.005
    np.testing.assert_allclose(state.qpos, data.qpos, atol=1e-4)
    nominal = physics.init(panda.HOME)
    assert nominal.model is None  # and costs nothing where nothing varies


@pytest.mark.parametrize("action", ["delta", "absolute"])
def test_the_expert_reaches_and_holds_in_c(action):
    task = FrankaReach(action=action, randomize=NOMINAL)
    qpos, info = play_in_c(task, 16, task.episode_length)
    grips = np.array([grip_by_hand(q) for q in qpos])
    assert np.linalg.norm(grips - info.target, axis=1).max() < 0.012


def test_success_is_held_reach():
    task = FrankaReach(randomize=NOMINAL, start_noise=0.0)
    state = jax.jit(task.reset)(jax.random.key(0))
    grip = grip_by_hand(panda.HOME)
    state = state.replace(info=state.info.replace(target=jnp.asarray(grip, jnp.float32)))
    step, seen = jax.jit(task.step), []
    for _ in range(12):
        state = step(state, jnp.zeros(7))
        seen.append(float(state.metrics["success"]))
    assert seen == [0.0] * 9 + [1.0] * 3  # 0.2 s are ten steps
    away = state.replace(info=state.info.replace(target=jnp.asarray(grip + 0.1, jnp.float32)))
    assert step(away, jnp.zeros(7)).metrics["success"] == 0
