"""What tasks share: curriculum, randomisation, delay, noise, history, rewards as a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.config import resolve
from jaxrl.envs import CurriculumConfig, Vector, WrapConfig, Wrapped, curriculum
from jaxrl.envs.randomization import Randomization, Range, draw, redraw
from jaxrl.envs.rewards import weighted
from jaxrl.errors import UserError
from jaxrl.options import option
from tests import toys


@dataclasses.dataclass(frozen=True)
class Climb(toys.Countdown):
    """`Countdown` whose starts are the curriculum's level; its episodes always succeed."""

    ends_at: int = option(2, "steps to termination")
    curriculum: CurriculumConfig = option(
        CurriculumConfig(start=(0.25,), step=0.25, episodes=8), "level"
    )

    def reset(self, key, level=1.0):
        state = super().reset(key)
        obs = jnp.stack([jnp.squeeze(jnp.asarray(level)), 0.0])
        return state.replace(physics=obs, obs=obs)


envs.register("climb", Climb)


# -- curriculum --------------------------------------------------------------------------


def test_a_level_rises_with_success_up_to_1_and_new_starts_have_it():
    vector = Vector(Climb(), 8, training=True)
    state = vector.init(jax.random.key(0), stagger=False)
    assert state.obs[:, 0] == pytest.approx(0.25)
    levels = []
    for _ in range(6):
        for _ in range(2):  # every world succeeds once
            state, _ = vector.step(state, jnp.zeros((8, 1)))
        state = vector.advance(state)
        levels.append(float(state.curriculum.level[0]))
    np.testing.assert_allclose(levels, [0.5, 0.75, 1, 1, 1, 1])
    assert state.obs[:, 0] == pytest.approx(1.0)


def test_a_level_waits_for_enough_episodes_and_falls_where_asked():
    config = CurriculumConfig(start=(0.2,), step=0.3, episodes=10, lower_at=0.3)
    state = curriculum.init(config)
    state = curriculum.advance(config, curriculum.observe(state, jnp.array([9.0]), jnp.array(9.0)))
    assert state.level == pytest.approx(0.2)
    state = curriculum.advance(config, curriculum.observe(state, jnp.array([1.0]), jnp.array(1.0)))
    assert state.level == pytest.approx(0.5) and state.episodes == 0
    state = curriculum.advance(config, curriculum.observe(state, jnp.zeros(1), jnp.array(10.0)))
    assert state.level == pytest.approx(0.2)  # and never below the start
    state = curriculum.advance(config, curriculum.observe(state, jnp.zeros(1), jnp.array(10.0)))
    assert state.level == pytest.approx(0.2)


def test_several_levels_follow_their_own_metrics():
    config = CurriculumConfig(start=(0.0, 0.0), metric=("success", "half"), episodes=4)
    state = curriculum.observe(curriculum.init(config), jnp.array([4.0, 2.0]), jnp.array(4.0))
    np.testing.assert_allclose(curriculum.advance(config, state).level, [0.1, 0.0], atol=1e-6)


def test_evaluation_has_full_difficulty():
    state = Vector(Climb(), 4).init(jax.random.key(0))
    assert state.obs[:, 0] == pytest.approx(1.0) and state.curriculum is None


def test_a_run_logs_its_level_and_resumes_with_it(small_run, tmp_path):
    from jaxrl.trainer import Trainer

    config = small_run({"env": {"name": "climb", "curriculum": {"episodes": 16}}})
    trainer = Trainer(config, tmp_path)
    trainer.run()
    level = float(trainer.state.envs.curriculum.level[0])
    assert level > 0.25
    assert "rollout/level" in (tmp_path / "progress.csv").read_text().splitlines()[0]
    again = Trainer(config, tmp_path, resume=True)
    assert float(again.state.envs.curriculum.level[0]) == level


def test_a_wrong_curriculum_is_named():
    env = Climb(curriculum=CurriculumConfig(metric=("succes",)))
    with pytest.raises(UserError, match=r"curriculum.metric: got 'succes', expected one of return"):
        Vector(env, 4, training=True)
    env = Climb(curriculum=CurriculumConfig(start=(0.1, 0.2)))
    with pytest.raises(UserError, match="one metric for each level"):
        Vector(env, 4, training=True)


# -- randomisation --------------------------------------------------------------------------

NOMINAL = {"mass": jnp.array([1.0, 2.0, 3.0]), "gain": jnp.full((2, 3), 5.0)}


