"""Cameras: rays against shapes and terrain, compared with MuJoCo's; slow sensors."""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx import terrain
from envs_mjx.aloha_insertion import AlohaInsertion
from envs_mjx.ballbot import Ballbot, model
from envs_mjx.ballbot.sight import CAMERAS, FAR, depth_images
from envs_mjx.franka_reach import FrankaReach
from envs_mjx.physics import NamedModel
from envs_mjx.scenery import with_inset
from envs_mjx.vision import SKY, Camera, Scene
from jaxrl.envs import Vector, WrapConfig, Wrapped

SHAPES = {"sphere": 1, "capsule": 2, "cylinder": 2, "box": 3, "ellipsoid": 3}
SEEING = Ballbot(sight="depth", terrain="simplex", terrain_count=2, camera_rate=10.0)


def in_c(m, d, origin, rays, groups=None):
    """Depth [R] of the first hits by MuJoCo itself; infinite where there is none."""
    lengths = np.linalg.norm(rays, axis=0)
    directions = (rays / lengths).T.astype(np.float64).ravel()
    count = len(lengths)
    geom, distance = np.zeros(count, np.int32), np.zeros(count)
    mujoco.mj_multiRay(
        m,
        d,
        np.asarray(origin, float),
        directions,
        groups,
        1,
        -1,
        geom,
        distance,
        None,
        count,
        50.0,
    )
    return np.where(geom >= 0, distance / lengths, np.inf)


def test_shapes_are_seen_where_mujoco_sees_them():
    rng = np.random.default_rng(0)

    def row(low, high, count):
        return " ".join(f"{x:.4f}" for x in rng.uniform(low, high, count))

    geoms = "".join(
        f'<geom type="{kind}" size="{row(0.05, 0.15, count)}" pos="{row(-0.6, 0.6, 3)}" '
        f'quat="{row(-1, 1, 4)}"/>'
        for kind, count in SHAPES.items()
        for _ in range(4)
    )
    m = mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><geom type="plane" size="2 1 1" pos="0 0 -.7"/>'
        f'<geom type="box" size=".1 .1 .1" pos="0 .4 -.6" rgba="0 0 0 0"/>'
        f'<body name="b" pos=".1 0 0"><freejoint/>{geoms}</body></worldbody></mujoco>'
    )
    d = mujoco.MjData(m)
    d.qpos[:] = [0.1, 0.2, 0.1, 0.9, 0.1, 0.3, -0.2]
    mujoco.mj_forward(m, d)
    scene, groups = Scene(m, frames=["b"]), np.ones(6, np.uint8)
    m.geom_group[1], groups[5] = 5, 0  # the transparent box, which nobody sees
    cast = jax.jit(scene.cast)
    for camera in (
        Camera((1.5, 0.3, 0.6), (-1, -0.2, -0.5), (0, 0, 1), 60.0, 48, 64),
        Camera((0.1, -0.2, 1.4), (0, 0.05, -1), (0, 1, 0), 50.0, 48, 48),
    ):
        pose = jnp.asarray(d.xpos[1:]), jnp.asarray(d.xmat[1:].reshape(1, 3, 3))
        depth, normal, _ = cast(jnp.asarray(camera.position), jnp.asarray(camera.rays), *pose)
        expected = in_c(m, d, camera.position, camera.rays, groups)
        hit = np.isfinite(expected)
        assert 0.3 < hit.mean() < 1.0
        assert (np.isfinite(depth) != hit).mean() < 1e-3  # rays along an edge
        both = hit & np.isfinite(depth)
        assert np.percentile(np.abs(depth - expected)[both], 99.9) < 1e-4
        # Normals have length 1 and face the camera.
        assert np.abs(np.linalg.norm(normal[:, both], axis=0) - 1).max() < 1e-4
        assert ((np.asarray(normal) * camera.rays).sum(0)[both] < 1e-5).all()


