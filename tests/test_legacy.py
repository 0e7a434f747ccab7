"""The PyBullet environments: contract, physics, rewards and scripted baselines."""

# ruff: noqa: E402  what may be missing is asked for first

import builtins
import functools
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pybullet")
gym = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env
from scipy.optimize import minimize

import envs_legacy  # noqa: F401  registers the environments
from envs_legacy import kuka, scripted, structures
from envs_legacy.bullet import pybullet
from envs_legacy.kuka import VARIANTS, KukaPickPlace
from envs_legacy.scripted import KukaExpert, episode, policy_of
from envs_legacy.structures import StructureCrush, StructureHeight
from jaxrl.bridge.gym_in import gym_class
from jaxrl.errors import UserError
from jaxrl.evaluation import Actor

STEPS = {
    "KukaPickPlace-v0": 200,
    "KukaPickPlaceGuide-v0": 300,
    "KukaPickPlaceOriginal-v0": 1000,
    "KukaPickPlaceGuideOriginal-v0": 200,
    "StructureHeight-v0": 1000,
    "StructureCrush-v0": 3000,
}
THREE = [
    "KukaPickPlace-v0",
    "StructureHeight-v0",
    "StructureCrush-v0",
]
# Robots far from each other, but for sphere 0 on tip 0 (bar 0 of robot 0 points along x).
APART = np.array([[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0], [-0.8, 2.9], [2.9, 0.0]])
TOUCHING = np.array([*APART[:4], [-2.0 + 0.5 + 0.13, -2.0], APART[5]])


@pytest.fixture
def made():
    """A function that makes an environment and closes it after the test."""
    envs = []

    def make(what, **settings):
        envs.append(gym.make(what, **settings) if isinstance(what, str) else what(**settings))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def rollout(env, steps, seed=0):
    """Observations [steps + 1, n] and rewards [steps] under random actions of a seed."""
    random = np.random.default_rng(seed)
    seen, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        action = random.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, *_ = env.step(action)
        seen.append(observation)
        rewards.append(reward)
    return np.array(seen), np.array(rewards)


# -- the contract ---------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_environments_keep_gymnasiums_contract(made, name):
    env = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(wrapped|spec|render).*")
        check_env(env.unwrapped, skip_render_check=True)
    assert np.isfinite(env.observation_space.low).all()
    assert np.isfinite(env.observation_space.high).all()


@pytest.mark.parametrize("name", STEPS)
def test_time_limits_truncate(made, name):
    env = made(name)
    assert env.spec.max_episode_steps == STEPS[name] == env.unwrapped.episode_steps


@pytest.mark.parametrize("name", ["KukaPickPlaceGuideOriginal-v0", "StructureHeight-v0"])
def test_the_last_step_is_truncated_not_terminated(made, name):
    settings = {"episode_steps": 20} if "Structure" in name else {}
    env = made(name, **settings)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    ends = [env.step(action)[2:4] for _ in range(env.unwrapped.episode_steps)]
    assert ends[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in ends[:-1])


@pytest.mark.parametrize("name", THREE)
def test_a_seed_gives_the_same_episode_again(made, name):
    one, other = made(name), made(name)
    first = rollout(one, 60)
    for again in (rollout(one, 60), rollout(other, 60)):
        for a, b in zip(first, again):
            np.testing.assert_array_equal(a, b)
    assert (rollout(one, 1, seed=1)[0][0] != first[0][0]).any()


@pytest.mark.parametrize("name", THREE)
def test_environments_side_by_side_do_not_disturb_each_other(made, name):
    alone, _ = rollout(made(name), 20)
    one, other = made(name), made(name)
    random, still = np.random.default_rng(0), np.zeros(one.action_space.shape, np.float32)
    seen = [one.reset(seed=0)[0]]
    other.reset(seed=5)
    for _ in range(20):
        action = random.uniform(-1, 1, one.action_space.shape).astype(np.float32)
        seen.append(one.step(action)[0])
        other.step(still)
    np.testing.assert_array_equal(np.array(seen), alone)


@pytest.mark.parametrize("make", [KukaPickPlace, StructureHeight, StructureCrush])
def test_closing_twice_and_going_on_is_no_harm(make):
    env = make()
    env.close()  # before there is a world
    first, _ = env.reset(seed=3)
    env.close()
    env.close()
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    env.close()


@pytest.mark.parametrize("make", [KukaPickPlace, StructureHeight])
def test_pickled_environments_make_a_world_of_their_own(make):
    env = make()
    first, _ = env.reset(seed=3)
    copy = pickle.loads(pickle.dumps(env))
    again, _ = copy.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert copy.client is not env.client
    env.close()
    copy.step(np.zeros(copy.action_space.shape))
    copy.close()


