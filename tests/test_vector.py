"""Time limits, fresh resets, non-finite worlds, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import Vector
from jaxrl.envs.vector import LARGEST
from tests.toys import Absurd, Chancy, Countdown, Fragile, Stillborn


def play(vector, steps, *, stagger=False):
    """Timesteps [steps, N] and observations before each step."""
    state = vector.init(jax.random.key(0), stagger=stagger)
    step = jax.jit(vector.step)
    seen, out = [], []
    for _ in range(steps):
        seen.append(np.asarray(state.obs))
        state, timestep = step(state, jnp.zeros((vector.num_envs, 1)))
        out.append(jax.device_get(timestep))
    return jax.tree.map(lambda *x: np.stack(x), *out), np.stack(seen)


def test_time_limit_truncates_and_shows_the_true_final_observation():
    steps, seen = play(Vector(Countdown(episode_length=5), 3), 12)
    assert np.flatnonzero(steps.truncated[:, 0]).tolist() == [4, 9]
    assert not steps.terminated.any()
    assert (steps.final_obs[4, :, 1] == 5.0).all()  # not the next episode's 0
    assert (seen[5, :, 1] == 0.0).all()


def test_termination_is_not_truncation_even_at_the_limit():
    steps, _ = play(Vector(Countdown(episode_length=5, ends_at=5), 2), 6)
    assert steps.terminated[4].all() and not steps.truncated[4].any()


@pytest.mark.parametrize("num_envs", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 4])
def test_no_start_is_handed_out_twice(num_envs, length):
    vector = Vector(Countdown(episode_length=length), num_envs)
    _, seen = play(vector, 64)
    starts = seen[::length, :, 0].ravel()
    assert len(np.unique(starts)) == starts.size


def test_starts_do_not_depend_on_when_they_are_made():
    """The k-th start that is handed out is the same, whether or not others were made meanwhile."""
    vector = Vector(Chancy(p=0.2), 8)
    state = other = vector.init(jax.random.key(0))
    step = jax.jit(vector.step)
    renew = jax.jit(lambda state: vector._supply(state, jnp.array(8)))
    for t in range(60):
        if t % 3 == 0:  # as another member of a population would make it do
            other = other.replace(starts=renew(other))
        state, other = step(state, jnp.zeros((8, 1)))[0], step(other, jnp.zeros((8, 1)))[0]
        np.testing.assert_array_equal(state.obs, other.obs)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.5])
def test_episodes_that_end_by_chance_end_as_often_as_they_should(p):
    """Starts, or keys in `info`, that are handed out twice would bias this; all seeds alike."""
    vector = Vector(Chancy(p=p), 256)
    state = vector.init(jax.random.key(0))
    run = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: vector.step(s, jnp.zeros((256, 1))), s, length=1024)
    )
    ended = np.asarray(run(state)[1].terminated)
    assert ended.mean() / p == pytest.approx(1.0, abs=4 / np.sqrt(ended.size * p))


def test_starts_that_are_not_finite_are_drawn_again_and_counted():
    vector = Vector(Stillborn(episode_length=3), 64)
    state = vector.init(jax.random.key(0), stagger=False)
    assert 10 < int(state.redrawn) < 120  # half of the draws fail
    steps, seen = play(vector, 12)
    assert np.isfinite(seen).all() and not steps.nonfinite.any()


def test_absurd_values_are_cut_and_counted():
    steps, seen = play(Vector(Absurd(episode_length=20), 16), 20)
    low = seen[0, :, 0] < 0.5
    np.testing.assert_array_equal(steps.out_of_range[2], low)
    assert not steps.out_of_range[[0, 1, 3, 4]].any()
    for leaf in jax.tree.leaves((steps, seen)):
        assert np.abs(leaf).max() <= 4 * LARGEST
    assert not steps.terminated.any()


def test_staggered_first_episodes_do_not_end_together_and_do_not_count():
    vector = Vector(Countdown(episode_length=50), 256)
    steps, _ = play(vector, 50, stagger=True)
    assert 0 < steps.truncated[0].sum() < 32
    lengths = steps.episode[..., 1][steps.ended]
    assert (lengths == 50).all()


def test_nonfinite_world_is_ended_counted_and_contained():
    vector = Vector(Fragile(episode_length=20), 64)
    steps, seen = play(vector, 40)
    assert steps.nonfinite.any() and not steps.nonfinite.all()
    assert (steps.reward[steps.nonfinite] == 0.0).all()
    assert steps.terminated[steps.nonfinite].all()
    for leaf in jax.tree.leaves((steps, seen)):
        assert np.isfinite(leaf).all()


def test_episode_statistics_sum_average_and_keep_the_last():
    vector = Vector(Countdown(episode_length=9, ends_at=6), 2)
    steps, _ = play(vector, 6)
    row = dict(zip(vector.statistics, steps.episode[5, 0]))
    assert row == {"return": 6, "length": 6, "half": 0.5, "reward/one": 6, "success": 1}
    assert (steps.episode[:5] == 0).all()
