"""Gymnasium environments as tasks: what comes of them, and of those that misbehave."""

import csv
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import jaxrl
from jaxrl.bridge import gym_in
from jaxrl.bridge.gym_in import gym_class
from jaxrl.bridge.worker import Guard, Unusable, Wrap, Wrapped, _parts, flat_space
from jaxrl.commands.evaluate import baselines
from jaxrl.config import resolve
from jaxrl.errors import UserError
from jaxrl.evaluation import Actor
from jaxrl.rl.distributions import Categorical, Gaussian
from jaxrl.runtime import host
from jaxrl.runtime.host import HostVector
from jaxrl.trainer import Trainer
from tests.gym_envs import Choices, Pixels

WALK, CHOICES = "tests.gym_envs:Walk", "tests.gym_envs:Choices"
PIXELS = "tests.gym_envs:Pixels"


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
    assert env.failures == ["ZeroDivisionError: lost contact with the robot"]
    np.testing.assert_array_equal(obs, last)
    assert env.reset()[0][1] == 0


def test_what_always_fails_is_given_up():
    env = Guard(WALK, {"trouble": "born broken"})
    with pytest.raises(Unusable, match="failed 4 times in a row, the last time with OSError: no d"):
        env.reset()


def test_unlucky_resets_are_tried_again_from_other_seeds():
    def starts(env):
        return np.array([env.reset(seed=seed)[0][0] for seed in range(200)])

    env = Guard(WALK, {"unlucky": 0.1})
    first = starts(env)
    assert 10 < len(env.failures) < 40
    np.testing.assert_array_equal(starts(env), first)
    others = first != starts(Guard(WALK, {}))  # those of the worlds that never fail
    assert 10 < others.sum() < 40 and len(np.unique(first)) == 200


@pytest.mark.parametrize("trouble", ["raises", "exits", "no dictionary"])
def test_a_world_made_anew_in_a_step_follows_from_its_seed(trouble):
    def starts(seed):
        env = Guard(WALK, {"trouble": trouble})
        seen = [env.reset(seed=seed)[0][0]]
        for step in range(1, 9):
            if env.step(np.zeros(1))[3]:
                assert step % 3 == 0
                seen.append(env.reset()[0][0])
        assert len(env.failures) == 2
        return seen

    assert starts(0) == starts(0) and len({*starts(0), *starts(1)}) == 6


def test_discrete_actions_begin_where_the_space_says():
    env = Guard(CHOICES, {"first": 5})
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs, reward, *_ = env.step(int(obs["shown"].argmax()))
        assert reward == 1.0


def test_a_nan_ends_the_episode_with_what_was_last_seen():
    env = Guard(WALK, {"trouble": "nan"})
    env.reset(seed=0)
    for _ in range(2):
        last = env.step(np.zeros(1))[0]
    obs, reward, terminated, _, info = env.step(np.zeros(1))
    assert terminated and info["nonfinite"] and reward == 0
    np.testing.assert_array_equal(obs, last)


@pytest.mark.parametrize(
    ("trouble", "said"), [("shape", r"float64 \(1,\), expected float64 \(2,\)"), ("type", "got <U")]
)
def test_an_observation_that_does_not_fit_its_space_is_refused(trouble, said):
    env = Guard(WALK, {"trouble": trouble, "at": 1})
    env.reset(seed=0)
    with pytest.raises(Unusable, match=said):
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
    with pytest.raises(Unusable, match=said):
        for _ in range(2):
            env.step(np.zeros(1))


# -- delay, noise, history -----------------------------------------------------------------------


def shares(*moves):
    """Actions of Walk that move it so far."""
    return [np.array([(move - 2.0) / 4.0]) for move in moves]


