"""jaxrl's tasks as Gymnasium environments, one world and many."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import jaxrl
from jaxrl import envs
from jaxrl.errors import UserError
from jaxrl.trainer import Trainer
from tests import toys

envs.register("fragile", toys.Fragile)
envs.register("chooser", toys.Chooser)
gymnasium.register(
    "jaxrl/Chooser-v0",
    entry_point="jaxrl.bridge.gym_out:GymEnv",
    vector_entry_point="jaxrl.bridge.gym_out:GymVectorEnv",
    kwargs={"task": "chooser"},
)


def many(num_envs=4, task="countdown", **settings):
    from jaxrl.bridge.gym_out import GymVectorEnv

    return GymVectorEnv(task, num_envs, **settings)


def still(env):
    return np.zeros(env.action_space.shape, np.float32)


def test_every_installed_task_is_registered():
    names = set(gymnasium.registry)
    assert names >= {
        "jaxrl/Ballbot-v0",
        "jaxrl/Pendulum-v0",
        "jaxrl/FrankaReach-v0",
        "jaxrl/KukaPickPlace-v0",
        "jaxrl/AlohaInsertion-v0",
    }
    assert jaxrl.__version__


def test_gymnasiums_checker_passes():
    env = gymnasium.make("jaxrl/Pendulum-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(spec|render|infinity).*")
        check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines_checker_passes():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make("jaxrl/Pendulum-v0"))


def test_a_window_shows_the_picture(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make("jaxrl/Ballbot-v0", render_mode="human")
    env.reset(seed=0)
    shown = pygame.surfarray.array3d(pygame.display.get_surface())
    assert shown.shape == (640, 480, 3) and shown.std() > 10
    env.close()
    assert not pygame.display.get_init()


def test_settings_reach_the_task_and_wrong_ones_are_named():
    env = gymnasium.make("jaxrl/Ballbot-v0", max_speed=0.3, wrap={"history": 2})
    assert env.unwrapped.task.unwrapped.max_speed == 0.3
    assert env.observation_space.shape == (34,)
    with pytest.raises(UserError, match="unknown setting max_sped; did you mean max_speed"):
        gymnasium.make("jaxrl/Ballbot-v0", max_sped=0.3)


def test_one_world_ends_as_the_task_says():
    from jaxrl.bridge.gym_out import GymEnv

    env = GymEnv("countdown", episode_length=3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(still(env))
    env.reset(seed=0)
    ends = [env.step(still(env))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env = GymEnv("countdown", ends_at=2)
    env.reset(seed=0)
    env.step(still(env))
    _, reward, terminated, truncated, info = env.step(still(env))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_seeds_repeat_and_starts_differ():
    from jaxrl.bridge.gym_out import GymEnv

    env = GymEnv("countdown")
    first = [env.reset(seed=3)[0], env.reset()[0]]
    again = [env.reset(seed=3)[0], env.reset()[0]]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    vector = many()
    one, two = vector.reset(seed=3)[0], vector.reset(seed=3)[0]
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one[:, 0])) == 4


def test_all_bits_of_a_seed_count():
    from jaxrl.bridge.gym_out import GymEnv

    seeds = [1, 2**32 + 1, 2**33 + 1, 2**64 + 1, 2**64 + 2**32 + 1]
    for env in (GymEnv("countdown"), many()):
        starts = [tuple(np.ravel(env.reset(seed=seed)[0])) for seed in seeds]
        assert len(set(starts)) == len(seeds)
        with pytest.raises(gymnasium.error.Error, match="-1"):
            env.reset(seed=-1)


def test_discrete_actions_are_gymnasiums():
    env = gymnasium.make("jaxrl/Chooser-v0", wrap={"history": 2, "action_delay": 1})
    assert env.action_space == gymnasium.spaces.Discrete(3)
    env.reset(seed=0)
    obs, reward, *_ = env.step(2)  # the action before, which is none: choice 0
    assert reward == 0.0 and obs.shape == (4,)
    assert env.step(1)[1] == 2.0 and env.step(0)[1] == 1.0

    envs = gymnasium.make_vec("jaxrl/Chooser-v0", num_envs=3)
    assert envs.single_action_space == gymnasium.spaces.Discrete(3)
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.step(np.array([2, 0, 1]))[1], [2.0, 0.0, 1.0])


def test_images_are_bytes():
    worlds = many(2, "benchmarks.senses:Chase")
    assert worlds.single_observation_space.dtype == np.uint8
    obs, _ = worlds.reset(seed=0)
    assert obs.dtype == np.uint8 and worlds.observation_space.contains(obs)
    assert worlds.observation_space.contains(worlds.step(worlds.action_space.sample())[0])


def test_discrete_tasks_behind_delay_and_history_are_trained_on(small_run, tmp_path):
    wrap = {"action_delay": [0, 2], "history": 2}
    config = small_run({"env": {"name": "chooser", "wrap": wrap}, "total_timesteps": 128})
    assert Trainer(config, tmp_path).run() == 0


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_gymnasiums_statistics_of_episodes_fit(mode):
    env = RecordEpisodeStatistics(many(episode_length=3, autoreset_mode=mode))
    env.reset(seed=0)
    for _ in range(3):
        *_, infos = env.step(still(env))
    np.testing.assert_array_equal(infos["episode"]["l"], [3] * 4)
    np.testing.assert_allclose(infos["episode"]["r"], infos["statistics"]["return"])


def test_a_world_that_diverges_terminates_with_what_was_last_seen():
    from jaxrl.bridge.gym_out import GymEnv

    env = GymEnv("fragile")
    seed = next(s for s in range(50) if env.reset(seed=s)[0][0] < 0.5)
    env.reset(seed=seed)
    for _ in range(2):
        obs = env.step(still(env))[0]
    last, reward, terminated, _, info = env.step(still(env))
    assert terminated and info["nonfinite"] and reward == 0
    np.testing.assert_array_equal(last, obs)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_resets_of_many_worlds_are_gymnasiums(mode):
    env = many(episode_length=3, autoreset_mode=mode)
    assert env.metadata["autoreset_mode"] is mode
    start = env.reset(seed=0)[0]
    seen = []
    for _ in range(3):
        obs, rewards, terminated, truncated, infos = env.step(still(env))
        seen.append(obs)
        assert (rewards == 1).all() and not terminated.any()
    assert truncated.all() and not infos["is_success"].any()
    np.testing.assert_allclose(infos["statistics"]["return"], 3.0)
    if mode is AutoresetMode.SAME_STEP:
        assert (obs[:, 1] == 0).all() and infos["_final_obs"].all()
        assert [row[1] for row in infos["final_obs"]] == [3.0] * 4
        np.testing.assert_allclose(infos["final_info"]["statistics"]["length"], 3.0)
        return
    assert (obs[:, 1] == 3).all()  # the true final observation
    np.testing.assert_array_equal(obs[:, 0], start[:, 0])
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(gymnasium.error.ResetNeeded, match=r"worlds \[0, 1, 2, 3\]"):
            env.step(still(env))
        mask = np.array([True, False, True, False])
        after, _ = env.reset(options={"reset_mask": mask})
        assert after[:, 1].tolist() == [0, 3, 0, 3]
        return
    obs, rewards, _, truncated, _ = env.step(still(env))
    assert (obs[:, 1] == 0).all() and (rewards == 0).all() and not truncated.any()
    assert (obs[:, 0] != start[:, 0]).all()
    obs, rewards, *_ = env.step(still(env))
    assert (obs[:, 1] == 1).all() and (rewards == 1).all()


def test_starts_stay_fresh_however_many_episodes_there_are():
    env = many(2, ends_at=1, autoreset_mode="SameStep")
    starts = [env.reset(seed=0)[0][:, 0]]
    for _ in range(20):
        starts.append(env.step(still(env))[0][:, 0])
    assert len(np.unique(np.stack(starts))) == 42


def test_make_vec_gives_the_compiled_vector():
    env = gymnasium.make_vec("jaxrl/Pendulum-v0", num_envs=16)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (16, 3) and obs.dtype == np.float32
    obs, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs) and rewards.shape == (16,)
    assert terminated.dtype == truncated.dtype == bool
    env.close()


def test_stable_baselines_learns_on_it():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env("jaxrl/Pendulum-v0", n_envs=4, seed=0)
    settings = {"n_steps": 512, "batch_size": 128, "gamma": 0.9, "learning_rate": 2e-3}
    model = PPO("MlpPolicy", envs, seed=0, **settings)
    before, _ = evaluate_policy(model, envs, n_eval_episodes=8)
    model.learn(40_000)
    after, _ = evaluate_policy(model, envs, n_eval_episodes=8)
    assert after > before + 300, (before, after)
