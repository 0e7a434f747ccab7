"""The mathematics against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from jaxrl.rl import losses, normalizer, schedules
from jaxrl.rl.advantages import generalized_advantages
from jaxrl.rl.distributions import Gaussian, Normal, TanhNormal, Together


def reference_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """For each step: the sum of discounted TD errors up to the episode's end."""
    advantage = np.zeros_like(reward)
    steps, envs = reward.shape
    for n in range(envs):
        for t in range(steps):
            weight, total = 1.0, 0.0
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, n] else next_value[k, n]
                total += weight * (reward[k, n] + gamma * bootstrap - value[k, n])
                if terminated[k, n] or truncated[k, n]:
                    break
                weight *= gamma * lam
            advantage[t, n] = total
    return advantage


def test_gae_equals_the_sum_of_discounted_errors():
    rng = np.random.default_rng(0)
    shape = (20, 7)
    reward, value, next_value = rng.normal(size=(3, *shape))
    terminated = rng.random(shape) < 0.1
    truncated = (rng.random(shape) < 0.1) & ~terminated
    found = generalized_advantages(
        *map(jnp.asarray, (reward, value, next_value, terminated, truncated)),
        gamma=0.97,
        gae_lambda=0.9,
    )
    wanted = reference_gae(reward, value, next_value, terminated, truncated, 0.97, 0.9)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_nothing_crosses_an_episode_border():
    reward = np.zeros((6, 1))
    value = np.zeros((6, 1))
    ends = np.zeros((6, 1), bool)
    ends[2] = True
    for terminated, truncated in ((ends, ~ends & False), (~ends & False, ends)):
        late = reward.copy()
        late[3:] = 1e6  # the next episode's riches
        found = generalized_advantages(
            *map(jnp.asarray, (late, value, value, terminated, truncated)),
            gamma=0.99,
            gae_lambda=0.95,
        )
        assert (np.asarray(found)[:3] == 0).all()


def test_normaliser_equals_numpy_on_the_same_data():
    rng = np.random.default_rng(1)
    data = rng.normal([3.0, -50.0], [0.1, 20.0], size=(40, 8, 2)).astype(np.float32)
    state = normalizer.init(jnp.zeros(2))
    for batch in data.reshape(5, 8, 8, 2):
        state = jax.jit(normalizer.update)(state, jnp.asarray(batch))
    flat = data.reshape(-1, 2)
    assert float(state.count) == len(flat)
    np.testing.assert_allclose(state.mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.variance, flat.var(0), rtol=1e-4)
    scaled = normalizer.normalize(state, jnp.asarray(flat))
    np.testing.assert_allclose(scaled.std(0), 1.0, rtol=1e-3)


def test_normaliser_takes_dictionaries_and_starts_as_identity():
    sample = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = normalizer.init(sample)
    same = normalizer.normalize(state, sample)
    np.testing.assert_allclose(same["a"], 1.0, rtol=1e-5)
    state = normalizer.update(state, {"a": jnp.ones((4, 3)), "b": jnp.arange(4.0)})
    assert float(state.mean["b"]) == 1.5


def test_gaussian_log_prob_and_entropy_equal_scipy():
    mean, std = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    g = Gaussian(jnp.asarray(mean), jnp.log(jnp.asarray(std)))
    x = np.array([0.1, 0.7])
    np.testing.assert_allclose(
        Normal.log_prob(g, jnp.asarray(x)), stats.norm.logpdf(x, mean, std).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        Normal.entropy(g, jax.random.key(0)), stats.norm.entropy(mean, std).sum(), rtol=1e-5
    )


def test_alike_things_explore_alike():
    """Two things with three components, then three things with one component."""
    rho, rng = 0.7, np.random.default_rng(0)
    two, three = (rho + (1 - rho) * np.eye(n) for n in (2, 3))
    correlation = linalg.block_diag(np.kron(two, np.eye(3)), three)
    mean, std = rng.normal(size=9), np.exp(rng.normal(size=9))
    wanted = stats.multivariate_normal(mean, correlation * np.outer(std, std))
    together = Together([(2, 3), (3, 1)], rho)
    g = Gaussian(jnp.asarray(mean), jnp.log(jnp.asarray(std)))
    raw = together.sample(g, jnp.asarray(rng.normal(size=(20000, 9))))
    np.testing.assert_allclose(together.log_prob(g, raw[:9]), wanted.logpdf(raw[:9]), rtol=1e-4)
    np.testing.assert_allclose(together.entropy(g, jax.random.key(0)), wanted.entropy(), rtol=1e-5)
    np.testing.assert_allclose(np.corrcoef(raw.T), correlation, atol=0.03)