def test_history_is_the_newest_observations_and_starts_filled_with_the_first():
    env = Wrapped(Guard(WALK, {}), Wrap(history=3))
    start = env.reset(seed=0)[0]
    assert start.shape == (6,) and (start[1::2] == 0).all() and len(set(start[::2])) == 1
    for action in shares(1, 2):
        obs = env.step(action)[0]
    np.testing.assert_allclose(obs - np.tile([start[0], 0], 3), [0, 0, 1, 1, 3, 2], atol=1e-5)


def test_an_action_acts_after_the_delay_and_none_before():
    env = Wrapped(Guard(WALK, {}), Wrap(action_delay=(2,)))
    env.reset(seed=0)
    rewards = [env.step(action)[1] for action in shares(1, 3, 4, 5)]
    assert rewards == [2, 2, 1, 3]  # 2 is the middle of the action space
    env = Wrapped(Guard(CHOICES, {}), Wrap(action_delay=(1,)))
    seen = [env.reset(seed=0)[0]["shown"].argmax()]
    for action in (2, 1, 2):
        obs, reward, *_ = env.step(action)
        seen.append(obs["shown"].argmax())
    assert reward == (seen[2] == 1)


def test_the_delay_is_drawn_for_each_episode():
    env, seen = Wrapped(Guard(WALK, {}), Wrap(action_delay=(0, 2))), []
    for seed in range(30):
        env.reset(seed=seed)
        rewards = [env.step(action)[1] for action in shares(3, 4, 5)]
        assert rewards in ([3, 4, 5], [2, 3, 4], [2, 2, 3])
        seen.append(rewards[2])
    assert set(seen) == {3, 4, 5}


def test_noise_has_its_components_std_and_follows_from_the_seed():
    def noise():
        env, seen = Wrapped(Guard(WALK, {"limit": 10**6}), Wrap((0,), (0.5, 0.0))), []
        bare = Guard(WALK, {"limit": 10**6})
        seen.append(env.reset(seed=3)[0] - bare.reset(seed=3)[0])
        for action in shares(*[0.0] * 500):
            seen.append(env.step(action)[0] - bare.step(action)[0])
        return np.stack(seen)

    first = noise()
    np.testing.assert_array_equal(noise(), first)
    assert (first[:, 1] == 0).all() and 0.45 < first[:, 0].std() < 0.55


def test_dictionaries_have_each_part_behind_noise_and_history():
    env = Wrapped(Guard(CHOICES, {}), Wrap(observation_noise=(0.1,), history=2))
    start, after = env.reset(seed=0)[0], env.step(0)[0]
    assert {key: part.shape for key, part in after.items()} == {"shown": (6,), "noise": (8,)}
    for key, part in after.items():
        np.testing.assert_array_equal(
            *(x.reshape(2, -1)[i] for x, i in ((start[key], 1), (part, 0)))
        )
        assert not np.isin(part, [0.0, 1.0]).any() and part.dtype == np.float32


def test_what_fails_shows_what_was_last_seen_of_it():
    for trouble in ("nan", "raises"):
        env = Wrapped(Guard(WALK, {"trouble": trouble}), Wrap(observation_noise=(1.0,), history=2))
        env.reset(seed=0)
        seen = [env.step(action) for action in shares(1, 1, 1)]
        np.testing.assert_array_equal(seen[2][0], seen[1][0])
        assert seen[2][2] == (trouble == "nan") and seen[2][3] == (trouble == "raises")


WRAP = {"action_delay": [1], "observation_noise": [0.5, 0.0], "history": 2}


@pytest.mark.parametrize("processes", [0, 2])
def test_training_and_evaluation_see_delay_noise_and_history(processes):
    env = run_config(WALK, processes=processes, wrap=WRAP).env
    vector = env.runtime().worlds(2)
    start = vector.start(seed=0)
    bare = HostVector(gym_class(WALK)(processes=0), 2).start(seed=0)
    assert jax.tree.map(jnp.shape, vector.init(jax.random.key(0)).obs) == start.shape == (2, 4)
    assert (start[:, 0] != bare[:, 0]).all() and (start[:, 1] == bare[:, 1]).all()
    for _ in range(2):
        vector.send(np.ones((2, 1), np.float32))
        obs, step = vector.receive()
    vector.close()
    assert (obs[:, 1::2] == [1, 2]).all() and (step.reward == 6).all()

    def act(worlds, key):
        assert worlds.obs.shape[1] == 4
        return jnp.ones((worlds.obs.shape[0], 1))

    table = env.runtime().evaluator(Actor.of_function(act), 2)(None, jax.random.key(0))
    np.testing.assert_array_equal(table[:, 0], 2 + 4 * 6)  # the first action comes too late


