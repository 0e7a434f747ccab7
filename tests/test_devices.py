"""Runs over several devices: what they compute, what they share, and what they save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import devices
from jaxrl.config import resolve
from jaxrl.errors import UserError
from jaxrl.population import Population
from jaxrl.rl import normalizer
from jaxrl.rl.returns import ReturnScale
from jaxrl.runs import make_algorithm, number_of_devices
from jaxrl.trainer import Trainer
from tests.test_checkpoint import in_two_parts, leaves, stop_after

OFF_POLICY = {"batch_size": 16, "learning_starts": 32, "buffer_size": 512, "num_steps": 8}


def spread(function, *arguments, axes):
    """The function on four devices, over which its arguments are split along axes (-1: copied)."""
    specs = tuple(devices.spec(axis) for axis in axes)
    mapped = jax.shard_map(
        function, mesh=devices.mesh(4), in_specs=specs, out_specs=jax.P(), check_vma=False
    )
    return jax.jit(mapped)(*arguments)


def close(one, two):
    for a, b in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_an_update_of_four_devices_is_that_of_one(algo):
    """On the same samples, with everything that an algorithm averages over a batch."""
    layer = {"env": {"name": "pendulum"}, "algo": algo, "num_envs": 16, "devices": 1}
    config = resolve(layer, {algo: {} if algo == "ppo" else OFF_POLICY}, platform="none")
    algorithm = make_algorithm(config)
    state, key = algorithm.init(jax.random.key(0)), jax.random.key(1)
    if algo == "ppo":
        rows = fake(jax.eval_shape(lambda: ppo_rows(algorithm, state)))
        carry = state.policy.params, state.learner
        arguments = state, carry, rows, jnp.float32(1e-3), key
        update = algorithm._update
        axes = (-1, -1, 0, -1, -1)
    else:  # an update without sampled actions, whose random numbers would differ
        batch = fake(jax.eval_shape(lambda: sample(algorithm, state, key)))
        target = jnp.arange(16.0)[:, None]

        def update(state, batch, target):
            return devices.mean(
                jax.grad(algorithm._critic_loss, has_aux=True)(
                    state.learner.critic, state, batch, target
                )
            )

        arguments, axes = (state, batch, target), (-1, 0, 0)
    one = jax.jit(update)(*arguments)
    close(one, spread(update, *arguments, axes=axes))


def fake(shapes):
    """Random arrays of these shapes."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(lambda x: jax.random.uniform(next(keys), x.shape, minval=-1.0), shapes)


def ppo_rows(algorithm, state):
    from jaxrl.runtime.compiled import collect

    state, rollout, _ = collect(algorithm, state, jax.random.key(0))
    batch, memory = algorithm._batch(state, rollout)
    return algorithm._minibatches(batch, memory)[1](jnp.arange(32))


def sample(algorithm, state, key):
    return algorithm.replay.sample(state.replay, key, 16, gamma=0.99)


def test_statistics_of_four_devices_are_those_of_one():
    x = jax.random.normal(jax.random.key(0), (5, 64, 3)) * 3 + 1
    start = normalizer.init(jnp.zeros(3))
    for _ in range(3):
        one = normalizer.update(start, x)
        four = spread(normalizer.update, start, x, axes=(-1, 1))
        close(one, four)
        start = one
    scale, done = ReturnScale.init(64), jnp.zeros((5, 64), bool)

    def statistics(running, reward, done):
        return scale.replace(running=running).update(reward, done, gamma=0.9).statistics

    arguments = scale.running, x[..., 0], done
    close(statistics(*arguments), spread(statistics, *arguments, axes=(0, 1, 1)))


def config_of(small_run, count, *layers):
    return small_run({"num_envs": 16, "devices": count}, *layers)