def test_a_picture_has_colours_light_and_shadows():
    """A red ball over a white floor: its top is brighter than its side, its shadow is dark."""
    m = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom type="plane" size="9 9 1" rgba="1 1 1 1"/>'
        '<geom type="sphere" size=".2" pos="0 0 .5" rgba="1 0 0 1"/></worldbody></mujoco>'
    )
    scene = Scene(m)
    camera = Camera((0, -2.0, 0.8), (0, 1, -0.2), (0, 0, 1), 60.0, 60, 80)
    plain = np.asarray(jax.jit(lambda: scene.picture(camera))())
    shaded = np.asarray(jax.jit(lambda: scene.picture(camera, shadows=True))())
    assert plain.shape == (60, 80, 3) and plain.min() >= 0 and plain.max() <= 1
    np.testing.assert_allclose(plain[0, 0], SKY, atol=1e-6)
    ball = (plain[..., 0] > 0.1) & (plain[..., 1] < 1e-6)
    rows, columns = np.nonzero(ball)
    assert 0.01 < ball.mean() < 0.1 and abs(columns.mean() - 39.5) < 1
    assert plain[rows.min(), 40, 0] > 1.3 * plain[rows.max(), 40, 0]
    floor = (plain[..., 0] > 0.9) & (plain.min(-1) > 0.9)
    dark = floor & (shaded[..., 0] < 0.5)
    assert 0.005 < dark.mean() < 0.1 and (shaded <= plain + 1e-6).all()
    # The shadow lies away from the sun, which shines from the right and from the camera's side.
    assert np.nonzero(dark)[1].mean() < 39.5


@pytest.mark.parametrize("size", [16, 64, 400])
def test_images_of_any_size_fit_into_the_corner(size):
    task = FrankaReach(sight="rgb", image_size=size)
    states = jax.tree.map(lambda x: x[None], jax.jit(task.reset)(jax.random.key(0)).physics)
    frames = task.with_views(np.full((1, 480, 640, 3), 7, np.uint8), states, 1)
    assert frames.shape == (1, 480, 640, 3) and (frames != 7).mean() > 0.003


def test_images_are_shown_in_a_corner():
    frames, images = np.zeros((2, 40, 60, 3), np.uint8), np.full((2, 8, 10), 0.5)
    shown = with_inset(frames, images)
    assert shown.shape == frames.shape and frames.max() == 0
    assert (shown[:, 8:24, 8:28] == 128).all() and (shown[:, 6:8, 6:30] == 255).all()
    assert shown[:, 26:].max() == 0 and shown[:, :, 30:].max() == 0


def test_a_mesh_is_refused():
    m = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>'
        '<worldbody><geom name="part" type="mesh" mesh="m"/></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match="geom 'part' is no primitive shape"):
        Scene(m)


def height_field(heights, low=-0.8, size=terrain.SIDE / 2):
    """MJCF of a height field, and its data."""
    count = heights.shape[-1]
    asset = (
        f'<asset><hfield name="ground" nrow="{count}" ncol="{count}" '
        f'size="{size} {size} 2 1"/></asset>'
    )
    geom = f'<geom name="floor" type="hfield" hfield="ground" pos="0 0 {low}"/>'
    return asset, geom, (heights.ravel() - low) / 2


@pytest.mark.parametrize("kind", [kind for kind in terrain.KINDS if kind != "flat"])
def test_the_ground_is_seen_where_mujoco_sees_it(kind):
    fields = terrain.make_fields(kind, 0.1, 2, 0)
    asset, geom, _ = height_field(fields.heights[0])
    m = mujoco.MjModel.from_xml_string(f"<mujoco>{asset}<worldbody>{geom}</worldbody></mujoco>")
    rng, errors = np.random.default_rng(0), []
    cast = jax.jit(lambda i, origin, rays: fields.depth(i, 1.0, origin, rays, FAR))
    for i in (0, 1):
        m.hfield_data[:] = height_field(fields.heights[i])[2]
        d = mujoco.MjData(m)
        mujoco.mj_forward(m, d)
        for _ in range(2):
            place, turn, tilt = (
                rng.uniform(-3, 3, 2),
                rng.uniform(0, 6.28),
                rng.uniform(-0.2, 0.2, 2),
            )
            quat, matrix = np.zeros(4), np.zeros(9)
            mujoco.mju_euler2Quat(quat, np.array([*tilt, turn]), "XYZ")
            mujoco.mju_quat2Mat(matrix, quat)
            rays = matrix.reshape(3, 3) @ CAMERAS[0].rays
            origin = np.append(place, float(fields.height(i, jnp.asarray(place))[0]) + 0.18)
            expected = np.minimum(in_c(m, d, origin, rays), FAR)
            errors.append(np.abs(cast(i, jnp.asarray(origin), jnp.asarray(rays)) - expected))
    assert np.percentile(errors, 99.9) < 1e-3  # m
    assert np.mean(np.concatenate(errors)) < 1e-3