def test_squashed_density_integrates_to_one_and_entropy_matches_it():
    g = Gaussian(jnp.array([0.4]), jnp.log(jnp.array([0.8])))
    raw = jnp.linspace(-8, 8, 20001)[:, None]
    action = np.asarray(TanhNormal.action(raw))[:, 0].astype(np.float64)
    log_density = np.asarray(jax.vmap(lambda r: TanhNormal.log_prob(g, r))(raw), np.float64)
    # In raw coordinates: p(a) da = p(a) (1 - a^2) draw.
    raw64 = np.asarray(raw)[:, 0].astype(np.float64)
    weight = np.exp(log_density) * (1 - np.tanh(raw64) ** 2)
    assert np.trapezoid(weight, raw64) == pytest.approx(1.0, abs=1e-3)
    wanted = -np.trapezoid(weight * log_density, raw64)
    keys = jax.random.split(jax.random.key(0), 20000)
    found = jax.vmap(lambda k: TanhNormal.entropy(g, k))(keys).mean()
    assert float(found) == pytest.approx(wanted, abs=0.02)
    assert np.isfinite(log_density).all() and np.abs(action).max() <= 1.0


def test_clipped_surrogate_and_value_loss_equal_their_formulas():
    rng = np.random.default_rng(2)
    log_ratio, advantage = rng.normal(size=(2, 100)) * [[0.3], [1.0]]
    ratio = np.exp(log_ratio)
    wanted = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    found = losses.clipped_surrogate(jnp.asarray(log_ratio), jnp.asarray(advantage), 0.2)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    value, target, old = rng.normal(size=(3, 100))
    near = old + np.clip(value - old, -0.1, 0.1)
    wanted = np.maximum((value - target) ** 2, (near - target) ** 2)
    found = losses.value_loss(*map(jnp.asarray, (value, target, old)), 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    plain = losses.value_loss(*map(jnp.asarray, (value, target, old)), None)
    np.testing.assert_allclose(plain, (value - target) ** 2, rtol=1e-4)


def test_approximate_kl_estimates_the_divergence_of_two_gaussians():
    rng = np.random.default_rng(3)
    x = rng.normal(size=200_000)
    log_ratio = stats.norm.logpdf(x, 0.1, 1.1) - stats.norm.logpdf(x)
    wanted = np.log(1.1) + (1 + 0.1**2) / (2 * 1.1**2) - 0.5
    found = float(losses.approximate_kl(jnp.asarray(log_ratio)).mean())
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "at", "wanted"),
    [
        ("constant", 0.7, 1.0),
        ("linear", 0.5, 0.55),
        ("cosine", 1.0, 0.1),
        ("cosine", 0.5, 0.55),
        ("piecewise", 0.3, 1.0),
        ("piecewise", 0.6, 0.5),
        ("piecewise", 0.9, 0.1),
    ],
)
def test_schedules(kind, at, wanted):
    found = schedules.factor(
        kind, jnp.float32(at), final=0.1, boundaries=(0.5, 0.8), factors=(0.5, 0.1)
    )
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def running(batches):
    """Statistics after batches [K, B, ...]."""
    start = normalizer.init(jnp.zeros(batches.shape[2:]))
    update = jax.jit(
        lambda s, b: jax.lax.scan(lambda s, x: (normalizer.update(s, x), None), s, b)[0]
    )
    return update(start, jnp.asarray(batches, jnp.float32))


@pytest.mark.parametrize("where", [0, 5])  # in the first batch, or in a later one
@pytest.mark.parametrize("value", [1e6, -1e6, 5e5])
def test_an_absurd_value_blinds_no_statistics(where, value):
    rng = np.random.default_rng(0)
    batches = 3.0 + 2.0 * rng.normal(size=(40, 512, 3))
    batches[where, 7, 1] = value
    found = running(batches)
    assert np.abs(np.asarray(found.mean) - 3.0).max() < 0.2
    assert np.sqrt(found.variance).max() < 6.0 and np.sqrt(found.variance).min() > 1.9


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_sensible_values_of_any_size_are_taken_as_they_are(scale):
    rng = np.random.default_rng(1)
    batches = scale * (50.0 + rng.normal(size=(20, 256, 2)))
    found = running(batches)
    flat = batches.reshape(-1, 2)
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(found.variance), flat.std(0), rtol=1e-2)


def test_what_begins_to_move_late_is_followed():
    rng = np.random.default_rng(2)
    batches = np.zeros((60, 128, 1))
    batches[20:] = 1e4 + 1e3 * rng.normal(size=(40, 128, 1))
    found = running(batches)
    assert 3e3 < float(found.mean[0]) < 1e4 and 2e3 < float(np.sqrt(found.variance[0])) < 1e4


def test_statistics_of_billions_of_samples_do_not_drift():
    """Near the count from which on float32 no longer grows, and where shares round to nothing."""
    key = jax.random.key(0)
    start = normalizer.RunningStatistics(
        count=jnp.float32(64 * normalizer.MEMORY),
        mean=jnp.array([1.0, 4.0]),
        variance=jnp.array([4.0, 0.25]),
    )

    def step(carry, t):
        x = jnp.array([1.0, 4.0]) + jnp.array([2.0, 0.5]) * jax.random.normal(
            jax.random.fold_in(key, t), (64, 2)
        )
        return normalizer.update(carry, x), None

    end = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(400_000))[0])(start)
    np.testing.assert_allclose(end.mean, [1.0, 4.0], rtol=0.03)
    np.testing.assert_allclose(end.variance, [4.0, 0.25], rtol=0.03)
    assert end.count == start.count
