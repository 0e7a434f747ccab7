"""The model of the two arms: kinematics, masses, MJX against C MuJoCo."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import physics as ph
from envs_mjx.aloha_insertion import AlohaInsertion, model
from tests.arms import play_in_c


@pytest.fixture(scope="module")
def physics():
    return ph.MJXPhysics(model.mjcf(), substeps=5)


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
    wanted = gripper_by_hand(side, joints)
    np.testing.assert_allclose(data.site(f"{side}/gripper").xpos, wanted, atol=1e-9)


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
    c = ph.CSimulation(physics, worlds)
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


@pytest.mark.parametrize(("level", "steps"), [(1.0, 250), (0.0, 100)])
def test_the_expert_inserts_in_c_from_home_and_from_grasps(physics, level, steps):
    qpos, _ = play_in_c(AlohaInsertion(near_starts=1.0), 6, steps, level=level)
    for world in qpos:
        assert_inserted(physics, world)


def test_stages_need_grips_and_lift():
    """A peg put at the pin is worth nothing while nobody holds it, and all when both do."""
    task = AlohaInsertion(near_starts=1.0, shaped=False)
    step = jax.jit(task.step)
    states = jax.jit(jax.vmap(task.reset, in_axes=(0, None)))(
        jax.random.split(jax.random.key(0), 16), jnp.zeros(1)
    )
    things = {name: task.physics.qpos_slice(name) for name in ("socket", "peg")}
    heights = states.physics.qpos[:, things["peg"]][:, 2]
    state = jax.tree.map(lambda x: x[int(jnp.argmax(heights))], states)  # facing each other
    assert heights.max() > 0.1
    closed = jnp.zeros(14).at[jnp.array([6, 13])].set(-1.0)
    for _ in range(5):
        state = step(state, closed)
    assert state.metrics["final/stage"] == 2 and state.reward == 2
    qpos = state.physics.qpos
    where = qpos[things["socket"]][:3] + jnp.array([model.FULL_DISTANCE - 0.001, 0.0, 0.0])
    joined = qpos.at[things["peg"]].set(jnp.concatenate([where, qpos[things["socket"]][3:]]))
    state = step(state.replace(physics=state.physics.replace(qpos=joined)), closed)
    assert state.metrics["final/stage"] == 0  # at the pin, but out of the right gripper
    assert state.metrics["success"] == 0
