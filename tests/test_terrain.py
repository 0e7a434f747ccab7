"""Uneven ground: height fields, and the ballbot on them."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import terrain
from envs_mjx.ballbot import Ballbot, model
from envs_mjx.ballbot.controllers import linear_control, lqr_gain
from jaxrl.config import resolve
from jaxrl.envs import CurriculumConfig, Vector

UNEVEN = [kind for kind in terrain.KINDS if kind != "flat"]
FIELDS = terrain.make_fields("simplex", 0.1, 4, 0)


def slopes(heights):
    """[F, P, P] slope at the grid points (deg)."""
    gradient = np.gradient(heights, terrain.SPACING, axis=(1, 2))
    return np.degrees(np.arctan(np.hypot(*gradient)))


def test_simplex_terrain_is_like_the_originals():
    """The original's, with its noise library: mean slope 5.3 deg, 95 % below 10.5, largest 19 to
    21; the autocorrelation of its heights is 0.40 to 0.42 at 8 grid points."""
    heights = terrain.make_fields("simplex", 0.1, 8, 3).heights
    np.testing.assert_allclose(heights.min((1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(heights.max((1, 2)), 0.1, atol=1e-6)
    slope = slopes(heights)
    assert 4.5 < slope.mean() < 6.0
    assert 9.0 < np.percentile(slope, 95) < 12.0
    assert 16.0 < slope.max() < 26.0
    around = heights - heights.mean((1, 2), keepdims=True)
    assert 0.3 < (around[:, 8:] * around[:, :-8]).mean() / (around**2).mean() < 0.5


@pytest.mark.parametrize("kind", UNEVEN)
def test_terrains_differ_and_can_be_driven(kind):
    heights = terrain.make_fields(kind, 0.1, 3, 0).heights
    assert heights.shape == (3, terrain.POINTS, terrain.POINTS) and np.isfinite(heights).all()
    assert np.abs(heights[0] - heights[1]).max() > 0.01
    assert np.abs(heights[0] - terrain.make_fields(kind, 0.1, 3, 1).heights[0]).max() > 0.01
    assert 0.5 < slopes(heights).mean() < 12.0
    assert np.percentile(slopes(heights), 99) < 30.0
    if kind == "ramp":
        assert slopes(heights).std() < 0.01
    else:
        assert np.ptp(heights) < 0.4


def test_the_surface_goes_through_the_grid_points_and_on_smoothly_beyond_the_edge():
    place = lambda x, y: jnp.array([x, y]) * FIELDS.spacing  # noqa: E731
    middle = (terrain.POINTS - 1) // 2
    for x, y in ((0, 0), (17, -30), (-middle, middle)):
        height, _ = FIELDS.height(1, place(x, y))
        assert float(height) == pytest.approx(FIELDS.heights[1, middle + y, middle + x], abs=1e-7)
    # Beyond the edge lies the mirror image, for ever.
    for x in (0.3, 7.6, 40.2):
        inside, outside = (FIELDS.height(2, place(middle + s * x, 5.3)) for s in (-1, 1))
        assert float(inside[0]) == pytest.approx(float(outside[0]), abs=1e-6)
    far = FIELDS.height(2, place(middle + 2 * 2 * middle + 7.6, 5.3))[0]
    assert float(far) == pytest.approx(float(outside_of(7.6)), abs=1e-5)
    # The gradient is that of the heights, on both sides of the edge.
    for x in (3.4, middle - 0.2, middle + 0.3):
        at, step = place(x, 20.7), 1e-3 * jnp.eye(2)
        below, above = (FIELDS.height(0, at + sign * step[0])[0] for sign in (-1, 1))
        gradient = FIELDS.height(0, at)[1]
        assert float(gradient[0]) == pytest.approx(float(above - below) / 2e-3, abs=2e-3)


def outside_of(x):
    middle = (terrain.POINTS - 1) // 2
    return FIELDS.height(2, jnp.array([middle + x, 5.3]) * FIELDS.spacing)[0]


def test_a_ball_touches_the_closest_point():
    rng = np.random.default_rng(0)
    line = np.linspace(-0.06, 0.06, 241)
    height = jax.jit(jax.vmap(lambda p: FIELDS.height(0, p)[0]))
    distances = []
    for center in rng.uniform(-4, 4, (20, 2)):
        ball = jnp.append(center, FIELDS.height(0, jnp.asarray(center))[0] + model.BALL_RADIUS)
        point, normal = FIELDS.foot(0, 1.0, ball)
        near = center + np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        offsets = np.column_stack([near, height(jnp.asarray(near))]) - np.asarray(ball)
        closest = np.linalg.norm(offsets, axis=1).min()
        distances.append(float((ball - point) @ normal) - closest)
        assert float(jnp.linalg.norm(normal)) == pytest.approx(1.0, abs=1e-6)
    assert np.abs(distances).max() < 5e-5  # m


def in_a_height_field(task, states, velocity):
    """The same worlds in C MuJoCo, over the same heights as a height field: the way of one second
    [N, 3], and angles between the normals (deg) and differences of the distances (m).

    MuJoCo makes a contact with each triangle near the ball, which lie at the same point; only the
    deepest is used, since several make the ground stiffer.
    """
    floor = model.terrain_geom(terrain.POINTS, task.fields.size, np.zeros(2))
    m = mujoco.MjModel.from_xml_string(model.mjcf("no_slip", task.timestep, floor))
    foot = jax.jit(task.fields.foot)
    ways, angles, gaps = [], [], []
    for i in range(len(states.qpos)):
        field = int(states.extra.field[i])
        m.hfield_data[:] = task.fields.heights[field].ravel()
        d = mujoco.MjData(m)
        d.qpos[:], d.qvel[:] = states.qpos[i], states.qvel[i]
        for _ in range(50):
            d.ctrl[:] = velocity(jnp.asarray(d.qpos), jnp.asarray(d.qvel))
            for _ in range(task.substeps):
                mujoco.mj_fwdPosition(m, d)
                deepest = int(np.argmin(d.contact.dist)) if d.ncon else 0
                for j in range(d.ncon):
                    d.contact[j].exclude = int(j != deepest)
                mujoco.mj_makeConstraint(m, d)
                mujoco.mj_projectConstraint(m, d)
                mujoco.mj_fwdVelocity(m, d)
                mujoco.mj_fwdActuation(m, d)
                mujoco.mj_fwdAcceleration(m, d)
                mujoco.mj_fwdConstraint(m, d)
                if d.ncon:
                    contact = d.contact[deepest]
                    ball = jnp.asarray(d.qpos[:3], jnp.float32)
                    point, normal = foot(field, 1.0, ball)
                    cosine = abs(float(contact.frame[:3] @ np.asarray(normal)))
                    angles.append(np.degrees(np.arccos(min(cosine, 1.0))))
                    gap = float((ball - point) @ normal) - model.BALL_RADIUS
                    gaps.append(gap - contact.dist)
                mujoco.mj_Euler(m, d)
        ways.append(d.qpos[:3] - np.asarray(states.qpos[i, :3]))
    return np.stack(ways), np.array(angles), np.array(gaps)


def test_contact_is_that_of_a_height_field_in_c():
    """MuJoCo's height field has flat triangles of 34 mm, ours is smooth: hence the tolerances."""
    task = Ballbot(terrain="simplex", terrain_count=4)
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(3), 8)).physics
    gain = lqr_gain(task.timestep, task.substeps) * np.array([0, 0, 1, 1, 1, 1, 1, 1, 1])
    control = jax.jit(
        lambda q, v: jnp.clip(
            linear_control(gain, q, v, position=q[:2], velocity=jnp.array([0.3, 0.2])), -10, 10
        )
    )

    @jax.jit
    def second(state):
        step = lambda s, _: (task.physics.step(s, control(s.qpos, s.qvel)), None)  # noqa: E731
        return jax.lax.scan(step, state, length=50)[0]

    after = jax.vmap(second)(states)
    ours = np.asarray(after.qpos[:, :3] - states.qpos[:, :3])
    theirs, angles, gaps = in_a_height_field(task, states, control)
    assert np.median(np.linalg.norm(theirs, axis=1)) > 0.15
    assert np.median(np.abs(gaps)) < 2e-4 and np.percentile(np.abs(gaps), 99) < 1e-3
    assert np.median(angles) < 0.8 and np.percentile(angles, 99) < 3.0
    assert np.median(np.linalg.norm(ours - theirs, axis=1)) < 6e-3