def test_a_film_shows_the_world_behind_delay_and_history():
    env = run_config("tests.gym_envs:Painted", processes=0, wrap={**WRAP, "history": 3}).env

    def act(worlds, key):
        return jnp.full((1, 1), worlds.obs.shape[1] / 6.0)  # moves by 6 if it sees all frames

    pixels = env.runtime().film(Actor.of_function(act), None, 0, 2)[:, 0, 0]
    assert (pixels[:, 1] == [0, 20, 40]).all()  # of five steps each second one
    np.testing.assert_allclose(np.diff(pixels[:2, 0]), 10 * (2 + 6), atol=1)


@pytest.mark.parametrize("name", [WALK, CHOICES])
def test_wrapped_worlds_are_trained_on(tmp_path, name):
    settings = {"total_timesteps": 32, "ppo": {"num_steps": 16, "network": NETWORK}}
    wrap = {"action_delay": [0, 2], "observation_noise": 0.1, "history": 2}
    config = run_config(name, settings, {"eval": {"every": 32}}, processes=0, wrap=wrap)
    assert Trainer(config, tmp_path).run() == 0


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
    for times in range(1, host.MAX_REVIVALS + 1):
        for process in vector._envs.processes:
            process.kill()
            process.join()
        vector.send(np.zeros((4, 1), np.float32))
        obs, step = vector.receive()
        assert step.truncated.all() and not step.ended.any() and vector.restarts == 4 * times
        assert (obs[:, 1] == 0).all()
    vector._envs.processes[0].kill()
    vector._envs.processes[0].join()
    with pytest.raises(UserError, match=r"lost 6 times before an episode ended.* a process died"):
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


def test_a_resume_joins_no_episode_to_the_one_before(tmp_path):
    """Walk observes the number of its step: what follows in an episode has the next one."""
    sac = {
        "num_steps": 16,
        "learning_starts": 16,
        "batch_size": 8,
        "buffer_size": 400,
        "network": NETWORK,
    }
    settings = {"algo": "sac", "sac": sac, "eval": {"every": 0}}
    config = run_config(WALK, settings, {"total_timesteps": 64}, kwargs={"limit": 1000})
    assert Trainer(config, tmp_path).run() == 0
    longer = resolve(config.to_dict(), {"total_timesteps": 128}, platform="none")
    again = Trainer(longer, tmp_path, resume=True)
    assert again.run() == 0
    state, replay = again.state.replay, again.algo.replay
    assert int(state.inserted) == 64
    batch = replay.sample(state, jax.random.key(0), 2000, gamma=0.9)
    np.testing.assert_array_equal(batch.next_obs[:, 1], batch.obs[:, 1] + 1)
    assert (np.asarray(batch.discount) > 0).all() and (np.asarray(batch.obs[:, 1]) == 31).any()


def test_absurd_values_are_cut_counted_and_told(tmp_path, capfd):
    settings = {"total_timesteps": 64, "ppo": {"num_steps": 16, "network": NETWORK}}
    config = run_config(WALK, settings, {"eval": {"every": 0}}, kwargs={"trouble": "absurd"})
    console = resolve(config.to_dict(), {"log": {"console": True}}, platform="none")
    trainer = Trainer(console, tmp_path)
    assert trainer.run() == 0
    with (tmp_path / "progress.csv").open() as file:
        cut = [float(row["rollout/out_of_range"]) for row in csv.DictReader(file)]
    assert sum(cut) >= 8  # every fifth of 64 steps, but for what began before
    assert "observations or rewards beyond 1,000,000 were clipped" in capfd.readouterr().err
    leaves = jax.tree.leaves((trainer.state.policy, trainer.state.learner))
    assert all(np.isfinite(x).all() for x in leaves)