def test_each_device_has_its_own_worlds_starts_and_noise(small_run, tmp_path):
    trainer = Trainer(config_of(small_run, 4), tmp_path / "run")
    starts = np.asarray(trainer.state.envs.worlds.physics[:, 0])
    assert len(np.unique(starts)) == 16
    state, (metrics, episodes, finite) = trainer.training.run(trainer.state, 3)
    assert len(np.unique(np.asarray(state.envs.worlds.physics[:, 0]))) == 16
    assert state.envs.steps.sharding.spec == jax.P("devices")
    for x in jax.tree.leaves((state.policy, state.learner)):
        copies = [np.asarray(shard.data) for shard in x.addressable_shards]
        assert len(copies) == 4 and all((copy == copies[0]).all() for copy in copies)
    assert int(episodes.count) == 16 * 24 // 10 - 16 or int(episodes.count) > 0
    assert finite.all() and np.isfinite(metrics["train/loss"])


@pytest.mark.parametrize("algo", ["ppo", pytest.param("td3", marks=pytest.mark.slow)])
def test_a_run_on_four_devices_resumes_bit_for_bit(algo, small_run, tmp_path):
    layer = {"algo": algo, "td3": OFF_POLICY} if algo != "ppo" else {}
    in_two_parts(config_of(small_run, 4, layer), tmp_path)


@pytest.mark.parametrize(("before", "after"), [pytest.param(4, 1, marks=pytest.mark.slow), (1, 4)])
def test_a_checkpoint_does_not_depend_on_the_number_of_devices(before, after, small_run, tmp_path):
    layer = {"algo": "sac", "sac": OFF_POLICY}
    first = Trainer(config_of(small_run, before, layer), tmp_path / "run")
    stop_after(first, 2)
    assert first.run() == 143
    second = Trainer(config_of(small_run, after, layer), tmp_path / "run", resume=True)
    for one, two in zip(leaves(first.state), leaves(second.state), strict=True):
        np.testing.assert_array_equal(one, two)
    assert second.run() == 0
    seen = np.asarray(second.state.replay.obs["float32"][:, :, 0]).T
    assert (second.state.replay.inserted * 16) == second.progress.timesteps
    assert seen.shape == (16, 512 // 16)


def test_a_population_on_devices_is_its_members_alone(small_run, tmp_path):
    runs = {}
    for seeds in (1, 2):
        trainer = Trainer(config_of(small_run, 2, {"num_seeds": seeds}), tmp_path / str(seeds))
        assert trainer.run() == 0
        runs[seeds] = trainer.state
    for alone, both in zip(leaves(runs[1].policy), leaves(runs[2].policy), strict=True):
        np.testing.assert_allclose(alone, both[0], rtol=1e-4, atol=1e-5)


def test_the_curriculum_counts_the_episodes_of_all_devices():
    layer = {"env": {"name": "franka_reach", "engine": "c"}, "num_envs": 16, "devices": 4}
    settings = {"env": {"curriculum": {"start": [0.2]}}, "ppo": {"num_steps": 50}}
    population = Population(resolve(layer, settings, platform="none"))
    run = jax.jit(population.on_devices(lambda state, _: (population.step(state)[0], 0.0)))
    state = population.init()
    before = state.envs.starts.number.sum() + state.envs.starts.used.sum()
    for _ in range(4):
        state = run(state, 0)[0]
    taken = state.envs.starts.number.sum() + state.envs.starts.used.sum() - before
    full = int(taken) - 16  # the first episodes of all worlds were staggered
    assert full > 0 and float(state.envs.curriculum.episodes) == full


def test_the_number_of_devices_is_chosen_or_refused(monkeypatch):
    def chosen(**settings):
        base = {"env": {"name": "ballbot", "engine": "mjx"}}
        return number_of_devices(resolve(base, settings, platform="none"))

    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert chosen(num_envs=256) == 4
    assert chosen(num_envs=192) == 4 and chosen(num_envs=96) == 3 and chosen(num_envs=32) == 1
    assert chosen(num_envs=256, env={"engine": "c"}) == 1
    assert chosen(num_envs=256, devices=2, env={"engine": "c"}) == 2
    for settings, said in (
        ({"devices": 5}, "devices: got 5, but JAX finds 4"),
        ({"devices": 3, "num_envs": 256}, "num_envs: 256 worlds cannot be split over 3"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(**settings)
