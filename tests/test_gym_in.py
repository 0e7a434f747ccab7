"""Gymnasium environments as tasks: what comes of them, and of those that misbehave."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.bridge import gym_in
from jaxrl.bridge.gym_in import HostVector, gym_class
from jaxrl.bridge.worker import BadObservation, Guard
from jaxrl.config import resolve
from jaxrl.errors import UserError
from jaxrl.evaluate import baselines
from jaxrl.rl.distributions import Categorical, Gaussian
from jaxrl.trainer import Trainer
from tests.gym_envs import Choices

WALK, CHOICES = "tests.gym_envs:Walk", "tests.gym_envs:Choices"


# -- one world -------------------------------------------------------------------------------


def test_actions_are_scaled_to_the_box_and_observations_are_float32():
    env = Guard(WALK, {"limit": 2}, ["high", "place"])
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float32 and obs.shape == (2,)
    after, reward, terminated, truncated, info = env.step(np.array([-1.0]))
    assert reward == -2.0 and after[0] == pytest.approx(obs[0] - 2.0)
    assert info["last"] == [0.0, pytest.approx(after[0])]
    _, reward, terminated, truncated, info = env.step(np.array([1.0]))
    assert (reward, terminated, truncated, info["last"][0]) == (6.0, False, True, 1.0)


def test_dictionaries_are_flattened_part_by_part():
    env = Guard(CHOICES, {})
    obs, _ = env.reset(seed=0)
    assert {k: v.shape for k, v in obs.items()} == {"shown": (3,), "noise": (4,)}
    assert obs["shown"].sum() == 1 and env.step(0)[0]["noise"].dtype == np.float32


def test_an_exception_cuts_the_episode_and_the_next_one_is_sound():
    env = Guard(WALK, {"trouble": "raises"})
    env.reset(seed=0)
    for _ in range(2):
        last = env.step(np.zeros(1))[0]
    obs, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (reward, terminated, truncated, info["restarted"]) == (0.0, False, True, True)
    assert info["error"] == "ZeroDivisionError: lost contact"
    np.testing.assert_array_equal(obs, last)
    assert env.reset()[0][1] == 0


def test_what_always_fails_is_given_up():
    env = Guard(WALK, {"trouble": "born broken"})
    with pytest.raises(RuntimeError, match="failed 4 times in a row, last with OSError: no device"):
        env.reset()


def test_a_nan_ends_the_episode_with_what_was_last_seen():
    env = Guard(WALK, {"trouble": "nan"})
    env.reset(seed=0)
    for _ in range(2):
        last = env.step(np.zeros(1))[0]
    obs, reward, terminated, _, info = env.step(np.zeros(1))
    assert terminated and info["nonfinite"] and reward == 0
    np.testing.assert_array_equal(obs, last)


@pytest.mark.parametrize(
    ("trouble", "said"), [("shape", r"float64 \(1,\), its space says"), ("type", "got <U")]
)
def test_an_observation_that_does_not_fit_its_space_is_refused(trouble, said):
    env = Guard(WALK, {"trouble": trouble, "at": 1})
    env.reset(seed=0)
    with pytest.raises(BadObservation, match=said):
        env.step(np.zeros(1))


def test_a_key_told_at_the_environments_own_end_may_be_missing_at_the_users():
    env = Guard(WALK, {"limit": 9}, ["end"], limit=2)
    env.reset(seed=0)
    env.step(np.zeros(1))
    _, _, terminated, truncated, info = env.step(np.zeros(1))
    assert truncated and not terminated and info["last"] == [0.0]


@pytest.mark.parametrize(
    ("key", "said"), [("hihg", "has no 'hihg' .* 'high', 'place', 'name'"), ("name", "got 'walk'")]
)
def test_a_wrong_key_of_info_is_named(key, said):
    env = Guard(WALK, {"limit": 2}, [key])
    env.reset(seed=0)
    with pytest.raises(BadObservation, match=said):
        for _ in range(2):
            env.step(np.zeros(1))


# -- many worlds ---------------------------------------------------------------------------------


@pytest.fixture
def vector(request):
    settings = {"success": "high", "metrics": ("place",), "processes": 2}
    made = HostVector(gym_class(WALK)(kwargs=request.param, **settings), 4)
    yield made
    made.close()


@pytest.mark.parametrize("vector", [{"limit": 3}], indirect=True)
def test_final_observations_and_statistics_are_the_episodes_own(vector):
    assert vector.processes == 2  # of two worlds each
    start = vector.start(seed=0)
    assert len(np.unique(start[:, 0])) == 4
    shares = np.array([[0.0], [0.25], [0.5], [1.0]], np.float32)
    moves = 2.0 + 4.0 * shares[:, 0]
    for _ in range(3):
        vector.send(shares)
        obs, step = vector.receive()
    assert step.truncated.all() and not step.terminated.any() and step.ended.all()
    np.testing.assert_allclose(step.final_obs[:, 0], start[:, 0] + 3 * moves, rtol=1e-5)
    assert (step.final_obs[:, 1] == 3).all() and (obs[:, 1] == 0).all()
    assert vector.statistics == ("return", "length", "success", "final/place")
    expected = np.stack([3 * moves, [3.0] * 4, [1.0] * 4, start[:, 0] + 3 * moves], axis=1)
    np.testing.assert_allclose(step.episode, expected, rtol=1e-5)
    vector.send(shares)
    _, step = vector.receive()
    assert not step.ended.any() and (step.episode == 0).all()


def test_short_steps_are_taken_here_and_long_or_dangerous_ones_elsewhere():
    def here(**kwargs):
        vector = HostVector(gym_class(WALK)(kwargs=kwargs), 4)
        assert vector.processes == 1 or not vector.here
        return vector.here

    assert here()
    assert not here(pause=0.002) and not here(trouble="dies") and not here(trouble="shape")


@pytest.mark.parametrize(
    ("worlds", "layout"), [(1, (False, 1)), (6, (False, 3)), (7, (False, 7)), (8, (False, 4))]
)
def test_slow_worlds_are_spread_over_the_cores(monkeypatch, worlds, layout):
    monkeypatch.setitem(gym_in._trials, (WALK, "{}"), (0.01, True))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    vector = HostVector(gym_class(WALK)(), worlds)
    assert (vector.here, vector.processes) == layout


def test_worlds_that_disturb_each_other_get_a_process_each():
    vector = HostVector(gym_class("tests.gym_envs:Shared")(), 4)
    assert (vector.here, vector.processes) == (False, 4)


def test_worlds_step_the_same_in_any_number_of_processes():
    seen = []
    for processes in (0, 1, 4):
        vector = HostVector(gym_class(WALK)(kwargs={"limit": 3}, processes=processes), 4)
        seen.append([vector.start(seed=7)])
        for _ in range(4):
            vector.send(np.linspace(-1, 1, 4, dtype=np.float32)[:, None])
            obs, step = vector.receive()
            seen[-1] += [obs, step.final_obs, step.reward, step.episode]
        vector.close()
    jax.tree.map(np.testing.assert_array_equal, seen[0], seen[1])
    jax.tree.map(np.testing.assert_array_equal, seen[0], seen[2])


@pytest.mark.parametrize("vector", [{"trouble": "dies"}], indirect=True)
def test_a_process_that_dies_is_started_again_and_counted(vector, capfd):
    vector.start(seed=0)
    for _ in range(3):
        vector.send(np.zeros((4, 1), np.float32))
        obs, step = vector.receive()
    assert step.truncated.all() and not step.ended.any() and (step.reward == 0).all()
    assert (step.final_obs[:, 1] == 2).all() and (obs[:, 1] == 0).all()
    assert vector.restarts == 4 and "died" in capfd.readouterr().err
    vector.send(np.zeros((4, 1), np.float32))
    assert (vector.receive()[0][:, 1] == 1).all()


@pytest.mark.parametrize("vector", [{}], indirect=True)
def test_processes_that_died_between_two_steps_are_started_again(vector):
    vector.start(seed=0)
    for times in range(1, gym_in.MOST_REVIVALS + 1):
        for process in vector._envs.processes:
            process.kill()
            process.join()
        vector.send(np.zeros((4, 1), np.float32))
        obs, step = vector.receive()
        assert step.truncated.all() and not step.ended.any() and vector.restarts == 4 * times
        assert (obs[:, 1] == 0).all()
    vector._envs.processes[0].kill()
    vector._envs.processes[0].join()
    with pytest.raises(UserError, match="died 6 times, and no episode ended in between"):
        vector.send(np.zeros((4, 1), np.float32))
        vector.receive()


@pytest.mark.parametrize("vector", [{}], indirect=True)
def test_ctrl_c_does_not_reach_the_worlds(vector):
    vector.start(seed=0)
    for process in vector._envs.processes:
        os.kill(process.pid, signal.SIGINT)
    for step in range(1, 4):
        vector.send(np.zeros((4, 1), np.float32))
        assert (vector.receive()[0][:, 1] == step).all()
    assert vector.restarts == 0


@pytest.mark.parametrize("vector", [{"trouble": "shape"}], indirect=True)
def test_a_bad_observation_is_one_clear_error(vector):
    vector.start(seed=0)
    with pytest.raises(
        UserError, match=r"gym:tests.gym_envs:Walk: observation: got float64 \(1,\)"
    ):
        for _ in range(3):
            vector.send(np.zeros((4, 1), np.float32))
            vector.receive()


# -- training --------------------------------------------------------------------------------------

SMALL = {
    "num_envs": 2,
    "chunk": 1,
    "eval": {"every": 64, "episodes": 3, "final_episodes": 0},
    "checkpoint": {"every": 64},
    "log": {"console": False, "tensorboard": False},
}
NETWORK = {"policy_hidden": [8], "value_hidden": [8]}


def run_config(name, *layers, **env):
    base = {"env": {"gym": name, **env}, **SMALL}
    return resolve(base, *layers, platform="none")


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "ppo", "ppo": {"num_steps": 16, "network": NETWORK}},
        {
            "algo": "sac",
            "sac": {
                "num_steps": 16,
                "learning_starts": 16,
                "batch_size": 8,
                "buffer_size": 400,
                "network": NETWORK,
            },
        },
    ],
    ids=["ppo", "sac"],
)
def test_training_evaluates_saves_and_resumes(tmp_path, settings, capfd):
    config = run_config(
        WALK, settings, {"total_timesteps": 64}, success="high", kwargs={"limit": 4}
    )
    first = Trainer(config, tmp_path)
    assert first.run() == 0
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert "rollout/restarts" in rows[0] and "eval/success_rate" in rows[0]
    params = jax.device_get(first.state.policy.params)

    longer = resolve(config.to_dict(), {"total_timesteps": 128}, platform="none")
    again = Trainer(longer, tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state.policy.params), params)
    assert "new episodes begin" in capfd.readouterr().err
    assert again.run() == 0 and again.progress.timesteps == 128
    after = jax.device_get(again.state.policy.params)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(after)))


def test_training_goes_on_when_an_environment_raises(tmp_path, capfd):
    settings = {"total_timesteps": 64, "ppo": {"num_steps": 16, "network": NETWORK}}
    config = run_config(WALK, settings, kwargs={"trouble": "raises"})
    trainer = Trainer(resolve(config.to_dict(), {"eval": {"every": 0}}, platform="none"), tmp_path)
    assert trainer.run() == 0
    assert trainer.algo.vector.restarts > 10
    assert "was made anew after ZeroDivisionError: lost contact" in capfd.readouterr().err


def test_episodes_end_at_the_users_limit_and_evaluations_do_not_wait_for_ever(monkeypatch):
    env = run_config(WALK, kwargs={"limit": 10**9}, episode_seconds=0.7).env
    assert env.episode_length == 7  # at 10 Hz
    table = env.make_evaluator(baselines(env)["zero"], 4)(None, jax.random.key(0))
    assert (table[:, 1] == 7).all()

    monkeypatch.setattr(gym_in, "LONGEST_EPISODE", 50)
    env = run_config(WALK, kwargs={"limit": 10**9}).env
    with pytest.raises(UserError, match="an episode has not ended in 50 steps; give them"):
        env.make_evaluator(baselines(env)["zero"], 4)(None, jax.random.key(0))


def test_what_draws_no_pictures_is_named():
    with pytest.raises(UserError, match=r"draws no pictures: .* 'render_mode'"):
        run_config(WALK).env.film(lambda *_: np.zeros((1, 1)), None, 0, 1)


def test_baselines_of_choices_are_choices():
    env = run_config(CHOICES).env
    for name in ("zero", "random"):
        table = env.make_evaluator(baselines(env)[name], 20)(None, jax.random.key(0))
        assert 2 < table[:, 0].mean() < 5  # one choice in three pays, of ten


def test_ppo_learns_choices_from_a_dictionary(tmp_path):
    ppo = {"num_steps": 64, "learning_rate": 0.01, "network": NETWORK, "num_minibatches": 4}
    config = run_config(CHOICES, {"total_timesteps": 2 * 64 * 30, "ppo": ppo, "eval": {"every": 0}})
    trainer = Trainer(config, tmp_path)
    trainer.run()
    env = Choices()
    obs = [env.reset(seed=s)[0] for s in range(30)]
    flat = {
        "shown": jnp.asarray(np.eye(3, dtype=np.float32)[[o["shown"] for o in obs]]),
        "noise": jnp.asarray(np.stack([o["noise"].ravel() for o in obs]), jnp.float32),
    }
    chosen = trainer.algo.policy(trainer.state.policy, flat)
    assert np.mean(np.asarray(chosen) == [o["shown"] for o in obs]) > 0.9


def test_choices_have_the_probabilities_of_their_logits():
    g = Gaussian(mean=jnp.array([0.0, 1.0, -1.0]), log_std=jnp.zeros(3))
    wanted = np.exp([0, 1, -1]) / np.exp([0, 1, -1]).sum()
    noise = jax.random.normal(jax.random.key(0), (20_000, 3))
    samples = jax.vmap(lambda n: Categorical.sample(g, n))(noise)
    np.testing.assert_allclose(samples.mean(0), wanted, atol=0.01)
    for i in range(3):
        assert Categorical.log_prob(g, jnp.eye(3)[i]) == pytest.approx(np.log(wanted[i]), abs=1e-5)
    entropy = -(wanted * np.log(wanted)).sum()
    assert Categorical.entropy(g, jax.random.key(0)) == pytest.approx(entropy, abs=1e-5)
    assert Categorical.action(g.mean) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"env": {"gym": "Pendulm-v1"}}, "gym:Pendulm-v1 cannot be made"),
        ({"env": {"gym": "no.such:Thing"}}, "gym:no.such:Thing cannot be made: No module"),
        ({"env": {"gym": "tests.gym_envs:Unbounded"}}, "known are a bounded Box and Discrete"),
        ({"env": {"gym": WALK, "kwargs": {"limits": 3}}}, "unexpected keyword argument 'limits'"),
        ({"env": {"gym": WALK, "kwargs": 3}}, "env.kwargs: got 3, expected section"),
    ],
)
def test_what_cannot_be_made_is_named(values, said):
    with pytest.raises(UserError, match=said):
        resolve(values, platform="none")


def test_what_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(UserError, match="sac needs continuous actions"):
        Trainer(run_config(CHOICES, {"algo": "sac"}), tmp_path)
    with pytest.raises(UserError, match="one run at a time"):
        Trainer(run_config(WALK, {"num_seeds": 2}), tmp_path)