def test_training_goes_on_when_an_environment_raises(tmp_path, capfd):
    settings = {"total_timesteps": 64, "ppo": {"num_steps": 16, "network": NETWORK}}
    config = run_config(WALK, settings, kwargs={"trouble": "raises"})
    trainer = Trainer(resolve(config.to_dict(), {"eval": {"every": 0}}, platform="none"), tmp_path)
    assert trainer.run() == 0
    assert trainer.algo.worlds.restarts > 10
    assert "was restarted after ZeroDivisionError: lost contact" in capfd.readouterr().err


def test_episodes_end_at_the_users_limit_and_evaluations_do_not_wait_for_ever(monkeypatch):
    env = run_config(WALK, kwargs={"limit": 10**9}, episode_seconds=0.7).env
    assert env.episode_length == 7  # at 10 Hz
    table = env.runtime().evaluator(baselines(env)["zero"], 4)(None, jax.random.key(0))
    assert (table[:, 1] == 7).all()

    monkeypatch.setattr(host, "LONGEST_EPISODE", 50)
    env = run_config(WALK, kwargs={"limit": 10**9}).env
    with pytest.raises(UserError, match="an episode has not ended after 50 steps; set a"):
        env.runtime().evaluator(baselines(env)["zero"], 4)(None, jax.random.key(0))


def test_what_draws_no_pictures_is_named():
    for name, kwargs, said in (
        (WALK, {}, r"cannot be rendered \(.* 'render_mode'"),
        ("tests.gym_envs:Painted", {"trouble": "paints nothing"}, r"picture: .* expected \[H"),
    ):
        env = run_config(name, kwargs=kwargs, processes=0).env
        with pytest.raises(UserError, match=said):
            env.runtime().film(Actor.of_function(lambda *_: jnp.zeros((1, 1))), None, 0, 1)


def test_baselines_of_choices_are_choices():
    env = run_config(CHOICES).env
    for name in ("zero", "random"):
        table = env.runtime().evaluator(baselines(env)[name], 20)(None, jax.random.key(0))
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
    chosen = trainer.algo.policy(trainer.state.policy, flat)[0]
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
        ({"env": {"gym": "Pendulm-v1"}}, "gym:Pendulm-v1: cannot be made: NameNotFound"),
        (
            {"env": {"gym": "no.such:Thing"}},
            "no.such:Thing: cannot be made: ModuleNotFoundError: No",
        ),
        ({"env": {"gym": WALK, "kwargs": {"limits": 3}}}, "unexpected keyword argument 'limits'"),
        ({"env": {"gym": WALK, "kwargs": 3}}, "env.kwargs: got 3, expected section"),
    ],
)
def test_what_cannot_be_made_is_named(values, said):
    with pytest.raises(UserError, match=said):
        resolve(values, platform="none")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Env: pass; def", "SyntaxError: invalid syntax"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("assert False, 'two\\nlines'", "AssertionError: two lines$"),
        ("raise MemoryError", "MemoryError$"),
        ("raise OSError('x' * 1000)", "OSError: x+...$"),
        ("def Env(): raise KeyError('key')", "KeyError: 'key'"),
        ("def Env(): return 3", "its spaces cannot be read: AttributeError"),
    ],
)
def test_whatever_an_import_or_a_constructor_raises_is_one_line(tmp_path, monkeypatch, code, said):
    name = f"broken_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"gym:{name}:Env: .*{said}") as raised:
        resolve({"env": {"gym": f"{name}:Env", "processes": 0}}, platform="none")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_an_import_that_kills_its_process_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os; os._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="gym:deadly:Env: a process died while the env"):
        resolve({"env": {"gym": "deadly:Env"}}, platform="none")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"actions": "unbounded"}, "actions: the space must be a bounded Box or Discrete"),
        ({"actions": "empty"}, "actions: the space must be a bounded Box or Discrete"),
        ({"actions": "text"}, "actions: the space must be a bounded Box or Discrete"),
        ({"actions": "none"}, "actions: the space must be a bounded Box or Discrete"),
        ({"observations": "empty"}, "observation: its space has no numbers"),
        ({"observations": "text"}, "observation: its space must be Box"),
        ({"observations": "sequence"}, r"observation\['odd'\]: its space must be Box"),
        ({"observations": "number"}, "observation: its space has the key 1, expected a string"),
        ({"observations": "none"}, "observation: its space must be Box"),
        ({"fps": 0}, r"metadata\['render_fps'\] is 0, expected a number above 0"),
        ({"fps": -1.0}, "metadata.* is -1.0, expected a number"),
        ({"fps": float("nan")}, "metadata.* is nan, expected a number"),
        ({"fps": "fast"}, "metadata.* is .fast., expected a number"),
    ],
)
def test_odd_spaces_and_frame_rates_are_one_line(kwargs, said):
    with pytest.raises(UserError, match=f"env.name: gym:tests.gym_envs:Odd: {said}") as raised:
        resolve(
            {"env": {"gym": "tests.gym_envs:Odd", "kwargs": kwargs, "processes": 0}},
            platform="none",
        )
    assert "\n" not in str(raised.value)


