"""Runs that begin with the networks of another run (`init_from`)."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import ArraySpec
from jaxrl.errors import UserError
from jaxrl.runs import load_policy
from jaxrl.trainer import Trainer
from tests.test_checkpoint import stop_after
from tests.toys import Countdown


@dataclasses.dataclass(frozen=True)
class Wider(Countdown):
    """A countdown that observes and does more than a countdown, in another order."""

    @property
    def observation_spec(self):
        clock = ArraySpec.of_parts({"speed": 1, "time": 1, "start": 1})
        return {"code": ArraySpec((2,)), "clock": clock}

    @property
    def action_spec(self):
        return ArraySpec((2,), -1.0, 1.0, ("other", "action_0"))

    def reset(self, key):
        return _wider(super().reset(key))

    def step(self, state, action):
        return _wider(super().step(state, action))


def _wider(state):
    clock = jnp.stack([0.1, state.obs[1], state.obs[0]])
    return state.replace(obs={"clock": clock, "code": jnp.array([0.3, -0.2])})


class Seeing(Countdown):
    """A countdown with an image."""

    @property
    def observation_spec(self):
        image = ArraySpec((8, 8, 1), 0, 255, dtype="uint8")
        return {"clock": super().observation_spec, "image": image}

    def reset(self, key):
        return _seeing(super().reset(key))

    def step(self, state, action):
        return _seeing(super().step(state, action))


def _seeing(state):
    return state.replace(obs={"clock": state.obs, "image": jnp.zeros((8, 8, 1), jnp.uint8)})


envs.register("wider", Wider)
envs.register("seeing", Seeing)


@pytest.fixture
def source(small_run, tmp_path):
    """The folder of a trained run."""
    trainer = Trainer(small_run(), tmp_path / "source")
    assert trainer.run() == 0
    return tmp_path / "source"


def begun(config, folder):
    trainer = Trainer(config, folder)
    trainer.close()
    return trainer


def test_the_same_task_begins_with_all_of_the_policy(source, small_run, tmp_path, capfd):
    new = begun(small_run({"init_from": str(source), "seed": 5}), tmp_path / "new")
    assert f"begins with the networks of {source}; nothing is new" in capfd.readouterr().err
    old = load_policy(source).params
    params = new.state.policy.params["params"]
    assert (params["log_std"] == 0).all() and (old.params["params"]["log_std"] != 0).any()
    expected = old.params["params"] | {"log_std": params["log_std"]}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    jax.tree.map(np.testing.assert_array_equal, new.state.policy.normalizer, old.normalizer)


def test_a_wider_policy_at_first_acts_as_the_old_one(source, small_run, tmp_path, capfd):
    config = small_run({"env": {"name": "wider"}, "init_from": str(source)})
    new = begun(config, tmp_path / "new")
    assert "; new: code, speed\n" in capfd.readouterr().err
    old, policy, state = load_policy(source), new.algo.policy, new.state.policy
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    noise = jax.random.normal(jax.random.key(1), (50, 3))
    wide = {
        "clock": jnp.stack([noise[:, 0], obs[:, 1], obs[:, 0]], axis=1),
        "code": noise[:, 1:],
    }
    action, _ = policy(state, wide)
    expected, _ = old.policy(old.params, obs)
    np.testing.assert_allclose(action[:, 1:], expected, atol=1e-6)
    value, expected = policy.values(state, wide)[0], old.policy.values(old.params, obs)[0]
    np.testing.assert_allclose(value, expected, atol=1e-5)
    assert float(state.normalizer.count) <= float(old.params.normalizer.count)
    np.testing.assert_array_equal(state.normalizer.variance["code"], [1.0, 1.0])
    # The new components are learned, too.
    trained = Trainer(config, tmp_path / "trained")
    assert trained.run() == 0
    kernel = trained.state.policy.params["params"]["policy_trunk"]["Dense_0"]["kernel"]
    assert kernel.shape == (5, 8) and (np.abs(kernel).sum(1) > 0).all()


def test_every_member_of_a_population_begins_with_it(source, small_run, tmp_path):
    config = small_run({"init_from": str(source), "num_seeds": 2})
    params = begun(config, tmp_path / "new").state.policy.params["params"]
    old = load_policy(source).params.params["params"]
    for kernel in params["mean_head"]["kernel"]:
        np.testing.assert_array_equal(kernel, old["mean_head"]["kernel"])


@pytest.mark.parametrize("seeds", [1, 2])
def test_td3_explores_and_learns_from_the_same_policy(seeds, small_run, tmp_path):
    """Its target policy, too, begins as the other run's."""
    td3 = {
        "algo": "td3",
        "num_seeds": seeds,
        "td3": {
            "network": {"policy_hidden": [8], "value_hidden": [8]},
            "num_steps": 8,
            "learning_starts": 16,
            "buffer_size": 4000,
        },
    }
    assert Trainer(small_run(td3, {"num_seeds": 1}), tmp_path / "td3").run() == 0
    new = begun(small_run(td3, {"init_from": str(tmp_path / "td3")}), tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, new.state.learner.extra, new.state.policy.params)
    old = load_policy(tmp_path / "td3").params.params["params"]["mean_head"]["kernel"]
    extra = new.state.learner.extra["params"]["mean_head"]["kernel"]
    np.testing.assert_array_equal(extra.reshape(-1, *old.shape)[-1], old)


def test_features_of_another_encoder_are_new(small_run, tmp_path):
    """Else the old weights would multiply what a new encoder makes of the image."""
    layer = {"env": {"name": "seeing"}, "ppo": {"network": {"image_channels": [4]}}}
    assert Trainer(small_run(layer), tmp_path / "old").run() == 0
    other = {"ppo": {"network": {"image_channels": [6]}}, "init_from": str(tmp_path / "old")}
    kernel = begun(small_run(layer, other), tmp_path / "new").state.policy.params["params"]
    kernel = kernel["policy_trunk"]["Dense_0"]["kernel"]
    old = load_policy(tmp_path / "old").params.params["params"]["policy_trunk"]["Dense_0"]
    assert (np.abs(kernel).sum(1) > 0).sum() == 2 < len(kernel)  # the clock's
    np.testing.assert_array_equal(kernel[:2], old["kernel"][:2])


def test_a_run_killed_at_once_does_not_need_the_other_one(source, small_run, tmp_path):
    first = Trainer(small_run({"init_from": str(source)}), tmp_path / "new")
    stop_after(first, 1)
    first.run()
    assert 0 in first.folder.checkpoints.steps()


def test_a_resumed_run_does_not_need_the_other_one(source, small_run, tmp_path):
    config = small_run({"init_from": str(source)})
    first = Trainer(config, tmp_path / "new")
    assert first.run() == 0
    shutil.rmtree(source)
    longer = small_run({"init_from": str(source), "total_timesteps": 1024})
    again = Trainer(longer, tmp_path / "new", resume=True)
    assert again.run() == 0 and again.progress.timesteps == 1024


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        (
            {"ppo": {"network": {"policy_hidden": [9]}}},
            r"network.policy_hidden \[8\], but this run has \[9\]",
        ),
        ({"ppo": {"network": {"memory": "gru"}}}, "network.memory none, but this run has gru"),
        ({"ppo": {"normalize_observation": False}}, "normalize_observation: yes in .* but no in"),
        ({"env": {"name": "pendulum"}}, "has no action with a name of this task's actions"),
        ({"init_from": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_what_does_not_fit_is_refused(settings, pattern, source, small_run, tmp_path):
    config = small_run({"init_from": str(source)}, settings)
    with pytest.raises(UserError, match=pattern):
        Trainer(config, tmp_path / "new")
