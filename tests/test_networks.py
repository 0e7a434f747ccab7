"""Networks that fit the observation: memory, images, frozen parts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from benchmarks.senses import Chase, Recall
from jaxrl import envs
from jaxrl.algos import PPO, SAC, PPOConfig, SACConfig
from jaxrl.envs import ArraySpec
from jaxrl.errors import UserError
from jaxrl.nets import NetworkConfig
from jaxrl.nets.encoders import ENCODERS
from jaxrl.options import build
from jaxrl.policy import Policy
from jaxrl.runtime.compiled import collect, iterate
from jaxrl.trainer import Trainer
from tests.test_checkpoint import in_two_parts
from tests.toys import Countdown

GRU = {"policy_hidden": [16], "value_hidden": [16], "memory": "gru", "memory_size": 8}
CNN = {"policy_hidden": [16], "value_hidden": [16], "image_channels": [4], "image_features": 8}


def make(env, num_envs=4, algo=PPO, config=PPOConfig, **settings):
    return algo(build(config, settings), env, env.runtime().worlds(num_envs), 10)


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    known = envs.registry._registered | {"Recall": Recall, "Chase": Chase}
    monkeypatch.setattr(envs.registry, "_registered", known)


def test_a_sequence_is_what_its_steps_are_one_by_one():
    spec = Countdown().observation_spec
    policy = Policy(build(NetworkConfig, GRU), spec, Countdown().action_spec)
    state = policy.state(policy.init(jax.random.key(0), value=True))
    obs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    reset = jax.random.bernoulli(jax.random.key(2), 0.4, (6, 3))
    start = jax.tree.map(lambda x: x + 0.3, policy.memory(3))
    whole, after = policy.gaussians(state, obs, start, reset)
    memory = start
    for t in range(6):
        step, memory = policy.gaussian(state, obs[t], policy.forget(memory, reset[t]))
        np.testing.assert_allclose(whole.mean[t], step.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["policy"], memory["policy"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("env", [Countdown(episode_length=3), Countdown(7, ends_at=5)])
def test_values_with_a_memory_are_those_of_each_world_in_order(env, shared):
    """What follows a step is valued with the memory of the same episode, whatever begins next."""
    algo = make(env, num_steps=8, network=GRU | {"shared_trunk": shared})
    state = algo.init(jax.random.key(0))
    state, rollout, _ = collect(algo, state, jax.random.key(3))
    value, following, _, _ = algo._values_in_order(state, rollout)
    memory = algo.policy.memory(4)
    done = np.asarray(rollout.terminated | rollout.truncated)
    finals = np.zeros(4, int)
    for t in range(8):
        seen = rollout.obs[t][None]
        none = jnp.zeros((1, 4), bool)
        own, states = algo.policy.values(state.policy, seen, memory, none)
        np.testing.assert_allclose(value[t], own[0], rtol=1e-4, atol=1e-5)
        owner = "policy" if shared else "value"
        memory = memory | {owner: states[0]}
        after = np.array(rollout.obs[t + 1] if t < 7 else rollout.last_obs)
        for world in np.flatnonzero(rollout.truncated[t]):
            after[world] = rollout.limit_obs[finals[world], world]
            finals[world] += 1
        wanted, _ = algo.policy.values(state.policy, jnp.asarray(after)[None], memory, none)
        counts = ~np.asarray(rollout.terminated[t])
        np.testing.assert_allclose(following[t][counts], wanted[0][counts], rtol=1e-4, atol=1e-5)
        memory = algo.policy.forget(memory, jnp.asarray(done[t]))
    assert done.any()


@pytest.mark.parametrize(("memory", "least", "most"), [("gru", 0.9, 1.0), ("none", 0.0, 0.7)])
def test_what_was_seen_once_is_recalled_by_memory_alone(tmp_path, memory, least, most):
    ppo = {"num_steps": 8, "learning_rate": 5e-3, "network": GRU | {"memory": memory}}
    run = jaxrl.train(
        Recall(episode_length=4),
        num_envs=64,
        total_timesteps=64 * 8 * 60,
        out=str(tmp_path / "run"),
        ppo=ppo,
        eval={"every": 64 * 8 * 30, "final_episodes": 200, "best_by": "success_rate"},
        log={"tensorboard": False},
        progress=False,
    )
    assert least <= run.summary["success"]["mean"] <= most


def test_memory_is_saved_resumed_loaded_and_forgotten(small_run, tmp_path):
    again = in_two_parts(small_run({"ppo": {"network": GRU}}), tmp_path)
    assert np.abs(again.state.memory["policy"]).max() > 0

    policy = jaxrl.load(tmp_path / "parts")
    obs = np.array([0.3, 1.0], np.float32)
    one, two = policy(obs), policy(obs)
    assert one.shape == (1,) and (one != two).all()
    policy.reset()
    np.testing.assert_array_equal(policy(obs), one)
    many = np.stack([obs, obs, obs])
    start, later = policy(many), policy(many)
    policy.reset([True, False, False])
    mixed = policy(many)
    np.testing.assert_allclose(mixed[0], start[0], rtol=1e-6)
    assert (mixed[1] != later[1]).all()


def test_a_population_has_memories_too(small_run, tmp_path):
    config = small_run({"ppo": {"network": GRU}, "num_seeds": 2})
    trainer = Trainer(config, tmp_path)
    assert trainer.run() == 0
    assert trainer.state.memory["policy"].shape == (2, 8, 8)


def test_images_go_through_convolutions_and_are_not_normalised():
    algo = make(Chase(size=8), network=CNN, num_steps=8)
    state, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    params = state.policy.params["params"]
    kernel = params["policy_encoder"]["part_observation"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 1, 4)
    assert jax.tree.leaves(state.policy.normalizer.mean) == []
    assert np.isfinite(metrics["train/loss"])
    black = algo.policy(state.policy, jnp.zeros((2, 8, 8, 1), jnp.uint8))[0]
    white = algo.policy(state.policy, jnp.full((2, 8, 8, 1), 255, jnp.uint8))[0]
    assert not np.allclose(black, white)


def test_images_of_past_steps_are_channels_and_have_no_noise():
    wrap = {"history": 2, "observation_noise": [0.5]}
    task = envs.Wrapped(Chase(size=8), build(envs.WrapConfig, wrap))
    assert task.observation_spec.shape == (8, 8, 2)
    start = task.reset(jax.random.key(0))
    state = task.step(start, jnp.ones(2))
    assert state.obs.shape == (8, 8, 2) and state.obs.dtype == jnp.uint8
    np.testing.assert_array_equal(start.obs[..., 1], state.obs[..., 0])
    assert not np.array_equal(state.obs[..., 0], state.obs[..., 1])
    algo = make(task, network=CNN, num_steps=8)
    _, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    assert np.isfinite(metrics["train/loss"])


@dataclasses.dataclass(frozen=True)
class Both(Chase):
    """A picture and a vector."""

    @property
    def observation_spec(self):
        return {"camera": super().observation_spec, "place": jaxrl.ArraySpec((2,))}

    def reset(self, key):
        state = super().reset(key)
        return state.replace(obs={"camera": state.obs, "place": 100 * state.physics})

    def step(self, state, action):
        new = super().step(state, action)
        return new.replace(obs={"camera": new.obs, "place": 100 * new.physics})


def test_parts_have_encoders_of_their_own_also_in_critics_and_replay():
    network = CNN | {"encoders": ["place=mlp"], "value_keys": ["place"]}
    algo = make(
        Both(size=8), 8, SAC, SACConfig, network=network, buffer_size=800, learning_starts=16,
        num_steps=8, batch_size=16,
    )  # fmt: skip
    state, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    encoder = state.policy.params["params"]["policy_encoder"]
    assert set(encoder) == {"part_camera", "part_place"}
    assert set(state.learner.critic["params"]["encoder"]) == {"part_place"}
    assert set(state.policy.normalizer.mean) == {"place"}
    assert set(state.replay.obs) == {"uint8", "float32"}
    assert np.isfinite(metrics["train/critic_loss"])


def test_keypoints_are_where_in_the_image_something_is():
    """The network as it begins is changed to one that sees the brightest pixel."""
    spec = jaxrl.ArraySpec((16, 24, 1), 0, 255, dtype="uint8")
    config = NetworkConfig(image_channels=(1,), encoders=("observation=keypoints",))
    module = ENCODERS["keypoints"](spec, config)
    image = jnp.zeros(spec.shape, jnp.uint8)
    params = module.init(jax.random.key(0), image)["params"]
    assert module.apply({"params": params}, image).shape == (2,)
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = params | {"Conv_0": {"kernel": middle, "bias": jnp.zeros(1)}}
    for row, column in ((0, 0), (5, 3), (7, 11)):  # places after the convolution: 8 x 12
        seen = image.at[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].set(255)
        place = module.apply({"params": params}, seen[None, None])[0, 0]
        expected = [2 * row / 7 - 1, 2 * column / 11 - 1]
        np.testing.assert_allclose(place, expected, atol=1e-3)


def test_frozen_parts_stay_as_they_are():
    frozen = {"policy_hidden": [8, 8], "value_hidden": [8], "frozen": ["policy_trunk/Dense_0"]}
    algo = make(Countdown(), num_steps=8, network=frozen, weight_decay=0.1)
    start = algo.init(jax.random.key(0))
    state, _ = jax.jit(partial(iterate, algo))(start)
    before, after = (s.policy.params["params"]["policy_trunk"] for s in (start, state))
    np.testing.assert_array_equal(before["Dense_0"]["kernel"], after["Dense_0"]["kernel"])
    assert (before["Dense_1"]["kernel"] != after["Dense_1"]["kernel"]).any()


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"network": {"frozen": ["eyes"]}}, r"ppo.network.frozen: .*no part 'eyes' \(they have: "),
        ({"network": {"encoders": ["eyes=mlp"]}}, r"ppo.network.encoders: got 'eyes=mlp'"),
        ({"network": {"encoders": ["nothing"]}}, r"the encoders none, mlp, cnn"),
        ({"network": {"encoders": ["cnn"]}}, r"cnn needs an image \[height, width, channels\]"),
        ({"network": {"encoders": ["keypoints"]}}, "keypoints needs an image"),
        ({"network": {"memory": "gru"}, "num_minibatches": 3}, r"num_envs = 4 worlds cannot"),
    ],
)
def test_networks_that_cannot_be_made_are_refused(settings, pattern):
    with pytest.raises(UserError, match=pattern):
        make(Countdown(), **settings).init(jax.random.key(0))


def test_only_ppo_has_a_memory():
    with pytest.raises(UserError, match=r"sac.network.memory: only ppo supports it"):
        make(Countdown(), 4, SAC, SACConfig, network={"memory": "gru"})


def grouped(**settings):
    parts = {
        "robots": ArraySpec((4, 5)),
        "spheres": ArraySpec((2, 3)),
        "world": ArraySpec((2,)),
    }
    network = NetworkConfig(
        policy_hidden=(16,), value_hidden=(16,), groups=("robots=8", "spheres=6"), **settings
    )
    return Policy(network, parts, ArraySpec((14,), -1.0, 1.0))


def test_all_rows_of_a_group_have_the_same_weights():
    """If robots change places, their actions change places, and the value stays."""
    policy = grouped()
    state = policy.state(policy.init(jax.random.key(0), value=True))
    keys = jax.random.split(jax.random.key(1), 3)
    obs = {
        "robots": jax.random.normal(keys[0], (7, 4, 5)),
        "spheres": jax.random.normal(keys[1], (7, 2, 3)),
        "world": jax.random.normal(keys[2], (7, 2)),
    }
    order = jnp.array([2, 0, 3, 1])
    other = obs | {"robots": obs["robots"][:, order], "spheres": obs["spheres"][:, ::-1]}
    one, two = (policy.gaussian(state, x)[0].mean for x in (obs, other))
    assert one.shape == (7, 14)
    robots, spheres = one[:, :8].reshape(7, 4, 2), one[:, 8:].reshape(7, 2, 3)
    moved = robots[:, order].reshape(7, -1), spheres[:, ::-1].reshape(7, -1)
    expected = jnp.concatenate(moved, axis=1)
    np.testing.assert_allclose(two, expected, atol=1e-5)
    assert np.abs(robots - robots[:, order]).min() > 0
    values = [policy.values(state, x)[0] for x in (obs, other)]
    np.testing.assert_allclose(*values, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"groups": ("robot=8",)}, "groups: got 'robot=8', expected PART=NUMBER .*robots, spheres"),
        ({"groups": ("robots=7",)}, "that its rows share evenly"),
        ({"groups": ("world=2",)}, "with a part of the shape"),
        ({"groups": ("robots=8",)}, "8 components of the action, but it has 14"),
        ({"memory": "gru"}, "groups: cannot be used together with memory"),
        ({"shared_trunk": True}, "groups: cannot be used together with shared_trunk"),
        ({"groups": (), "group_noise": 0.5}, "group_noise: needs groups"),
    ],
)
def test_groups_that_do_not_fit_are_refused(settings, pattern):
    network = dataclasses.replace(grouped().config, **settings)
    with pytest.raises(UserError, match=pattern):
        Policy(network, grouped().observation, grouped().action)


def test_choices_have_no_noise_in_common():
    network = dataclasses.replace(grouped().config, group_noise=0.5)
    with pytest.raises(UserError, match="group_noise: needs groups, and the distribution normal"):
        Policy(network, grouped().observation, ArraySpec((14,), discrete=True))
