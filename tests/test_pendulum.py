"""The pendulum is Gymnasium's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx.pendulum import Pendulum
from jaxrl.commands.evaluate import baselines
from jaxrl.envs import Task


def test_contract():
    task = Pendulum()
    assert isinstance(task, Task)
    state = task.reset(jax.random.key(0))
    after = jax.jit(task.step)(state, jnp.ones(1))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert float(after.reward) == pytest.approx(float(sum(after.metrics.values())))


def test_steps_rewards_and_limits_are_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium")
    other = gymnasium.make("Pendulum-v1")
    other.reset(seed=0)
    task, rng = Pendulum(), np.random.default_rng(0)
    assert (task.episode_length, task.control_dt) == (other.spec.max_episode_steps, 0.05)
    assert task.max_torque == other.action_space.high[0]

    starts = jax.vmap(task.reset)(jax.random.split(jax.random.key(0), 10))
    actions = rng.uniform(-1.2, 1.2, (40, 10, 1)).astype(np.float32)
    step = jax.vmap(task.step)
    _, (before, after) = jax.lax.scan(lambda s, a: (step(s, a), (s, step(s, a))), starts, actions)
    for t, i in np.ndindex(40, 10):
        other.unwrapped.state = np.asarray(before.physics[t, i], np.float64)
        obs, reward, terminated, _, _ = other.unwrapped.step(2.0 * actions[t, i])
        np.testing.assert_allclose(after.obs[t, i], obs, atol=1e-4)
        np.testing.assert_allclose(after.reward[t, i], reward, atol=1e-4)
        assert not terminated and not after.terminated[t, i]


def test_starts_fill_gymnasiums_range():
    physics = jax.vmap(Pendulum().reset)(jax.random.split(jax.random.key(0), 4096)).physics
    np.testing.assert_allclose(np.abs(physics).max(0), [np.pi, 1.0], atol=0.01)
    np.testing.assert_allclose(physics.std(0), np.array([np.pi, 1.0]) / np.sqrt(3), rtol=0.05)


def test_the_scripted_controller_swings_up_and_stays():
    evaluator = Pendulum().runtime().evaluator(baselines(Pendulum())["swing_up"], 64)
    returns = evaluator(None, jax.random.key(0))
    assert returns[:, 0].mean() > -250
    longer = Pendulum(episode_length=400)
    state = jax.vmap(longer.reset)(jax.random.split(jax.random.key(1), 64))
    act = longer.baselines()["swing_up"]
    end = jax.lax.fori_loop(
        0, 400, lambda _, s: jax.vmap(lambda s: longer.step(s, act(s)))(s), state
    )
    assert (end.obs[:, 0] > 0.99).all()


def test_pictures():
    frames = Pendulum().render(np.array([[0.0, 0.0], [0.5, 0.0], [np.pi / 2, 0.0]]), 2)
    assert frames.shape == (2, 256, 256, 3) and frames.dtype == np.uint8
    rod = frames[..., 1] < 255
    assert rod[0, :128].any() and not rod[0, 140:].any()  # up
    assert rod[1, :, :128].any() and not rod[1, :, 140:].any()  # to the left, as Gymnasium draws
