"""The model of the two arms: kinematics, masses, MJX against C MuJoCo."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import physics as ph
from envs_mjx.aloha_insertion import expert, kinematics, model


@pytest.fixture(scope="module")
def physics():
    return ph.Physics(model.mjcf(), substeps=5)


def start(physics: ph.Physics) -> np.ndarray:
    """[nq] arms at home with open grippers, objects on the table."""
    qpos = physics.model.qpos0.copy()
    for side in model.SIDES:
        for name, value in zip(model.ARM_JOINTS, model.HOME, strict=True):
            qpos[physics.qpos_slice(f"{side}/{name}")] = value
        for name in ("finger", "finger_2"):
            qpos[physics.qpos_slice(f"{side}/{name}")] = model.FINGER_OPEN
    return qpos


def gripper_by_hand(side: str, joints) -> np.ndarray:
    """[3] the point between the pads, from the link lengths of the ViperX 300s alone."""
    waist, shoulder, elbow, roll, wrist, _ = joints
    theta = shoulder + elbow
    # In the upright plane of the arm: ahead, to the left, up.
    at = np.array([0.0, 0.0, 0.079 + 0.04805])
    at += 0.05955 * np.array([np.cos(shoulder), 0, -np.sin(shoulder)])
    at += 0.3 * np.array([np.sin(shoulder), 0, np.cos(shoulder)])
    ahead, aside = np.array([np.cos(theta), 0, -np.sin(theta)]), np.array([0.0, 1.0, 0.0])
    above = np.cross(ahead, aside)
    at += (0.2 + 0.1) * ahead
    bent = np.sin(roll) * aside - np.cos(roll) * above
    at += (0.069744 + 0.15) * (np.cos(wrist) * ahead + np.sin(wrist) * bent)
    turn = waist + (np.pi if side == "right" else 0.0)
    x = at[0] * np.cos(turn) - at[1] * np.sin(turn)
    y = at[0] * np.sin(turn) + at[1] * np.cos(turn)
    return np.array([x + (0.469 if side == "right" else -0.469), y + 0.5, at[2]])


@pytest.mark.parametrize(
    "joints",
    [
        tuple(model.HOME),
        (0.4, -0.1, 0.7, 0.0, 0.9, 0.3),
        (-0.7, 0.3, -0.5, 1.1, 1.2, -0.8),
    ],
)
@pytest.mark.parametrize("side", model.SIDES)
def test_grippers_are_where_the_link_lengths_put_them(physics, side, joints):
    data = mujoco.MjData(physics.model)
    for name, value in zip(model.ARM_JOINTS, joints, strict=True):
        data.joint(f"{side}/{name}").qpos = value
    mujoco.mj_kinematics(physics.model, data)
    mujoco.mj_comPos(physics.model, data)
    wanted = gripper_by_hand(side, joints)
    np.testing.assert_allclose(data.site(f"{side}/gripper").xpos, wanted, atol=1e-9)

    with jax.disable_jit():
        position, rotation, jacobian = kinematics.forward(side, jnp.asarray(joints))
    np.testing.assert_allclose(position, wanted, atol=1e-6)
    site = data.site(f"{side}/gripper")
    np.testing.assert_allclose(rotation, site.xmat.reshape(3, 3), atol=1e-6)
    full = np.zeros((6, physics.model.nv))
    mujoco.mj_jacSite(physics.model, data, full[:3], full[3:], site.id)
    columns = [physics.qvel_slice(f"{side}/{name}").start for name in model.ARM_JOINTS]
    np.testing.assert_allclose(jacobian, full[:, columns], atol=1e-6)


def test_masses_and_limits_are_the_published_ones(physics):
    m = physics.model
    assert m.body("left/upper_arm_link").mass[0] == pytest.approx(0.792592)
    assert m.body("right/gripper_link").mass[0] == pytest.approx(0.251652)
    assert m.body("peg").mass[0] == m.body("socket").mass[0] == pytest.approx(0.05)
    np.testing.assert_allclose(m.joint("left/shoulder").range, [-1.85005, 1.25664])
    np.testing.assert_allclose(m.joint("right/finger_2").range, [0.021, 0.057])
    assert m.actuator("right/elbow").forcerange[1] == 59
    names = [m.actuator(i).name for i in range(m.nu)]
    assert names == [f"{s}/{j}" for s in model.SIDES for j in (*model.ARM_JOINTS, "gripper")]
    # The peg's inertia is a solid box's, the socket's that of a tube with a core.
    np.testing.assert_allclose(m.body("peg").inertia, [3.33e-6, 6.17e-5, 6.17e-5], rtol=1e-2)
    along, across = m.body("socket").inertia[[0, 1]]
    assert 0.05 * 0.015**2 < along < 0.05 * 0.025**2
    assert 0.05 * 0.12**2 / 14 < across < 0.05 * 0.12**2 / 10


def test_pads_meet_where_the_finger_says(physics):
    data = mujoco.MjData(physics.model)
    for name in ("finger", "finger_2"):
        data.joint(f"left/{name}").qpos = model.FINGER_OPEN
    mujoco.mj_kinematics(physics.model, data)
    gap = data.geom("left/pad").xpos - data.geom("left/pad_2").xpos
    opening = 2 * (model.FINGER_OPEN - model.FINGER_CLOSED + model.PAD_HALF[1])
    np.testing.assert_allclose(gap, [0, opening, 0], atol=1e-9)
    middle = (data.geom("left/pad").xpos + data.geom("left/pad_2").xpos) / 2
    np.testing.assert_allclose(middle, data.site("left/gripper").xpos, atol=1e-9)


def test_mjx_follows_c_while_the_arms_swing(physics):
    """The same controls in both for half a second, clear of every contact but the table's."""
    worlds, steps = 2, 25
    rng = np.random.default_rng(0)
    qpos = np.tile(start(physics), (worlds, 1))
    qvel = np.zeros((worlds, physics.model.nv))
    home = np.tile(np.append(model.HOME, model.FINGER_OPEN), 2)
    sway = rng.uniform(-0.3, 0.3, (worlds, 14))
    sway[:, [6, 13]] = -0.02
    c = ph.CPhysics(physics, worlds)
    c.reset(qpos, qvel)
    begun, state = qpos, jax.vmap(physics.init)(jnp.asarray(qpos))
    step = jax.jit(jax.vmap(physics.step))
    for t in range(steps):
        ctrl = home + sway * np.sin(np.pi * (t + 1) / steps)
        qpos, qvel = c.step(ctrl)
        state = step(state, jnp.asarray(ctrl, jnp.float32))
    assert np.abs(qpos - begun)[:, :6].max() > 0.05  # it swung
    np.testing.assert_allclose(state.qpos[:, :16], qpos[:, :16], atol=1e-4)
    np.testing.assert_allclose(state.qpos[:, 16:], qpos[:, 16:], atol=1e-3)


