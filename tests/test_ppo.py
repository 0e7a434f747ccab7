"""PPO: what it bootstraps from, what it learns, and that a bad world cannot spoil it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algos import PPO, PPOConfig
from jaxrl.envs import ArraySpec
from jaxrl.errors import UserError
from jaxrl.options import build
from jaxrl.runtime.compiled import collect, iterate
from tests.test_rl import reference_gae
from tests.toys import Chooser, Countdown, Fragile

SMALL = {"network": {"policy_hidden": [16], "value_hidden": [16]}}


def make(env, num_envs=4, iterations=10, **settings):
    worlds = env.runtime().worlds(num_envs)
    return PPO(build(PPOConfig, SMALL | settings), env, worlds, iterations)


@pytest.mark.parametrize("env", [Countdown(episode_length=3), Countdown(7, ends_at=5)])
def test_targets_use_the_value_of_the_true_final_observation(env, monkeypatch):
    algo = make(env, num_steps=16)
    state = algo.init(jax.random.key(0))
    _, rollout, _ = collect(algo, state, jax.random.key(2))
    # Value an observation by a formula that tells every start and time apart.
    monkeypatch.setattr(
        algo.policy, "values", lambda policy, obs: (3.0 * obs[..., 0] + obs[..., 1], None)
    )
    batch, _ = algo._batch(state, rollout)

    obs = np.asarray(rollout.obs)
    value = 3.0 * obs[..., 0] + obs[..., 1]
    next_value = value + 1.0  # the same start, one step later: never the next episode's
    wanted = reference_gae(
        np.ones_like(value),
        value,
        next_value,
        np.asarray(rollout.terminated),
        np.asarray(rollout.truncated),
        algo.config.gamma,
        algo.config.gae_lambda,
    )
    assert rollout.truncated.any() != (env.ends_at > 0) or rollout.terminated.any()
    np.testing.assert_allclose(batch.advantage, wanted, rtol=1e-4, atol=1e-4)


def value_after_training(env):
    algo = make(
        env, 32, 150, num_steps=16, gamma=0.8, learning_rate=5e-3, normalize_advantage=False
    )
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: iterate(algo, s), s, length=150)[0])
    state = train(algo.init(jax.random.key(0)))
    obs = jnp.stack([jnp.full(10, 0.5), jnp.arange(10.0)], axis=1)
    return np.asarray(algo.policy.values(state.policy, obs)[0])


def test_a_time_limit_is_not_an_end_but_termination_is():
    """Reward 1 for ever is worth 1 / (1 - gamma) at any time; eight steps of it are not."""
    endless = value_after_training(Countdown(episode_length=10))
    np.testing.assert_allclose(endless, 5.0, atol=0.3)
    ends = value_after_training(Countdown(episode_length=20, ends_at=8))
    wanted = (1 - 0.8 ** (8 - np.arange(8))) / (1 - 0.8)
    np.testing.assert_allclose(ends[:8], wanted, atol=0.3)


def test_nonfinite_worlds_reach_neither_normaliser_nor_gradient():
    algo = make(Fragile(), 32, num_steps=8, normalize_reward=True)
    state = algo.init(jax.random.key(0))
    step = jax.jit(partial(iterate, algo))
    broken = 0
    for _ in range(4):
        state, (metrics, episodes) = step(state)
        broken += int(episodes.nonfinite)
        assert all(np.isfinite(v) for v in metrics.values())
    assert broken > 0
    for leaf in jax.tree.leaves((state.policy, state.learner, state.return_scale)):
        assert np.isfinite(leaf).all()


def test_the_same_seed_trains_the_same_and_another_does_not():
    algo = make(Countdown(), num_steps=8)
    step = jax.jit(lambda key: iterate(algo, algo.init(key))[0].policy.params)
    first, again, other = (step(jax.random.key(s)) for s in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, other))


@dataclasses.dataclass(frozen=True)
class Seen(Countdown):
    """A countdown with a dictionary observation; the clock is for the critic only."""

    @property
    def observation_spec(self):
        return {"noise": ArraySpec((1,)), "clock": ArraySpec((1,))}

    def reset(self, key):
        state = super().reset(key)
        return state.replace(obs={"noise": state.obs[:1], "clock": state.obs[1:]})

    def step(self, state, action):
        new = super().step(state, action)
        return new.replace(obs={"noise": new.obs[:1], "clock": new.obs[1:]})


def test_the_critic_may_see_other_keys_than_the_policy():
    network = {"policy_keys": ["noise"], "value_keys": ["clock", "noise"]}
    algo = make(Seen(), num_steps=8, network=network | SMALL["network"])
    state = jax.jit(lambda k: iterate(algo, algo.init(k))[0])(jax.random.key(0))
    params = state.policy.params["params"]
    assert params["policy_trunk"]["Dense_0"]["kernel"].shape == (1, 16)
    assert params["value_trunk"]["Dense_0"]["kernel"].shape == (2, 16)


@pytest.mark.parametrize(
    "network",
    [
        {"shared_trunk": True},
        {"state_dependent_std": True},
        {"distribution": "tanh_normal"},
        {"layer_norm": True, "activation": "swish"},
    ],
)
def test_network_options_train(network):
    algo = make(
        Countdown(),
        num_steps=8,
        network=SMALL["network"] | network,
        value_clip_range=0.2,
        entropy_coef=0.01,
        weight_decay=0.01,
    )
    state, (metrics, _) = jax.jit(lambda k: iterate(algo, algo.init(k)))(jax.random.key(0))
    assert np.isfinite(metrics["train/loss"])
    assert ("value_trunk" in state.policy.params["params"]) != network.get("shared_trunk", False)


def test_target_kl_stops_updates():
    free = make(Countdown(), num_steps=16, learning_rate=0.05)
    held = make(Countdown(), num_steps=16, learning_rate=0.05, target_kl=1e-4)
    start = free.init(jax.random.key(0))
    after_free = jax.jit(partial(iterate, free))(start)[0].learner[1].count
    after_held = jax.jit(partial(iterate, held))(start)[0].learner[1].count
    assert int(after_free) == 16
    assert 1 <= int(after_held) < 16


def test_means_outside_of_the_bounds_come_back():
    def mean_after(**settings):
        algo = make(Countdown(), num_steps=16, learning_rate=0.02, **settings)
        state = algo.init(jax.random.key(0))
        params = state.policy.params["params"]
        far = params | {"mean_head": params["mean_head"] | {"bias": jnp.array([3.0])}}
        state = state.replace(policy=state.policy.replace(params={"params": far}))
        step = jax.jit(lambda s: iterate(algo, s)[0])
        for _ in range(10):
            state = step(state)
        return algo.policy.gaussian(state.policy, state.envs.obs)[0].mean.mean()

    assert mean_after(bounds_coef=1.0) < 1.2
    assert mean_after() > 2.0


@pytest.mark.parametrize(
    ("task", "network", "pattern"),
    [
        (Countdown(), {"distribution": "tanh_normal"}, "network.distribution normal"),
        (Chooser(), {}, "continuous actions"),
    ],
)
def test_the_weight_of_the_bounds_is_refused_where_there_are_none(task, network, pattern):
    with pytest.raises(UserError, match=rf"ppo.bounds_coef: needs .*{pattern}"):
        make(task, bounds_coef=0.1, network=network)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"ppo.num_minibatches.*4 x 5 = 20.*3 minibatches"):
        make(Countdown(), num_steps=5, num_minibatches=3)
