"""The Kuka's model against its published geometry, PyBullet and C MuJoCo, and its expert."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import physics as ph
from envs_mjx.kuka_pick_place import KukaPickPlace
from envs_mjx.kuka_pick_place import model as kuka
from jaxrl.errors import UserError
from tests.arms import play_in_c

POSES = np.array(
    [
        kuka.HOME,
        [0.4, 0.7, -0.3, -1.2, 0.5, 0.9, -1.1],
        [-1.3, -0.6, 1.1, 0.8, -0.7, -1.4, 2.0],
    ]
)


def turn(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    if axis == "z":
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def flange(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and rotation of an arm whose axes meet at shoulder, elbow and wrist.

    Upper arm .2045 + .2155 m, forearm .1845 + .2155 m, wrist to flange .081 + .045 m.
    """
    shoulder = np.array([0, 0, 0.1575 + 0.2025])
    upper = turn("z", q[0]) @ turn("y", q[1])
    fore = upper @ turn("z", q[2]) @ turn("y", -q[3])
    hand = fore @ turn("z", q[4]) @ turn("y", q[5])
    position = shoulder + upper[:, 2] * 0.42 + fore[:, 2] * 0.4 + hand[:, 2] * 0.126
    return position, hand @ turn("z", q[6])


@pytest.fixture(scope="module")
def friction():
    return mujoco.MjModel.from_xml_string(kuka.mjcf())


def posed(model, q):
    data = mujoco.MjData(model)
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data


@pytest.mark.parametrize("q", POSES)
def test_flange_lies_where_the_published_lengths_put_it(friction, q):
    data = posed(friction, q)
    position, rotation = flange(q)
    np.testing.assert_allclose(data.site("flange").xpos, position, atol=1e-9)
    np.testing.assert_allclose(data.site("flange").xmat.reshape(3, 3), rotation, atol=1e-9)
    grip = position + kuka.GRIP * rotation[:, 2]
    np.testing.assert_allclose(data.site("grip").xpos, grip, atol=1e-9)


def test_kinematics_and_masses_equal_pybullets(friction):
    bullet = pytest.importorskip("pybullet")
    pybullet_data = pytest.importorskip("pybullet_data")
    client = bullet.connect(bullet.DIRECT)
    try:
        path = Path(pybullet_data.getDataPath()) / "kuka_iiwa" / "model.urdf"
        arm = bullet.loadURDF(str(path), useFixedBase=True, physicsClientId=client)
        for q in POSES:
            for i, angle in enumerate(q):
                bullet.resetJointState(arm, i, angle, physicsClientId=client)
            data = posed(friction, q)
            for i in range(7):
                state = bullet.getLinkState(
                    arm, i, computeForwardKinematics=True, physicsClientId=client
                )
                body = data.body(f"link_{i + 1}")
                np.testing.assert_allclose(body.xpos, state[4], atol=1e-6)
                np.testing.assert_allclose(body.xipos, state[0], atol=1e-6)
                mass, limits = (
                    bullet.getDynamicsInfo(arm, i, physicsClientId=client)[0],
                    bullet.getJointInfo(arm, i, physicsClientId=client)[8:10],
                )
                assert friction.body(f"link_{i + 1}").mass[0] == pytest.approx(mass)
                assert friction.joint(f"joint_{i + 1}").range == pytest.approx(limits)
    finally:
        bullet.disconnect(client)


def test_masses_limits_and_order(friction):
    model = friction
    assert [model.actuator(i).name for i in range(model.nu)] == [*kuka.ARM_JOINTS, "gripper"]
    assert model.actuator_forcerange[:7, 1] == pytest.approx([320, 320, 176, 176, 110, 40, 40])
    gripper = [model.body(name).mass[0] for name in ("hand", "left_finger", "right_finger")]
    assert 0.5 < sum(gripper) < 0.7
    assert model.body("cube").mass[0] == pytest.approx(0.1)
    assert not model.geom_contype.any() and not model.geom_conaffinity.any()
    pairs = {
        frozenset((model.geom(a).name, model.geom(b).name))
        for a, b in zip(model.pair_geom1, model.pair_geom2, strict=True)
    }
    watched = {frozenset(pair) for group in kuka.WATCHED.values() for pair in group}
    assert watched <= pairs


def test_magnet_variant_ties_the_cube_and_lets_the_pads_pass():
    model = mujoco.MjModel.from_xml_string(kuka.mjcf(grasp="magnet"))
    assert not model.eq("magnet").active0
    names = {model.geom(g).name for pair in zip(model.pair_geom1, model.pair_geom2) for g in pair}
    assert not names & {geom for side in kuka.PAD_GEOMS for geom in side}


def test_arm_in_mjx_follows_c_for_half_a_second():
    """Positions in m and rad; the cube falls freely, nothing touches."""
    physics = ph.MJXPhysics(
        re.sub("<contact>.*</contact>", "", kuka.mjcf(), flags=re.S), substeps=4
    )
    qpos = physics.model.qpos0.copy()
    qpos[:7], qpos[7:9] = kuka.HOME, 0.02
    c = ph.CSimulation(physics, 1)
    c.reset(qpos[None], np.zeros((1, physics.model.nv)))
    state, step = physics.init(jnp.asarray(qpos)), jax.jit(physics.step)
    most = 0.0
    for k in range(25):
        # Slow enough for the torque limits: C and MJX differ while a servo is at its limit.
        swing = 0.07 * (1 - np.cos(2 * np.pi * (k + 1) / 25)) * (-1) ** np.arange(7)
        ctrl = np.append(kuka.HOME + swing, 0.02 + 0.01 * np.sin(k / 8))
        expected, _ = c.step(ctrl[None])
        most = max(most, np.abs(expected[0, :7] - kuka.HOME).max())
        state = step(state, jnp.asarray(ctrl, jnp.float32))
    assert most > 0.1  # it moved
    np.testing.assert_allclose(state.qpos, expected[0], atol=1e-4)