@pytest.mark.parametrize("drive", model.DRIVES)
def test_the_robots_images_are_those_of_mujoco(drive):
    """Ground, ball and wheels; no other part of the robot is in the cameras' view."""
    task = dataclasses.replace(SEEING, drive=drive)
    state = task.reset(jax.random.key(5)).physics
    images = jax.jit(lambda s: depth_images(drive, task.timestep, task.fields, s))(state)
    asset, geom, data = height_field(task.fields.heights[int(state.extra.field)])
    xml = model.mjcf(drive, task.timestep, geom).replace("<worldbody>", f"{asset}<worldbody>", 1)
    m = NamedModel(xml, substeps=1).model
    m.hfield_data[:] = data
    seen = {m.geom(name).id for name in ("floor", "ball", *model.WHEEL_GEOMS)}
    inside = {g for g in range(m.ngeom) if m.geom_type[g] == mujoco.mjtGeom.mjGEOM_BOX}
    for g in range(m.ngeom):  # the cameras are inside the heads, which are boxes
        m.geom_group[g] = 5 if g in inside - seen else 0
    d = mujoco.MjData(m)
    d.qpos[:] = state.qpos
    mujoco.mj_forward(m, d)
    base = d.body("base")
    for i, camera in enumerate(CAMERAS):
        rotation = base.xmat.reshape(3, 3)
        origin = base.xpos + rotation @ camera.position
        groups = np.array([1, 1, 1, 1, 1, 0], np.uint8)
        expected = np.minimum(in_c(m, d, origin, rotation @ camera.rays, groups), FAR)
        error = np.abs(np.asarray(images[i]).ravel() - expected)
        # In the omniwheel model the ball sits up to a millimetre elsewhere against the wheels.
        assert np.percentile(error, 99 if drive == "omniwheel" else 99.9) < 1e-3
    assert np.asarray(task.reset(jax.random.key(5)).obs["depth"]).max() > 100


@pytest.mark.parametrize("task", [FrankaReach(sight="rgb"), AlohaInsertion(sight="rgb")])
def test_arms_are_seen_where_mujoco_sees_them(task):
    act, step = task.baselines()["scripted"], jax.jit(task.step)
    state = jax.jit(task.reset)(jax.random.key(0))
    for _ in range(12):
        state = step(state, act(state))
    m, physics = task.physics.model, state.physics
    d = mujoco.MjData(m)
    d.qpos[:] = physics.qpos
    if m.nmocap:
        d.mocap_pos[:] = physics.mocap_pos
    mujoco.mj_forward(m, d)
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    poses = [task.physics.body_pose(physics, name) for name in task.scene.shapes.frames]
    poses = [jnp.stack(x) for x in zip(*poses, strict=True)]
    for camera in task.CAMERAS:
        origin, rays = jnp.asarray(camera.position), jnp.asarray(camera.rays)
        depth, _, color = task.scene.cast(origin, rays, *poses)
        expected = in_c(m, d, camera.position, camera.rays, groups)
        near = np.isclose(depth, expected, atol=1e-3, rtol=1e-4)  # also where both are infinite
        assert near.mean() > 0.999
        picture = (color * 255).round().astype(np.uint8)
        assert len(np.unique(np.asarray(picture), axis=1).T) >= 4