@pytest.mark.parametrize("drive", model.DRIVES)
def test_all_engines_agree_on_uneven_ground(drive):
    ends = []
    for engine in ("mjx", "c"):
        task = Ballbot(drive=drive, terrain="simplex", terrain_count=2, engine=engine)
        state = task.reset(jax.random.key(1))
        act, step = task.baselines()["lqr"], jax.jit(task.step)
        for _ in range(25):
            state = step(state, act(state))
        ends.append(np.asarray(state.physics.qpos))
        assert abs(float(state.physics.mocap_quat[0, 0])) < 1 - 1e-6  # the plane is inclined
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-3 if drive == "omniwheel" else 2e-4)


@pytest.mark.parametrize("drive", model.DRIVES)
def test_episodes_start_at_rest_on_the_ground(drive):
    task = Ballbot(drive=drive, terrain="hills", terrain_count=2)
    flat = Ballbot(drive=drive)
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 16)).physics
    ball, radius = task._free_bodies[-1], model.BALL_RADIUS - model.GROUND_SINK
    for i in range(16):
        center = states.qpos[i, ball]
        point, normal = task.fields.foot(states.extra.field[i], 1.0, center)
        assert float((center - point) @ normal) == pytest.approx(radius, abs=1e-4)
    assert np.ptp(states.qpos[:, 0]) > 3 and set(np.asarray(states.extra.field)) == {0, 1}
    rest = flat.physics.rest[2] - flat.physics.rest[ball][2]
    np.testing.assert_allclose(states.qpos[:, 2] - states.qpos[:, ball][:, 2], rest, atol=1e-6)


def test_the_curriculum_raises_the_terrain():
    config = CurriculumConfig(start=(0.25,))
    task = Ballbot(terrain="simplex", terrain_count=2, curriculum=config)
    vector = Vector(task, 4, training=True)
    state = vector.init(jax.random.key(0))
    np.testing.assert_allclose(state.worlds.physics.extra.scale, 0.25)
    full = Vector(task, 4).init(jax.random.key(0))
    np.testing.assert_allclose(full.worlds.physics.extra.scale, 1.0)
    # Full height from the start is no curriculum: nothing is counted or logged.
    assert Vector(Ballbot(), 4, training=True).curriculum is None


def test_evaluations_are_on_other_terrains():
    settings = {"env": {"name": "ballbot", "terrain": "hills", "terrain_count": 2}}
    config = resolve(settings, platform="none")
    assert (config.env.terrain_seed, config.eval_env.terrain_seed) == (0, 1)
    assert np.abs(config.env.fields.heights - config.eval_env.fields.heights).max() > 0.01


def test_flat_ground_has_no_terrain():
    task = Ballbot()
    assert task.fields is None
    state = task.reset(jax.random.key(0)).physics
    assert state.extra is None and state.mocap_pos is None