def test_environments_run_in_processes_of_their_own():
    make = functools.partial(gym.make, "envs_legacy:StructureHeight-v0")
    envs = gym.vector.AsyncVectorEnv([make] * 2, context="spawn")
    try:
        first, _ = envs.reset(seed=[3, 4])
        again, _ = envs.reset(seed=[3, 3])
        np.testing.assert_array_equal(first[0], again[1])
        envs.step(np.zeros((2, 30), np.float32))
    finally:
        envs.close()


@pytest.mark.parametrize("make", [KukaPickPlace, StructureCrush])
def test_pictures_show_something(made, make):
    env = made(make, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (env.camera.height, env.camera.width, 3)
    assert picture.std() > 5


def test_the_bridge_films_an_episode():
    task = gym_class("envs_legacy:KukaPickPlace-v0")()
    frames = task.runtime().film(Actor.of_function(lambda *_: jnp.zeros((1, 7))), None, 0, 50)
    assert frames.shape == (4, 360, 480, 3) and frames.dtype == np.uint8
    assert task.success_criterion is None
    task = gym_class("envs_legacy:KukaPickPlace-v0")(success="is_success")
    assert "within 0.05 m of the target" in task.success_criterion


def test_wrong_settings_are_told(made):
    with pytest.raises(UserError, match="variant"):
        KukaPickPlace(variant="other")
    with pytest.raises(UserError, match="render_mode"):
        StructureHeight(render_mode="ansi")
    with pytest.raises(UserError, match="episode_steps"):
        StructureHeight(episode_steps=0)
    with pytest.raises(UserError, match="build_steps"):
        StructureCrush(build_steps=3000)
    with pytest.raises(UserError, match="press_start"):
        StructureCrush(press_start=0.1)


def test_without_pybullet_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **settings):
        if name == "pybullet":
            raise ImportError(name)
        return real(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    pybullet.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'jaxrl\[pybullet\]'"):
        gym.make("StructureHeight-v0")


# -- Kuka -----------------------------------------------------------------------------


def hand_at(env, angles):
    for joint, angle in enumerate(angles):
        env.client.resetJointState(env.arm, joint, angle)
    return env.hand()


def least_distance(env, travel):
    """Least distance of the hand to the cube's start with no joint more than `travel` off home."""
    cube = np.array(env.numbers.cube)
    box = [(angle - travel, angle + travel) for angle in kuka.HOME]
    starts = [kuka.HOME + travel * np.array(s) for s in ([0, 1, 0, 1, 0, 1, 0], [0] * 7)]
    ends = [
        minimize(lambda q: np.linalg.norm(hand_at(env, q) - cube), start, bounds=box).fun
        for start in starts
    ]
    return min(ends)


def test_the_published_arm_starts_where_it_should(made):
    env = made(KukaPickPlace, mended=False)
    env.reset(seed=0)
    np.testing.assert_allclose(env.hand(), [0.40, 0.0, 0.68], atol=2e-3)
    below = env.hand() - [0.0, 0.0, 0.3]
    face = env.client.rayTest(below, env.hand())[0][3]
    assert env.hand()[2] - face[2] == pytest.approx(kuka.FACE, abs=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_guides_own_numbers_cannot_reach_the_cube(made, variant):
    env = made(KukaPickPlace, variant=variant, mended=False)
    env.reset(seed=0)
    travel = env.numbers.speed * env.episode_steps * env.control_dt
    least = least_distance(env, min(travel, np.pi))
    if variant == "guide":
        assert travel == pytest.approx(0.4167, abs=1e-3)
        assert least > 5 * env.numbers.attach_radius
        # Nor could it touch: the flange meets the cube's top first.
        assert env.numbers.attach_radius < kuka.FACE + kuka.CUBE_EDGE / 2
    else:
        assert least < env.numbers.attach_radius


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mended_task_is_solved_by_a_script(made, variant):
    env = made("KukaPickPlace" + ("Guide" if variant == "guide" else "") + "-v0")
    ends = [episode(env, KukaExpert(env.unwrapped), seed) for seed in range(5)]
    assert [end["is_success"] for end in ends] == [1.0] * 5
    assert max(end["distance"] for end in ends) <= kuka.MENDED_SUCCESS
    zero = episode(env, policy_of(env, "zero"), 0)
    assert zero["is_success"] == 0.0
    assert zero["return"] < 0 < min(end["return"] for end in ends)


def test_cube_and_target_are_drawn_apart_and_seen(made):
    env = made(KukaPickPlace)
    for seed in range(50):
        observation, _ = env.reset(seed=seed)
        cube, target = observation[17:20], observation[23:26]
        assert np.linalg.norm((cube - target)[:2]) >= kuka.APART - 1e-6
        np.testing.assert_allclose(cube, env.cube_place(), atol=1e-6)
        np.testing.assert_allclose(target, env.target, atol=1e-6)
        np.testing.assert_allclose(observation[26:29], cube - observation[14:17], atol=1e-6)
        np.testing.assert_allclose(observation[29:32], target - cube, atol=1e-6)


def test_the_cube_sticks_within_the_radius_only_and_then_follows(made):
    env = made(KukaPickPlace, variant="guide")
    still = np.zeros(7)
    env.reset(seed=0)
    hand = env.hand()
    outside = hand - [0, 0, env.numbers.attach_radius + 0.005]
    env.reset(seed=0, options={"cube": outside, "target": [0.5, 0.0, 0.1]})
    assert env.step(still)[4]["attached"] is False

    inside = hand - [0, 0, env.numbers.attach_radius - 0.012]  # it falls 7 mm meanwhile
    env.reset(seed=0, options={"cube": inside, "target": [0.5, 0.0, 0.1]})
    observation, reward, terminated, _, info = env.step(still)
    assert info["attached"] and observation[-1] == 1.0
    assert not terminated and reward == pytest.approx(kuka.GRASPED, abs=0.3)
    gap = env.cube_place() - env.hand()
    for _ in range(60):
        env.step(np.array([1.0, 0, 0, 0, 0, 0, 0]))
    assert np.linalg.norm(env.hand() - hand) > 0.3
    moved = env.cube_place() - env.hand()
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(gap), abs=2e-3)

    env.reset(seed=0)
    assert env.step(still)[4]["attached"] is False


@pytest.mark.parametrize("mended", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_success_needs_the_grasp_and_the_target(made, variant, mended):
    env = made(KukaPickPlace, variant=variant, mended=mended)
    still = np.zeros(7)
    env.reset(seed=0)
    held = env.hand() - [0, 0, env.numbers.attach_radius - 0.012]  # it falls 7 mm meanwhile
    lying = np.array([0.6, 0.1, 0.05])
    env.reset(seed=0, options={"cube": lying, "target": lying})
    _, _, terminated, _, info = env.step(still)
    assert info["distance"] < 0.01 and not info["is_success"] and not terminated
    near, far = ([env.success_radius * x, 0, 0] for x in (0.7, 1.3))
    env.reset(seed=0, options={"cube": held, "target": held + far})
    assert not env.step(still)[4]["is_success"]
    env.reset(seed=0, options={"cube": held, "target": held + near})
    _, reward, terminated, truncated, info = env.step(still)
    assert info["is_success"] and terminated and not truncated
    bonus = 15 if mended else {"guide": 150, "final": 600}[variant]
    assert reward == pytest.approx(bonus, abs=0.5)


def test_the_published_final_task_is_a_reach(made):
    env = made(KukaPickPlace, mended=False)
    _, info = env.reset(seed=0)
    assert info["distance"] == pytest.approx(env.success_radius)
    for _ in range(60):
        *_, info = env.step(np.zeros(7))
    assert info["distance"] == pytest.approx(env.success_radius, abs=1e-3)  # it lies at rest
    expert, info = KukaExpert(env), {"attached": False}
    while not info["attached"]:
        _, _, terminated, _, info = env.step(expert(np.empty(0)))
    assert terminated and info["is_success"]  # by the grasp alone
    one, _ = env.reset(seed=1)
    two, _ = env.reset(seed=2)
    np.testing.assert_array_equal(one, two)  # a fixed start


# -- structures -----------------------------------------------------------------------


def still(env):
    return np.zeros(env.action_space.shape)


def test_bodies_have_the_published_masses_and_sizes(made):
    env = made(StructureHeight)
    env.reset(seed=0)
    robot, client = env.robots[0], env.client
    assert [client.getDynamicsInfo(robot, link)[0] for link in (-1, 0, 1)] == [0.1, 0.5, 0.5]
    assert client.getDynamicsInfo(env.spheres[0], -1)[0] == 1.0
    tips = env.tips().reshape(4, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(tips[:, 0] - tips[:, 1], axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(env.heights(), [0.025] * 4 + [0.167] * 2, atol=1e-6)


def test_robots_start_apart_and_at_rest(made):
    env = made(StructureHeight)
    for seed in range(20):
        env.reset(seed=seed)
        places = np.array(
            [env.client.getBasePositionAndOrientation(b)[0] for b in env.robots + env.spheres]
        )[:, :2]
        assert np.linalg.norm(places, axis=1).max() <= structures.SPAWN_RADIUS
        gaps = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(6)
        assert gaps.min() >= structures.SPAWN_APART
        for _ in range(3):
            *_, info = env.step(still(env))
        assert info["connections"] == 0
        assert env.heights().max() == pytest.approx(structures.SPHERE_RADIUS, abs=2e-3)


def test_observation_parts_lie_where_the_docstring_says(made):
    env = made(StructureCrush)
    observation, _ = env.reset(seed=0, options={"places": TOUCHING, "yaws": np.zeros(6)})
    assert observation.shape == (120,)
    np.testing.assert_allclose(observation[:7], [-2, -2, 0.025, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(observation[76:79], [*TOUCHING[4], 0.167], atol=1e-6)
    assert not observation[102:118].any()
    assert observation[118] == 1.0 and observation[119] == 5.0
    action = still(env)
    action[1] = 0.3  # bar 0 of robot 0, about y
    for _ in range(60):
        observation, *_ = env.step(action)
    np.testing.assert_allclose(observation[13:19], [0, 0.3 * np.pi / 2, 0, 0, 0, 0], atol=0.02)
    assert observation[102] == 1.0 and observation[103:118].sum() == 0.0
    assert observation[118] == pytest.approx(1 - 60 / 3000)


def test_connections_form_within_20_cm_and_break_beyond_50(made):
    env = made(StructureHeight)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    sphere, tip = env.spheres[0], env.tips()[0]
    put = env.client.resetBasePositionAndOrientation
    for distance, held in ((0.21, False), (0.19, True), (0.4, True), (0.49, True), (0.51, False)):
        put(sphere, (*(tip[:2] + [0.0, np.sqrt(distance**2 - 0.142**2)]), 0.167), (0, 0, 0, 1))
        env._connect()
        assert ((0, 0) in env.links) == held, distance
    put(sphere, (*(tip[:2] + [0.0, 0.3]), 0.167), (0, 0, 0, 1))
    env._connect()
    assert not env.links


def test_a_connection_holds_a_robot_by_its_tip(made):
    env = made(StructureHeight)
    env.reset(seed=0, options={"places": TOUCHING, "yaws": np.zeros(6)})
    *_, info = env.step(still(env))
    assert info["connections"] == 1
    action = still(env)
    action[24:26] = [0.0, 1.0]  # the sphere rolls off across the bar
    for _ in range(120):
        *_, info = env.step(action)
    centre = env.client.getBasePositionAndOrientation(env.spheres[0])[0]
    assert np.linalg.norm(env.tips()[0] - centre) < 0.25
    assert info["connections"] == 1
    assert np.linalg.norm(np.array(centre)[:2] - TOUCHING[4]) > 0.1


def test_a_sphere_rolls_but_cannot_leave_the_floor_by_its_own_force(made):
    env = made(StructureHeight)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action = still(env)
    action[24:27] = 1.0
    highest = 0.0
    for _ in range(90):
        env.step(action)
        place = env.client.getBasePositionAndOrientation(env.spheres[0])[0]
        highest = max(highest, place[2])
    assert np.linalg.norm(np.array(place[:2]) - APART[4]) > 2.0
    assert highest < structures.SPHERE_RADIUS + 0.005
    # Nor does it push while something else holds it up.
    env.client.resetBasePositionAndOrientation(env.spheres[0], (0, 0, 1.5), (0, 0, 0, 1))
    env.client.resetBaseVelocity(env.spheres[0], (0, 0, 0), (0, 0, 0))
    for _ in range(12):
        env.step(action)
    velocity, _ = env.client.getBaseVelocity(env.spheres[0])
    assert abs(velocity[0]) < 1e-6 and velocity[2] < -1.5


def test_a_robot_stands_up_but_cannot_jump(made):
    env = made(StructureHeight)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action = still(env)
    action[:6] = [0, 0.92, 0, 0, -0.92, 0]
    heights = [env.step(action) and env.heights()[0] for _ in range(60)]
    assert 0.45 < max(heights) < 0.56
    rate = np.diff(heights).max() / structures.CONTROL_DT
    assert rate < 1.2 * structures.JOINT_SPEED * structures.BAR_LENGTH


def test_the_height_reward_and_its_bonus(made):
    env = made(StructureHeight, episode_steps=40)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action = still(env)
    action[:6] = [0, 0.92, 0, 0, -0.92, 0]
    for step in range(40):
        _, reward, terminated, truncated, info = env.step(action)
        best = info["best_z"]
        bonus = 10 * best if step == 39 else 0.0
        assert reward == pytest.approx(0.1 * env.heights().max() + bonus)
    assert truncated and not terminated and best > 0.4
    assert not info["is_success"]
    env.goal = 0.4
    assert env._info()["is_success"]


def test_the_press_comes_down_at_5_cm_a_second(made):
    env = made(StructureCrush, build_steps=10, press_start=0.6, episode_steps=400)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action = still(env)
    action[:6] = [0, 0.92, 0, 0, -0.92, 0]
    heights, tops = [], []
    for step in range(400):
        if step == 10:  # held up by force, for the press to bear down on
            env.client.resetBasePositionAndOrientation(env.spheres[0], (0, 1, 0.3), (0, 0, 0, 1))
        _, _, terminated, *_ = env.step(action)
        heights.append(env.client.getBasePositionAndOrientation(env.press)[0][2])
        tops.append(env.heights().max())
        if terminated:
            break
    heights = np.array(heights) - structures.PRESS_HALF[2]
    np.testing.assert_allclose(heights[:10], 0.6, atol=1e-6)
    speed = -np.diff(heights[10:]) / structures.CONTROL_DT
    np.testing.assert_allclose(speed, structures.PRESS_SPEED, rtol=1e-3)
    assert (np.array(tops[20:]) < heights[20:]).all()  # nothing gets through it


def test_the_published_press_never_arrives(made):
    env = made(StructureCrush)
    left = (env.episode_steps - env.build_steps) * structures.CONTROL_DT
    assert left == pytest.approx(20.0)
    assert env.press_start - structures.PRESS_SPEED * left == pytest.approx(4.0)


def test_no_robot_outlasts_a_press_that_arrives(made):
    env = made(StructureCrush, build_steps=60, press_start=0.7, episode_steps=700)
    for seed in range(2):
        end = episode(env, policy_of(env, "scripted"), seed)
        assert end["steps"] < 700 and end["press_height"] > structures.CRUSHED - 0.01


def test_crush_is_over_when_all_are_low_under_the_press(made):
    env = made(StructureCrush, build_steps=30, episode_steps=300)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    for step in range(31):
        _, reward, terminated, truncated, info = env.step(still(env))
        assert terminated == (step == 30) and not truncated
    assert info["survival_seconds"] == 0.0
    assert reward == pytest.approx(1 + 0.5 * env.heights().mean())

    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action, steps = still(env), 0
    while True:
        action[:6] = [0, 0.92, 0, 0, -0.92, 0] if steps < 60 else 0.0
        _, reward, terminated, _, info = env.step(action)
        steps += 1
        if terminated:
            break
    survived = (steps - 1 - 30) / 60
    assert info["survival_seconds"] == pytest.approx(survived) and survived > 0.4
    assert reward == pytest.approx(1 + 0.5 * env.heights().mean() + 10 * survived)
    assert not info["is_success"]

    env = made(StructureCrush, build_steps=30, episode_steps=60)
    env.reset(seed=0, options={"places": APART, "yaws": np.zeros(6)})
    action[:6] = [0, 0.92, 0, 0, -0.92, 0]
    *_, truncated, info = [env.step(action) for _ in range(60)][-1]
    assert truncated and info["survival_seconds"] == 0.5 and info["is_success"]


def test_getting_up_in_turns_outlasts_doing_nothing(made):
    env = made(StructureCrush, build_steps=60, episode_steps=400)
    ends = {name: episode(env, policy_of(env, name), 0) for name in ("zero", "scripted")}
    assert ends["zero"]["survival_seconds"] == 0.0
    assert ends["scripted"]["survival_seconds"] > 1.0


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "envs_legacy.scripted", "KukaPickPlace-v0"],
        ["benchmarks/bridge.py", "--envs", "envs_legacy:KukaPickPlace-v0"],
    ],
)
def test_commands_say_in_one_line_that_pybullet_is_missing(tmp_path, command):
    (tmp_path / "pybullet.py").write_text("raise ImportError('not here')\n")
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs PyBullet: pip install 'jaxrl[pybullet]'" in done.stderr


def test_the_script_names_what_it_cannot_play():
    for arguments, said in (
        (["Nope-v0"], "Nope-v0: Environment `Nope` doesn't exist"),
        (["CartPole-v1"], "CartPoleEnv has no script; choose --policy zero or random"),
        (["KukaPickPlace-v0", "--episodes", "0"], "--episodes: expected at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            scripted.main(arguments)