@pytest.mark.parametrize("privileged", [False, True])
def test_a_policy_sees_the_target_in_images_alone(privileged):
    task = FrankaReach(sight="rgb", privileged=privileged)
    assert not any("target" in name for name in task.observation_spec["body"].names)
    state = jax.jit(task.reset)(jax.random.key(0))
    assert set(state.obs) == {"body", "image"} | ({"state"} if privileged else set())
    target = state.info.target + jnp.array([0.0, 0.0, 0.1])
    info, physics = state.info.replace(target=target), state.physics
    poses = physics.poses | {"xpos": physics.poses["xpos"].at[0].add(jnp.array([0.0, 0.0, 0.1]))}
    assert task.scene.shapes.frames[0] == "target"
    moved = jax.jit(task.sense)(state.replace(physics=physics.replace(poses=poses), info=info))
    differs = np.asarray(moved.obs["image"] != state.obs["image"])
    for camera in (differs[..., :3], differs[..., 3:]):  # each loses the old place and has the new
        assert 4 < camera.any(axis=2).sum() < 64
    np.testing.assert_array_equal(moved.obs["body"], state.obs["body"])
    if privileged:
        grip, _ = task.physics.site_pose(physics, "grip")
        expected = np.concatenate([state.info.target, state.info.target - grip])
        np.testing.assert_allclose(state.obs["state"], expected, atol=1e-6)


def test_images_come_at_the_cameras_rate():
    """All worlds get an image in the same steps, and new episodes one at their start."""
    task = dataclasses.replace(SEEING, episode_seconds=0.24, sight="depth")
    assert (task.sense_every, task.episode_length) == (5, 12)
    vector = Vector(task, 3)
    state = jax.jit(lambda: vector.init(jax.random.key(0), stagger=False))()
    step = jax.jit(vector.step)
    ages, same = [], []
    for _ in range(14):
        new, _ = step(state, jnp.zeros((3, 3)))
        ages.append(np.asarray(new.obs["body"][:, -1]))
        same.append((new.obs["depth"] == state.obs["depth"]).all(axis=(1, 2, 3)))
        state = new
    ages = np.round(np.array(ages) / task.control_dt).astype(int)
    np.testing.assert_array_equal(ages[:, 0], [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 0, 1, 2])
    np.testing.assert_array_equal(ages[:, 0], ages[:, 2])
    np.testing.assert_array_equal(np.array(same)[:, 1], ages[:, 1] != 0)


def test_no_image_is_made_in_between():
    """The program has a real branch: rendering is in one of a conditional's two computations."""
    vector = Vector(SEEING, 2)
    state = jax.eval_shape(lambda: vector.init(jax.random.key(0)))
    program = jax.make_jaxpr(vector.step)(state, jnp.zeros((2, 3)))
    branches = [e.params["branches"] for e in program.eqns if e.primitive.name == "cond"]
    sizes = [sorted(len(b.jaxpr.eqns) for b in pair) for pair in branches]
    assert any(small == 0 and large > 0 for small, large in sizes)


def test_a_wrapped_task_sees_too():
    wrapped = Wrapped(SEEING, WrapConfig(history=2, observation_noise=(0.1,)))
    assert wrapped.sense_every == SEEING.sense_every
    state = wrapped.reset(jax.random.key(0))
    moved = jax.jit(wrapped.step)(state, jnp.ones(3))
    seen = jax.jit(wrapped.sense)(moved)
    assert seen.obs["depth"].shape == (64, 64, 4)
    np.testing.assert_array_equal(seen.obs["depth"][..., :2], moved.obs["depth"][..., :2])
    assert float(seen.info.obs["body"][-1]) == 0.0 < float(moved.info.obs["body"][-1])
    clean = jax.jit(SEEING.sense)(wrapped.inner_state(moved)).obs
    np.testing.assert_array_equal(seen.obs["depth"][..., 2:], clean["depth"])


def test_a_gymnasium_user_sees_too():
    env = gymnasium.make("jaxrl/Ballbot-v0", sight="depth", camera_rate=25.0)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    ages = [env.step(np.zeros(3, np.float32))[0]["body"][-1] for _ in range(4)]
    np.testing.assert_allclose(ages, [0.02, 0.0, 0.02, 0.0], atol=1e-6)