@pytest.mark.parametrize("level", [1.0, 0.0])
def test_expert_brings_cubes_to_targets(level):
    """In C MuJoCo: every one of 20 cubes within 2 cm of its target, from the table and, where
    the curriculum begins, from the closed gripper."""
    task = KukaPickPlace(grasped_starts=1.0)
    qpos, info = play_in_c(task, 20, 150, level=level)
    cube = qpos[:, task.physics.qpos_slice("cube")][:, :3]
    assert np.linalg.norm(cube - info.target, axis=1).max() < 0.02


@pytest.fixture(scope="module")
def held():
    """The task, and one world after half a second with the cube in the gripper."""
    task = KukaPickPlace(grasped_starts=1.0)
    state, step = jax.jit(task.reset)(jax.random.key(1), jnp.zeros(1)), jax.jit(task.step)
    for _ in range(25):
        state = step(state, jnp.zeros(8).at[7].set(-1.0))
    return task, state, step


def test_a_grasp_is_told_by_forces_that_c_agrees_with(held):
    task, state, _ = held
    assert state.metrics["final/grasped"] == 1
    data = mujoco.MjData(task.physics.model)
    data.qpos[:], data.qvel[:] = state.physics.qpos, state.physics.qvel
    data.ctrl[:] = state.info.controls
    mujoco.mj_forward(task.physics.model, data)
    sides = np.zeros(2)
    for i, contact in enumerate(data.contact):
        names = [task.physics.model.geom(g).name for g in contact.geom]
        force = np.zeros(6)
        mujoco.mj_contactForce(task.physics.model, data, i, force)
        sides += [force[0] * any(n.startswith(side) for n in names) for side in ("left", "right")]
    ours = np.asarray(state.physics.touch).reshape(2, -1).sum(1)
    assert sides.min() > 1.0
    np.testing.assert_allclose(ours, sides, rtol=0.1)


def test_an_opened_gripper_drops_the_cube(held):
    task, state, step = held
    height = state.physics.qpos[task.physics.qpos_slice("cube")][2]
    for _ in range(25):
        state = step(state, jnp.zeros(8).at[7].set(1.0))
    assert state.metrics["final/grasped"] == 0
    assert state.physics.qpos[task.physics.qpos_slice("cube")][2] < height - 0.01


def test_the_magnet_ties_near_cubes_to_a_closing_gripper():
    task = KukaPickPlace(grasp="magnet", grasped_starts=1.0, magnet_radius=0.02)
    step = jax.jit(task.step)
    state = jax.jit(task.reset)(jax.random.key(1), jnp.zeros(1))
    lift = jnp.zeros(8).at[1].set(-0.5)
    tied = state
    for _ in range(10):
        tied = step(tied, lift.at[7].set(-1.0))
    assert tied.metrics["final/grasped"] == 1
    cube = task.physics.qpos_slice("cube")
    assert tied.physics.qpos[cube][2] > state.physics.qpos[cube][2] + 0.02
    loose = step(tied, lift.at[7].set(1.0))
    assert loose.metrics["final/grasped"] == 0
    far = state.physics.qpos.at[cube.start].add(0.05)
    away = step(state.replace(physics=state.physics.replace(qpos=far)), lift.at[7].set(-1.0))
    assert away.metrics["final/grasped"] == 0


def test_the_same_task_is_played_in_c(held):
    """Alone and in a batch: where the cube is, that it is held, and by which forces."""
    task, state, step = held
    there = jax.jit(task.on("mujoco").step)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    lift = jnp.zeros(8).at[1].set(-0.5).at[7].set(-1.0)
    many = jax.jit(jax.vmap(task.on("mujoco").step))
    alone = state
    for _ in range(5):
        state, alone = step(state, lift), there(alone, lift)
        two = many(two, jnp.stack([lift, lift]))
    np.testing.assert_allclose(alone.physics.qpos, state.physics.qpos, atol=1e-3)
    np.testing.assert_allclose(two.physics.qpos[1], alone.physics.qpos, atol=1e-6)
    assert alone.metrics["final/grasped"] == 1
    mjx, c = (np.asarray(s.physics.touch).reshape(2, -1).sum(1) for s in (state, alone))
    np.testing.assert_allclose(c, mjx, rtol=0.15)


def test_the_magnet_holds_in_c_too():
    task = KukaPickPlace(grasp="magnet", grasped_starts=1.0)
    state = jax.jit(task.reset)(jax.random.key(1), jnp.zeros(1))
    there, lift = jax.jit(task.on("mujoco").step), jnp.zeros(8).at[1].set(-0.5)
    tied = loose = state
    for _ in range(10):
        tied, loose = there(tied, lift.at[7].set(-1.0)), there(loose, lift.at[7].set(1.0))
    cube = task.physics.qpos_slice("cube")
    assert tied.physics.qpos[cube][2] > state.physics.qpos[cube][2] + 0.02
    assert loose.physics.qpos[cube][2] < state.physics.qpos[cube][2] - 0.02


def test_an_unknown_simulator_is_named():
    with pytest.raises(UserError, match="got 'gazebo', this task can be played in mjx, mujoco"):
        KukaPickPlace().on("gazebo")