def run_in_c(physics: ph.Physics, qpos: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    """[steps, worlds, nq] of the expert at work in C MuJoCo."""

    @jax.jit
    @jax.vmap
    def control(qpos, target):
        return expert.next_target(target, expert.expert(kinematics.view(qpos, target)))

    c = ph.CPhysics(physics, len(qpos))
    c.reset(qpos, np.zeros((len(qpos), physics.model.nv)))
    history = []
    for _ in range(steps):
        target = np.asarray(control(jnp.asarray(qpos, jnp.float32), jnp.asarray(target)))
        qpos, _ = c.step(target.astype(np.float64))
        history.append(qpos)
    return np.stack(history)


def touching(physics: ph.Physics, qpos: np.ndarray) -> set[frozenset[str]]:
    data = mujoco.MjData(physics.model)
    data.qpos = qpos
    mujoco.mj_kinematics(physics.model, data)
    mujoco.mj_comPos(physics.model, data)
    mujoco.mj_collision(physics.model, data)
    return {
        frozenset(physics.model.geom(g).name for g in contact.geom)
        for contact in data.contact
        if contact.dist < 0
    }


def assert_inserted(physics: ph.Physics, qpos: np.ndarray) -> None:
    touches = touching(physics, qpos)
    for what in ("peg_held", "socket_held", "peg_pin"):
        assert {frozenset(pair) for pair in model.WATCHED[what]} <= touches, what
    for what in ("peg_table", "socket_table"):
        assert not {frozenset(pair) for pair in model.WATCHED[what]} & touches, what


def test_the_expert_inserts_from_home_and_from_a_grasp(physics):
    rng = np.random.default_rng(0)
    worlds = 6

    def poses(low, high, z):
        centers = np.append(rng.uniform(low, high, (worlds, 2)), np.full((worlds, 1), z), axis=1)
        return jnp.asarray(centers), jnp.asarray(rng.uniform(-0.17, 0.17, worlds))

    on_table = (
        poses(*model.PEG_RESET, model.PEG_REST_Z),
        poses(*model.SOCKET_RESET, model.SOCKET_REST_Z),
    )
    in_air = poses(*model.PEG_RESET, 0.12), poses(*model.SOCKET_RESET, 0.1)
    starts = [
        jax.jit(jax.vmap(make))(*where)
        for make, where in ((kinematics.at_home, on_table), (kinematics.grasped, in_air))
    ]
    qpos, target = (np.concatenate(pair) for pair in zip(*starts, strict=True))
    history = run_in_c(physics, qpos.astype(np.float64), target, 250)
    for world in range(worlds):
        assert_inserted(physics, history[-1, world])
        assert_inserted(physics, history[99, worlds + world])