def test_nested_observations_are_flattened():
    inner = spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 255, (2, 2), np.uint8)])
    space = spaces.Dict(
        {"all": spaces.Dict({"parts": inner}), "grid": spaces.MultiDiscrete([2, 3])}
    )
    flat = flat_space(space)
    assert {key: part.shape for key, part in flat.items()} == {"all": (6,), "grid": (5,)}
    assert flat.contains(_parts(space, space.sample(), "observation"))
    wrong = {"all": {"parts": (0, np.zeros(4))}, "grid": [0, 0]}
    with pytest.raises(Unusable, match=r"observation\['all'\]\['parts'\]\[1\]: got float64 \(4,\)"):
        _parts(space, wrong, "observation")


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_stay_images(channels_first):
    world = Wrapped(Guard(PIXELS, {"channels_first": channels_first}), Wrap(history=2))
    space = world.observation_space
    assert space["camera"].shape == (8, 8, 1) and space["camera"].dtype == np.uint8
    first = world.reset(seed=0)[0]["camera"]
    second = world.step(0)[0]["camera"]
    assert second.shape == (8, 8, 2) and second.dtype == np.uint8
    np.testing.assert_array_equal(first[..., 1], second[..., 0])
    assert second.sum() == 2 * 32 * 255


def test_a_policy_sees_the_images_of_an_environment(tmp_path):
    config = run_config(
        PIXELS,
        {
            "num_envs": 4,
            "total_timesteps": 2048,
            "env": {"processes": 2},
            "ppo": {
                "num_steps": 64,
                "network": {"image_channels": [4, 4], "image_features": 16},
                "learning_rate": 3e-3,
            },
        },
    )
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.state.envs.obs["camera"].dtype == np.uint8
    assert trainer.run() == 0
    policy = jaxrl.load(tmp_path / "run")
    env = Pixels()
    obs, _ = env.reset(seed=0)
    earned = 0.0
    for _ in range(10):
        obs, reward, *_ = env.step(policy(obs))
        earned += reward
    assert earned == 10.0  # by chance 5


def test_what_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(UserError, match="sac needs continuous actions"):
        Trainer(run_config(CHOICES, {"algo": "sac"}), tmp_path)
    with pytest.raises(UserError, match="one run at a time"):
        Trainer(run_config(WALK, {"num_seeds": 2}), tmp_path)