def test_draws_stay_in_their_range_and_touch_only_their_rows():
    terms = [
        Randomization((("mass", np.array([0, 2])),), "scale", Range(0.5, 2.0, "log_uniform")),
        Randomization(
            (("gain", (slice(None), 0)), ("gain", (slice(None), 2))), "add", Range(-1, 1)
        ),
    ]
    keys = jax.random.split(jax.random.key(0), 500)
    fields = jax.vmap(lambda k: draw(terms, NOMINAL.__getitem__, k))(keys)
    scale = np.asarray(fields["mass"] / NOMINAL["mass"])
    assert (scale[:, 1] == 1).all()
    assert scale.min() >= 0.5 and scale.max() <= 2.0
    assert np.log(scale[:, 0]).mean() == pytest.approx(0.0, abs=0.06)  # log-uniform about 1
    assert abs(np.corrcoef(scale[:, 0], scale[:, 2])[0, 1]) < 0.2  # one draw each
    gain = np.asarray(fields["gain"])
    np.testing.assert_array_equal(gain[:, :, 0], gain[:, :, 2])  # the same for both targets
    assert (gain[:, :, 1] == 5).all() and 4 <= gain.min() < 4.1 and 5.9 < gain.max() <= 6


def test_shared_normal_and_switched_off_terms():
    keys = jax.random.split(jax.random.key(1), 2000)
    shared = Randomization((("mass", slice(None)),), "add", Range(1.0, 0.5, "normal"), shared=True)
    off = Randomization((("gain", slice(None)),), "scale", Range(1.0, 1.0))
    fields = jax.vmap(lambda k: draw([shared, off], NOMINAL.__getitem__, k))(keys)
    assert set(fields) == {"mass"}
    added = np.asarray(fields["mass"] - NOMINAL["mass"])
    np.testing.assert_allclose(added[:, 0], added[:, 2], atol=1e-6)
    assert added[:, 0].mean() == pytest.approx(1.0, abs=0.05)
    assert added[:, 0].std() == pytest.approx(0.5, abs=0.05)


def test_interval_terms_are_drawn_again_in_their_time():
    terms = [
        Randomization(
            (("mass", slice(None)),), "scale", Range(0.5, 2.0), event="interval", interval=0.2
        ),
        Randomization((("gain", slice(None)),), "scale", Range(0.5, 2.0)),
    ]
    fields = draw(terms, NOMINAL.__getitem__, jax.random.key(0))
    changed = []
    for step in range(1, 7):
        new = redraw(
            terms,
            NOMINAL.__getitem__,
            jax.random.key(step),
            current=fields,
            step=jnp.asarray(step),
            control_dt=0.1,
        )
        np.testing.assert_array_equal(new["gain"], fields["gain"])
        changed.append(bool((new["mass"] != fields["mass"]).all()))
        fields = new
    assert changed == [False, True] * 3


# -- delay, noise, history --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Echo(toys.Countdown):
    """Observes the last action and the step."""

    def step(self, state, action):
        new = super().step(state, action)
        return new.replace(obs=jnp.stack([action[0], new.physics[1]]))

    def baselines(self):
        return {"time": lambda state: state.obs[1:]}


def play(env, actions, key=0):
    state, seen = env.reset(jax.random.key(key)), []
    for action in actions:
        state = env.step(state, jnp.array([action]))
        seen.append(np.asarray(state.obs))
    return state, np.array(seen)


def test_actions_come_later():
    _, seen = play(Wrapped(Echo(), WrapConfig(action_delay=(2,))), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(seen[:, 0], [0, 0, 0.1, 0.2], atol=1e-6)


def test_delays_are_drawn_for_each_episode():
    env = Wrapped(Echo(), WrapConfig(action_delay=(0, 3)))
    delays = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 200)).info.delay
    assert set(np.asarray(delays).tolist()) == {0, 1, 2, 3}


def test_noise_has_its_size_and_the_task_does_not_see_it():
    env = Wrapped(Echo(), WrapConfig(observation_noise=(0.5, 0.0)))
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4000))
    noise = np.asarray(states.obs - states.info.obs)
    assert noise[:, 0].std() == pytest.approx(0.5, abs=0.03) and (noise[:, 1] == 0).all()
    state, _ = play(env, [0.0] * 3)
    assert env.baselines()["time"](state) == pytest.approx(3.0)
    assert state.info.obs[0] == 0 and state.obs[0] != 0


