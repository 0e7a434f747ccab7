"""Runs that begin with the networks of another run (`init_from`)."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.callbacks import Callback
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


class Alike(Countdown):
    """A countdown of two robots, which act alike."""

    @property
    def observation_spec(self):
        return {"clock": super().observation_spec, "robots": ArraySpec((2, 3))}

    @property
    def action_spec(self):
        return ArraySpec((2,), -1.0, 1.0)

    def reset(self, key):
        return _alike(super().reset(key))

    def step(self, state, action):
        return _alike(super().step(state, action))


def _alike(state):
    robots = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    return state.replace(obs={"clock": state.obs, "robots": robots})


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


envs.register("alike", Alike)
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
    assert (
        f"begins with policy, value, normalizer of {source}; nothing is new"
        in capfd.readouterr().err
    )
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
    old = Trainer(small_run(td3, {"num_seeds": 1}), tmp_path / "td3", resume=True)
    old.close()
    for one, two in (
        (new.state.policy.params, old.state.policy.params),
        (new.state.learner.extra, old.state.learner.extra),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_array_equal(x.reshape(-1, *y.shape)[-1], y), one, two
        )
    # Without a training state, the slow policy begins as the policy.
    shutil.rmtree(tmp_path / "td3/checkpoints")
    new = begun(small_run(td3, {"init_from": str(tmp_path / "td3")}), tmp_path / "alone")
    same(new.state.learner.extra, new.state.policy.params)


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


# -- parts ----------------------------------------------------------------------------

SAC = {
    "algo": "sac",
    "sac": {
        "network": {"policy_hidden": [8], "value_hidden": [8]},
        "num_steps": 8,
        "learning_starts": 16,
        "buffer_size": 4000,
    },
}


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_optimiser_can_be_carried_over(source, small_run, tmp_path):
    parts = ["policy", "value", "normalizer", "std", "optimizer"]
    new = begun(small_run({"init_from": str(source), "init_parts": parts}), tmp_path / "new")
    old = Trainer(small_run(), source, resume=True)
    old.close()
    same(new.state.policy, old.state.policy)
    same(new.state.learner, old.state.learner)
    shutil.rmtree(source / "checkpoints")
    with pytest.raises(UserError, match=r"optimizer: .* has no training state of ppo; leave"):
        begun(small_run({"init_from": str(source), "init_parts": parts}), tmp_path / "other")


def test_a_part_that_is_not_named_is_new(source, small_run, tmp_path, capfd):
    fresh = begun(small_run(), tmp_path / "fresh").state.policy
    old = load_policy(source).params
    config = small_run({"init_from": str(source), "init_parts": ["value", "std"]})
    new = begun(config, tmp_path / "new").state.policy
    assert f"begins with value, std of {source}; nothing is new" in capfd.readouterr().err
    for name, module in new.params["params"].items():
        expected = old if name.startswith("value") or name == "log_std" else fresh
        same(module, expected.params["params"][name])
    same(new.normalizer, fresh.normalizer)


def test_networks_of_groups(small_run, tmp_path, capfd):
    layer = {"env": {"name": "alike"}, "ppo": {"network": {"groups": ["robots=2"]}}}
    assert Trainer(small_run(layer), tmp_path / "old").run() == 0
    old = load_policy(tmp_path / "old").params.params["params"]
    begins = {"init_from": str(tmp_path / "old"), "seed": 5}
    new = begun(small_run(layer, begins), tmp_path / "new").state.policy.params["params"]
    assert "; nothing is new\n" in capfd.readouterr().err
    assert (new.pop("log_std_robots") == 0).all() and (old.pop("log_std_robots") != 0).any()
    same(new, old)
    with pytest.raises(UserError, match=r"network.groups .*give both the same"):
        begun(small_run({"env": {"name": "alike"}}, begins), tmp_path / "other")


def test_only_the_image_encoder(small_run, tmp_path):
    layer = {"env": {"name": "seeing"}, "ppo": {"network": {"image_channels": [4]}}}
    assert Trainer(small_run(layer), tmp_path / "old").run() == 0
    wider = {"ppo": {"network": {"policy_hidden": [9]}}}
    begins = {"init_from": str(tmp_path / "old"), "init_parts": ["encoder"]}
    new = begun(small_run(layer, wider, begins), tmp_path / "new").state.policy.params["params"]
    old = load_policy(tmp_path / "old").params.params["params"]
    for name in ("policy_encoder", "value_encoder"):
        same(new[name], old[name])
    assert not np.array_equal(
        new["value_trunk"]["Dense_0"]["kernel"], old["value_trunk"]["Dense_0"]["kernel"]
    )


def test_critics_are_carried_over_from_a_training_checkpoint(small_run, tmp_path, capfd):
    assert Trainer(small_run(SAC), tmp_path / "old").run() == 0
    begins = {"init_from": str(tmp_path / "old")}
    new = begun(small_run(SAC, begins), tmp_path / "new")
    assert "; nothing is new" in capfd.readouterr().err
    old = Trainer(small_run(SAC), tmp_path / "old", resume=True)
    old.close()
    same(new.state.policy.params, old.state.policy.params)
    for name in ("critic", "target"):
        same(getattr(new.state.learner, name), getattr(old.state.learner, name))
    assert new.state.learner.extra.log == old.state.learner.extra.log != 0.0
    # Its first actions are the policy's, not random ones.
    assert new.state.learner.updates == 1
    # A critic of more observations and actions at first has the same values.
    wide = begun(small_run(SAC, begins, {"env": {"name": "wider"}}), tmp_path / "wide")
    kernel = wide.state.learner.critic["params"]["MLP_0"]["Dense_0"]["kernel"]
    was = old.state.learner.critic["params"]["MLP_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 7, 8) and was.shape == (2, 3, 8)
    assert (np.abs(kernel).sum((0, 2)) > 0).sum() == 3
    # A policy alone has no critics.
    shutil.rmtree(tmp_path / "old/checkpoints")
    capfd.readouterr()
    begun(small_run(SAC, begins), tmp_path / "alone")
    assert "; new: critics/" in capfd.readouterr().err


def test_frozen_parts_learn_after_a_part_of_the_run(source, small_run, tmp_path):
    held = {"frozen": ["policy_trunk"], "frozen_until": 0.5}
    config = small_run({"init_from": str(source), "ppo": {"network": held}, "chunk": 1})
    trunks = []

    class Watch(Callback):
        def on_chunk(self, trainer, row):
            trunks.append(jax.device_get(trainer.state.policy.params["params"]["policy_trunk"]))

    assert Trainer(config, tmp_path / "new", callbacks=[Watch()]).run() == 0
    old = load_policy(source).params.params["params"]["policy_trunk"]
    for trunk in trunks[: len(trunks) // 2]:
        same(trunk, old)
    for trunk in trunks[len(trunks) // 2 :]:
        assert not np.array_equal(trunk["Dense_0"]["kernel"], old["Dense_0"]["kernel"])
