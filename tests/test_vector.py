"""Time limits, fresh resets, non-finite worlds, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import Vector
from tests.toys import Countdown, Fragile


def play(vector, steps, *, stagger=False, refill_every=8):
    """Timesteps [steps, N] and observations before each step."""
    state = vector.init(jax.random.key(0), stagger=stagger)
    step = jax.jit(vector.step)
    seen, out = [], []
    for t in range(steps):
        if t % refill_every == 0:
            state = vector.refill(state, jax.random.key(100 + t))
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


@pytest.mark.parametrize("num_envs", [1, 4])
def test_episodes_in_a_row_start_differently(num_envs):
    vector = Vector(Countdown(episode_length=1), num_envs, starts=2)
    _, seen = play(vector, 64, refill_every=16)
    starts = seen[:, :, 0]
    assert (starts[1:] != starts[:-1]).all()


def test_no_start_is_shared_while_the_fresh_ones_last():
    vector = Vector(Countdown(episode_length=4), 16, starts=2)
    _, seen = play(vector, 64, refill_every=8)  # two episodes end between refills
    starts = seen[::4, :, 0].ravel()
    assert len(np.unique(starts)) == starts.size


def test_staggered_first_episodes_do_not_end_together_and_do_not_count():
    vector = Vector(Countdown(episode_length=50), 256)
    steps, _ = play(vector, 50, stagger=True, refill_every=100)
    assert 0 < steps.truncated[0].sum() < 32
    lengths = steps.episode[..., 1][steps.ended]
    assert (lengths == 50).all()


def test_nonfinite_world_is_ended_counted_and_contained():
    vector = Vector(Fragile(episode_length=20), 64)
    steps, seen = play(vector, 40, refill_every=4)
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


def test_too_few_starts_are_refused():
    with pytest.raises(ValueError, match="starts"):
        Vector(Countdown(), 2, starts=1)