def test_history_puts_the_newest_last():
    env = Wrapped(Echo(), WrapConfig(history=3))
    assert env.observation_spec.shape == (6,)
    assert env.observation_spec.names[-2:] == ("start[0]", "time[0]")
    _, seen = play(env, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(seen[-1], [0.2, 2, 0.3, 3, 0.4, 4], atol=1e-6)
    assert (seen[0][[1, 3]] == 0).all() and seen[0][0] == seen[0][2] > 0  # filled with the first


def test_wrapped_runs_keep_their_settings(small_run, tmp_path):
    from jaxrl.runs import load_policy
    from jaxrl.trainer import Trainer

    wrap = {"action_delay": [0, 1], "observation_noise": 0.1, "history": 2}
    config = small_run({"env": {"name": "countdown", "wrap": wrap}})
    assert isinstance(config.env, Wrapped)
    Trainer(config, tmp_path).run()
    loaded = load_policy(tmp_path).config
    assert loaded.env == config.env and loaded.env.observation_spec.shape == (4,)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        ({"action_delay": [2, 1]}, r"env.wrap.action_delay: got \[2, 1\]"),
        ({"action_delay": -1}, "at least 0"),
        ({"observation_noise": [0.1, 0.1, 0.1]}, r"got 3 numbers for .* the shape \[2\]"),
        ({"histori": 2}, "did you mean env.wrap.history"),
    ],
)
def test_wrong_settings_are_named(wrap, said):
    with pytest.raises(UserError, match=said):
        resolve({"env": {"name": "countdown", "wrap": wrap}}, platform="none")


# -- evaluation overrides, rewards ---------------------------------------------------------------


def test_evaluations_play_the_task_with_its_overrides():
    config = resolve(
        {"env": {"name": "countdown", "ends_at": 3}, "eval_overrides": {"ends_at": 7}},
        platform="none",
    )
    assert config.env.ends_at == 3 and config.eval_env.ends_at == 7
    again = resolve(config.to_dict(), platform="none")
    assert again.eval_env == config.eval_env and again.env == config.env
    with pytest.raises(UserError, match=r"unknown setting eval_overrides.ends_att; did you mean"):
        resolve({"env": "countdown", "eval_overrides": {"ends_att": 7}}, platform="none")
    with pytest.raises(UserError, match="change what the policy observes"):
        resolve({"env": "countdown", "eval_overrides": {"wrap": {"history": 3}}}, platform="none")


def test_rewards_are_a_weighted_sum_of_named_terms():
    @dataclasses.dataclass(frozen=True)
    class Weights:
        near: float = 2.0
        effort: float = -0.5

    terms = {"near": jnp.array(3.0), "effort": jnp.array(4.0)}
    reward, shares = weighted(terms, Weights())
    assert reward == pytest.approx(4.0)
    assert shares["reward/near"] == 6.0 and shares["reward/effort"] == -2.0
    with pytest.raises(ValueError, match="effort"):
        weighted({"near": jnp.array(3.0)}, Weights())


# -- learning from an expert -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Copy(toys.Countdown):
    """Rewards nothing; its baseline answers each start with an action of its own."""

    def step(self, state, action):
        return super().step(state, action).replace(reward=jnp.zeros(()))

    def baselines(self):
        return {"known": lambda state: jnp.sin(3 * state.obs[:1])}


envs.register("copy", Copy)


def test_the_policy_learns_what_the_expert_does(small_run, tmp_path):
    from jaxrl.trainer import Trainer

    expert = {"name": "known", "coef": 10.0, "until": 2.0}
    ppo = {"learning_rate": 0.01, "expert": expert}
    config = small_run({"env": {"name": "copy"}, "ppo": ppo, "total_timesteps": 64 * 100})
    trainer = Trainer(config, tmp_path)
    trainer.run()
    obs = jnp.stack([jnp.linspace(0, 1, 21), jnp.full(21, 4.0)], axis=1)
    action = trainer.algo.policy(trainer.state.policy, obs)[0]
    np.testing.assert_allclose(action[:, 0], np.sin(3 * obs[:, 0]), atol=0.15)


def test_an_expert_is_asked_for_its_share_of_the_run_only(small_run, tmp_path):
    from jaxrl.reporting.reading import read_rows
    from jaxrl.trainer import Trainer

    ppo = {"expert": {"name": "known", "until": 0.5}}
    Trainer(small_run({"env": {"name": "copy"}, "ppo": ppo, "chunk": 1}), tmp_path).run()
    distances = [row["train/expert_loss"] for row in read_rows(tmp_path / "progress.csv")]
    assert np.isfinite(distances).tolist() == [True] * 4 + [False] * 4


def test_an_unknown_expert_is_named(small_run, tmp_path):
    from jaxrl.trainer import Trainer

    config = small_run({"env": {"name": "copy"}, "ppo": {"expert": {"name": "nobody"}}})
    with pytest.raises(UserError, match=r"no baseline 'nobody' \(it has: known\)"):
        Trainer(config, tmp_path)
