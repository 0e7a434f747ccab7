"""SAC and TD3: their formulas against numpy, and what they learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algos import SAC, TD3, SACConfig, TD3Config
from jaxrl.config import resolve
from jaxrl.envs import ArraySpec
from jaxrl.errors import UserError
from jaxrl.options import build
from jaxrl.population import Population
from jaxrl.rl import losses
from jaxrl.rl.augmentation import random_shift
from jaxrl.rl.replay import Transitions
from jaxrl.rl.values import CategoricalValue, project
from jaxrl.runtime.compiled import iterate
from tests.test_ppo import Seen
from tests.toys import Absurd, Countdown, Fragile

KINDS = {"sac": (SAC, SACConfig), "td3": (TD3, TD3Config)}
SMALL = {
    "network": {"policy_hidden": [16], "value_hidden": [16]},
    "batch_size": 32,
    "buffer_size": 4000,
    "learning_starts": 16,
    "num_steps": 8,
}


def make(kind, env=None, num_envs=4, iterations=10, **settings):
    algo, config = KINDS[kind]
    network = SMALL["network"] | settings.pop("network", {})
    settings = build(config, SMALL | settings | {"network": network})
    env = env or Countdown()
    return algo(settings, env, env.runtime().worlds(num_envs), iterations)


def some_batch(size=32):
    k = iter(jax.random.split(jax.random.key(7), 6))
    return Transitions(
        obs=jax.random.normal(next(k), (size, 2)),
        action=jax.random.uniform(next(k), (size, 1), minval=-1, maxval=1),
        reward=jax.random.normal(next(k), (size,)),
        discount=0.9 * jax.random.bernoulli(next(k), 0.8, (size,)),
        next_obs=jax.random.normal(next(k), (size, 2)),
    )


def started(algo):
    """A state with critics and policy away from their start."""
    state = algo.init(jax.random.key(0))

    def moved(tree, seed):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, moved)

    learner = state.learner.replace(critic=moved(state.learner.critic, 1))
    learner = learner.replace(target=moved(learner.critic, 2))
    policy = state.policy.replace(params=moved(state.policy.params, 3))
    return state.replace(policy=policy, learner=learner)


def numpy_critics(params, x, action):
    """[K, B, Z] of the critics, in numpy: one hidden layer of relu."""
    p = jax.tree.map(np.asarray, params["params"])
    x = np.concatenate([x, action], axis=-1)
    out = []
    for k in range(2):
        h = x @ p["MLP_0"]["Dense_0"]["kernel"][k] + p["MLP_0"]["Dense_0"]["bias"][k]
        out.append(np.maximum(h, 0) @ p["Dense_0"]["kernel"][k] + p["Dense_0"]["bias"][k])
    return np.stack(out)


def numpy_policy(params, x):
    """Mean, and log std where the policy has one, [B, A]."""
    p = jax.tree.map(np.asarray, params["params"])
    h = x @ p["policy_trunk"]["Dense_0"]["kernel"] + p["policy_trunk"]["Dense_0"]["bias"]
    h = np.maximum(h, 0)
    heads = [h @ p[n]["kernel"] + p[n]["bias"] for n in ("mean_head", "std_head") if n in p]
    return [heads[0], *(np.clip(s, -5, 2) for s in heads[1:])]


def numpy_sample(params, x, noise):
    mean, log_std = numpy_policy(params, x)
    raw = (mean + np.exp(log_std) * noise).astype(np.float64)
    density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    action = np.tanh(raw)
    return action, (density - np.log(1 - action**2)).sum(-1)


def test_sac_target_critic_and_policy_losses_against_numpy():
    algo = make("sac", normalize_observation=False)
    state, batch, key = started(algo), some_batch(), jax.random.key(5)
    learner, temperature = state.learner, float(jnp.exp(state.learner.extra.log))
    np.testing.assert_allclose(temperature, algo.config.initial_temperature, rtol=1e-6)

    noise = np.asarray(jax.random.normal(key, (32, 1)))
    action, log_prob = numpy_sample(state.policy.params, batch.next_obs, noise)
    q = numpy_critics(learner.target, batch.next_obs, action)[..., 0].min(0)
    wanted = batch.reward + batch.discount * (q - temperature * log_prob)
    carry = (state.policy.params, learner)
    target = algo._critic_target(state, carry, batch, key)
    np.testing.assert_allclose(target[:, 0], wanted, rtol=1e-4, atol=1e-5)

    loss, metrics = algo._critic_loss(learner.critic, state, batch, target)
    q = numpy_critics(learner.critic, batch.obs, batch.action)[..., 0]
    np.testing.assert_allclose(loss, 0.5 * ((q - wanted) ** 2).mean(1).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/q_value"], q.mean(), rtol=1e-4)

    loss, metrics = algo._policy_loss(state.policy.params, state, learner, batch, key)
    action, log_prob = numpy_sample(state.policy.params, batch.obs, noise)
    q = numpy_critics(learner.critic, batch.obs, action)[..., 0].min(0)
    np.testing.assert_allclose(loss, (temperature * log_prob - q).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/entropy"], -log_prob.mean(), rtol=1e-4)


def test_td3_target_and_policy_loss_against_numpy():
    algo = make("td3", normalize_observation=False)
    state, batch, key = started(algo), some_batch(), jax.random.key(5)
    learner = state.learner
    noise = np.clip(0.2 * np.asarray(jax.random.normal(key, (32, 1))), -0.5, 0.5)
    action = np.tanh(numpy_policy(learner.extra, batch.next_obs)[0])
    action = np.clip(action + noise, -1, 1)
    q = numpy_critics(learner.target, batch.next_obs, action)[..., 0].min(0)
    carry = (state.policy.params, learner)
    target = algo._critic_target(state, carry, batch, key)
    np.testing.assert_allclose(
        target[:, 0], batch.reward + batch.discount * q, rtol=1e-4, atol=1e-5
    )

    loss, _ = algo._policy_loss(state.policy.params, state, learner, batch, key)
    action = np.tanh(numpy_policy(state.policy.params, batch.obs)[0])
    q = numpy_critics(learner.critic, batch.obs, action)[..., 0].min(0)
    np.testing.assert_allclose(loss, -q.mean(), rtol=1e-4)


def test_the_temperature_follows_its_gradient():
    log, entropy, target = -1.3, 0.4, -1.0
    gradient = jax.grad(losses.temperature_loss)(log, entropy, target)
    np.testing.assert_allclose(gradient, np.exp(log) * (entropy - target), rtol=1e-6)
    algo = make("sac", target_entropy=-1.0)
    state = started(algo)
    rate = jnp.ones(())
    for entropy, sign in ((0.4, -1), (-3.0, 1)):  # too random: the temperature falls
        extra, _ = algo._update_extra(
            state.learner.extra, None, {"train/entropy": jnp.asarray(entropy)},
            hyper=state.hyper, rate=rate,
        )  # fmt: skip
        moved = float(
            extra.log - state.learner.extra.log
        )  # Adam's first step has the size of the rate
        np.testing.assert_allclose(moved, sign * algo.config.temperature_learning_rate, rtol=1e-3)


def reference_projection(values, probabilities, support):
    """Algorithm 1 of the paper, atom by atom."""
    out = np.zeros_like(probabilities)
    step = support[1] - support[0]
    for row in range(len(values)):
        for value, p in zip(values[row], probabilities[row], strict=True):
            b = (np.clip(value, support[0], support[-1]) - support[0]) / step
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                out[row, low] += p
            else:
                out[row, low] += p * (high - b)
                out[row, high] += p * (b - low)
    return out


def test_distributional_projection_and_losses_against_the_papers_loop():
    rng = np.random.default_rng(0)
    value = CategoricalValue(-2.0, 3.0, 11)
    support = np.asarray(value.support)
    head, reward = rng.normal(size=(50, 11)), 3 * rng.normal(size=50)
    discount = np.where(rng.random(50) < 0.2, 0.0, 0.9)
    p = np.exp(head) / np.exp(head).sum(1, keepdims=True)
    moved = reward[:, None] + discount[:, None] * support
    wanted = reference_projection(moved, p, support)
    ours = value.target(*map(jnp.asarray, (head, reward, discount)))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    np.testing.assert_allclose(ours.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(project(np.arange(11.0)[None], p[:1]), p[:1], atol=1e-5)
    np.testing.assert_allclose(value.mean(jnp.asarray(head)), p @ support, rtol=1e-4, atol=1e-5)
    wanted_loss = -(wanted * np.log(p)).sum(1)
    np.testing.assert_allclose(value.loss(jnp.asarray(head), ours), wanted_loss, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sac", "td3"])
def test_absurd_rewards_blind_neither_scale_nor_critics(kind):
    """A few rewards of -1e30 among many of 1, whose discounted sums spread by about 3."""
    algo = make(kind, Absurd(share=0.02), num_envs=32, normalize_reward=True)
    step, state = jax.jit(partial(iterate, algo)), algo.init(jax.random.key(0))
    cut = 0
    for _ in range(20):
        state, (metrics, episodes) = step(state)
        cut += int(episodes.out_of_range)
    assert cut > 0
    assert 1.0 < float(jnp.sqrt(state.return_scale.statistics.variance)) < 30.0
    assert np.sqrt(state.policy.normalizer.variance).max() < 10.0
    assert abs(float(metrics["train/q_value"])) < 100.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.policy, state.learner)))


@pytest.mark.parametrize("low", [-10_000.0, 0.0, 9_990.0])
def test_a_distributional_target_keeps_its_mass_and_mean_far_from_zero(low):
    rng = np.random.default_rng(1)
    value = CategoricalValue(low, low + 10.0, 51)
    head = rng.normal(size=(64, 51))
    discount = np.full(64, 0.99)
    reward = (1 - discount) * (low + 5.0) + rng.normal(size=64)  # returns stay on the support
    target = np.asarray(value.target(*map(jnp.asarray, (head, reward, discount))), np.float64)
    np.testing.assert_allclose(target.sum(-1), 1.0, atol=1e-5)
    p = np.exp(head) / np.exp(head).sum(-1, keepdims=True)
    places = np.arange(51) * 0.2  # above low
    moved = (reward - (1 - discount) * low)[:, None] + discount[:, None] * places
    np.testing.assert_allclose(
        (target * places).sum(-1), (p * moved.clip(0, 10)).sum(-1), atol=2e-3
    )


def distance(one, two):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, two))))


def test_targets_follow_slowly_and_td3_delays_them_with_its_policy():
    for kind, delayed in (("sac", False), ("td3", True)):
        algo = make(kind, tau=0.1, policy_delay=2)
        state, batch = started(algo), some_batch()
        carry = (state.policy.params, state.learner)
        update = jax.jit(algo._update)
        (params, one), metrics = update(state, carry, batch, jax.random.key(1))
        assert distance(one.critic, state.learner.critic) > 1e-4
        assert distance(params, state.policy.params) == 0
        assert np.isnan(metrics["train/actor_loss"]) and np.isfinite(metrics["train/critic_loss"])
        (params, two), metrics = update(state, (params, one), batch, jax.random.key(2))
        assert distance(params, state.policy.params) > 1e-5
        assert np.isfinite(metrics["train/actor_loss"])

        def follow(old, new):
            return jax.tree.map(lambda o, n: 0.9 * o + 0.1 * n, old, new)

        first = state.learner.target if delayed else follow(state.learner.target, one.critic)
        assert distance(one.target, first) < 1e-6
        assert distance(two.target, follow(first, two.critic)) < 1e-6
        if delayed:
            assert distance(two.extra, follow(state.learner.extra, params)) < 1e-6


def test_td3_explores_with_another_noise_in_each_world():
    algo = make("td3", num_envs=8, exploration_noise=0.2, exploration_noise_minimum=0.0)
    state = algo.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2000)
    obs = state.envs.obs
    actions = jax.vmap(lambda k: algo._explore(state, obs, k))(keys)
    noise = np.asarray(actions - algo.policy(state.policy, obs)[0])[..., 0]
    np.testing.assert_allclose(noise.std(0), 0.2 * (np.arange(8) + 0.5) / 8, rtol=0.1)


@pytest.mark.parametrize(("kind", "settings"), [("td3", {}), ("sac", {"num_atoms": 31})])
def test_a_time_limit_is_not_an_end_but_termination_is(kind, settings):
    """Reward 1 for ever is worth 1 / (1 - gamma) at any time; eight steps of it are not."""
    scale = {"initial_temperature": 1e-4, "temperature_learning_rate": 0} if kind == "sac" else {}

    def learned(env):
        algo = make(
            kind, env, 16, gamma=0.8, n_step=2, gradient_steps=4, learning_rate=1e-3, tau=0.05,
            critic_learning_rate=3e-3, value_range=[0, 8], num_steps=40, **scale, **settings,
        )  # fmt: skip
        train = jax.jit(lambda s: jax.lax.scan(lambda s, _: iterate(algo, s), s, length=10)[0])
        state = train(algo.init(jax.random.key(0)))
        obs = jnp.stack([jnp.full(8, 0.5), jnp.arange(8.0)], axis=1)
        action, _ = algo.policy(state.policy, obs)
        return algo.value.mean(algo._heads(state.learner.critic, state.policy, obs, action)).mean(0)

    np.testing.assert_allclose(learned(Countdown(episode_length=10)), 5.0, atol=0.5)
    wanted = (1 - 0.8 ** (8 - np.arange(8))) / (1 - 0.8)
    np.testing.assert_allclose(learned(Countdown(20, ends_at=8)), wanted, atol=0.5)


@pytest.mark.parametrize("kind", ["sac", "td3"])
def test_nonfinite_worlds_reach_no_part_of_the_state(kind):
    algo = make(kind, Fragile(), 16, normalize_reward=True, n_step=3)
    state, step, broken = algo.init(jax.random.key(0)), jax.jit(partial(iterate, algo)), 0
    for _ in range(4):
        state, (metrics, episodes) = step(state)
        broken += int(episodes.nonfinite)
    assert broken > 0 and np.isfinite(metrics["train/critic_loss"])
    for leaf in jax.tree.leaves((state.policy, state.learner, state.replay, state.return_scale)):
        assert np.isfinite(leaf).all()


def test_before_learning_starts_nothing_is_learned_and_nothing_is_claimed():
    algo = make("sac", learning_starts=48)  # 12 rows of 4 worlds; 8 an iteration
    start = algo.init(jax.random.key(0))
    step = jax.jit(partial(iterate, algo))
    state, (metrics, _) = step(start)
    assert metrics.pop("train/learning_rate") > 0
    assert all(np.isnan(v) for v in metrics.values())
    assert distance(state.policy.params, start.policy.params) == 0
    state, (metrics, _) = step(state)
    assert np.isfinite(metrics["train/critic_loss"]) and int(state.learner.updates) == 5


def test_observation_keys_and_storage_types():
    network = {"policy_keys": ["noise"], "value_keys": ["clock", "noise"]}
    algo = make("sac", Seen(), network=network, storage=["clock=uint8", "noise=bfloat16"])
    state, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    assert {kind: x.shape[-1] for kind, x in state.replay.obs.items()} == {
        "uint8": 1, "bfloat16": 1
    }  # fmt: skip
    assert np.isfinite(metrics["train/critic_loss"])
    assert state.policy.params["params"]["policy_trunk"]["Dense_0"]["kernel"].shape == (1, 16)


class Looking(Seen):
    """A countdown with an image, which shows in every pixel its place."""

    @property
    def observation_spec(self):
        image = ArraySpec((9, 7, 1), 0, 255, dtype="uint8")
        return super().observation_spec | {"image": image}

    def reset(self, key):
        state = super().reset(key)
        image = jnp.arange(63, dtype=jnp.uint8).reshape(9, 7, 1)
        return state.replace(obs=state.obs | {"image": image})

    def step(self, state, action):
        new = super().step(state, action)
        return new.replace(obs=new.obs | {"image": state.obs["image"]})


def test_images_are_shifted_in_updates_and_nothing_else_is():
    image = np.arange(63, dtype=np.uint8).reshape(9, 7, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    crops = {padded[i : i + 9, j : j + 7].tobytes() for i in range(5) for j in range(5)}
    shifted = jax.jit(lambda key: random_shift(key, jnp.tile(image, (400, 1, 1, 1)), 2))
    found = {x.tobytes() for x in np.asarray(shifted(jax.random.key(0)))}
    assert found == crops  # every shift occurs, and there is no other

    algo = make("sac", Looking(), image_shift=2, network={"image_channels": [4]})
    state, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    assert state.replay.obs["uint8"].shape[-1] == 63
    assert np.isfinite(metrics["train/critic_loss"])
    samples = algo.replay.sample(state.replay, jax.random.key(1), 50, gamma=0.9)
    moved = algo._shifted(samples, jax.random.key(2))
    assert {x.tobytes() for x in np.asarray(samples.obs["image"])} == {image.tobytes()}
    for old, new in ((samples.obs, moved.obs), (samples.next_obs, moved.next_obs)):
        assert len({x.tobytes() for x in np.asarray(new["image"])}) > 10
        for part in ("noise", "clock"):
            np.testing.assert_array_equal(old[part], new[part])
    assert (np.asarray(moved.obs["image"]) != np.asarray(moved.next_obs["image"])).any()


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"image_shift": 4}, r"sac.image_shift: got 4, but the observation has no images"),
        ({"buffer_size": 10}, r"sac.buffer_size: got 10, must be at least 16"),
        ({"storage": ["float12"]}, r"sac.storage: got \['float12'\]"),
        ({"storage": ["pixels=uint8"]}, r"sac.storage: .*none, it is one array"),
        ({"value_range": [2, 1]}, r"sac.value_range: got \[2.0, 1.0\]"),
        ({"network": {"distribution": "normal"}}, r"sac.network.distribution"),
        ({"network": {"shared_trunk": True}}, r"sac.network.shared_trunk"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, pattern):
    with pytest.raises(UserError, match=pattern):
        make("sac", **settings)


@pytest.mark.parametrize("kind", ["sac", pytest.param("td3", marks=pytest.mark.slow)])
def test_the_pendulum_is_swung_up(kind):
    """Zero torque earns about -1200, a perfect start to every episode about -150."""
    settings = {"env": {"name": "pendulum"}, "algo": kind, "eval": {"episodes": 32}}
    config = resolve(settings, platform="cpu")
    population = Population(config)
    algo = population.algo
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: iterate(algo, s), s, length=50)[0])
    state = train(jax.jit(population.init)())
    assert int(state.iteration) * algo.batch_size == 10_000
    returns = population.evaluator(config)(state.policy, jax.random.key(0))[:, 0]
    assert returns.mean() > -250
