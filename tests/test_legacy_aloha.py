"""gym-aloha's insertion, with an action box that fits."""

import builtins
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs_legacy  # noqa: F401  registers the environments
from jaxrl.bridge.worker import Guard
from jaxrl.errors import UserError

START = np.array([0, -0.96, 1.16, 0, -0.3, 0] * 2)  # rad


@pytest.fixture
def env():
    pytest.importorskip("gym_aloha")
    made = gym.make("AlohaInsertion-v0")
    yield made.unwrapped
    made.close()


def arms(numbers):
    return np.concatenate([numbers[:6], numbers[7:13]])


def test_it_keeps_gymnasiums_contract_and_its_seeds(env):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    (first, _), (again, _), (other, _) = (env.reset(seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first[28:30] != other[28:30]).all()
    assert (first[28:30] != env.reset()[0][28:30]).all()  # nor is the next episode the same


def test_the_action_box_holds_the_start(env):
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(arms(obs), START, atol=1e-6)
    assert env.action_space.contains(obs[:14].astype(np.float32))
    assert not gym.spaces.Box(-1, 1, (14,)).contains(obs[:14].astype(np.float32))
    for _ in range(20):
        after, reward, terminated, _, info = env.step(obs[:14])
    np.testing.assert_allclose(arms(after), START, atol=0.01)
    assert reward == 0 and not terminated and info == {"is_success": False, "stage": 0}


def test_the_peg_at_the_pin_is_stage_4_and_ends_the_episode(env):
    obs, _ = env.reset(seed=0)
    qpos = env._physics.data.qpos
    qpos[16:19] = qpos[23:26] + [0.04, 0, 0]  # into the socket
    _, reward, terminated, _, info = env.step(obs[:14])
    assert reward == 4 and terminated and info == {"is_success": True, "stage": 4}


def test_it_runs_through_the_bridge():
    pytest.importorskip("gym_aloha")
    world = Guard("envs_legacy:AlohaInsertion-v0", {}, ["is_success", "stage"])
    obs, _ = world.reset(seed=0)
    space = world._actions
    share = 2 * (obs[:14] - space.low) / (space.high - space.low) - 1
    for step in range(300):
        obs, _, terminated, truncated, info = world.step(share)
        assert truncated == (step == 299) and not terminated
    np.testing.assert_allclose(arms(obs), START, atol=0.01)
    assert obs.dtype == np.float32 and info["last"] == [0.0, 0.0]
    world.close()


def test_without_gym_aloha_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith(("gym_aloha", "dm_control")):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'jaxrl\[aloha\]' && pip install --no-deps"):
        gym.make("AlohaInsertion-v0")
