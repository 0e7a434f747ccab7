"""Population-based training."""

import jax
import numpy as np
import pytest

from jaxrl.errors import UserError
from jaxrl.pbt import Evolution, PBTConfig
from jaxrl.population import Population
from jaxrl.reporting.reading import read_rows
from tests.test_checkpoint import assert_same, in_two_parts
from tests.test_transfer import SAC

EVOLVING = {
    "num_seeds": 4,
    "pbt": {"settings": ["ppo.learning_rate=1e-4:1e-2", "ppo.gamma=0.9:0.99"]},
}


def test_the_worst_members_continue_from_the_best(small_run):
    population = Population(small_run(EVOLVING, {"num_seeds": 8}))
    state = population.init()
    before = jax.device_get(state.hyper)
    assert len({*np.asarray(before["learning_rate"]).tolist()}) == 8
    assert all(1e-4 <= x <= 1e-2 for x in before["learning_rate"])
    scores = [3.0, 1.0, float("nan"), 8.0, 5.0, 4.0, 7.0, 6.0]
    after, moved = population.evolution.step(state, scores, [0, 100])
    assert set(moved) == {2, 1} and set(moved.values()) <= {3, 6}
    for i in range(8):
        source = moved.get(i, i)
        rows = zip(jax.tree.leaves(after.policy), jax.tree.leaves(state.policy), strict=True)
        for new, old in rows:
            np.testing.assert_array_equal(new[i], old[source])
        for name in ("learning_rate", "gamma"):
            ratio = float(after.hyper[name][i] / before[name][source])
            if i not in moved:
                assert ratio == 1.0
            elif name == "learning_rate":
                low, high = 1e-4 / before[name][source], 1e-2 / before[name][source]
                wanted = [np.clip(r, low, high) for r in (1.25, 0.8)]
                assert min(abs(ratio - w) for w in wanted) < 1e-5
        np.testing.assert_array_equal(after.hyper["clip_range"][i], before["clip_range"][i])
    np.testing.assert_array_equal(after.envs.obs, state.envs.obs)  # each keeps its worlds
    again, _ = population.evolution.step(state, scores, [0, 100])
    assert_same(again, after)


@pytest.mark.parametrize("algo", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
def test_an_evolving_run_is_resumed_bit_for_bit(algo, small_run, tmp_path):
    sac = SAC | {"pbt": {"settings": ["sac.learning_rate=1e-4:1e-2"]}}
    in_two_parts(small_run(EVOLVING, sac if algo == "sac" else {}), tmp_path)
    rates = [
        [row["hyper/learning_rate"] for row in read_rows(path / "progress.csv")]
        for path in sorted((tmp_path / "whole/members").iterdir())
    ]
    start = [rates[i][0] for i in range(4)]
    assert len({*start}) == 4
    assert any(row[-1] != row[0] for row in rates)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"pbt": {"settings": ["ppo.learning_rate=1e-4"]}}, "expected KEY=LOW:HIGH"),
        ({"pbt": {"settings": ["ppo.num_epochs=1:4"]}}, r"and one of ppo\.learning_rate"),
        ({"pbt": {"settings": ["learning_rate=1e-4:1e-2"]}}, "expected KEY=LOW:HIGH"),
        ({"num_seeds": 2}, "needs num_seeds of at least 4"),
    ],
)
def test_settings_that_cannot_evolve(settings, pattern, small_run):
    with pytest.raises(UserError, match=pattern):
        Population(small_run(EVOLVING, settings))


def test_starts_are_in_the_limits():
    evolution = Evolution(PBTConfig(settings=("ppo.gamma=0.9:0.99",)), "ppo", ["gamma"])
    values = [evolution.start("gamma", seed) for seed in range(50)]
    assert 0.9 <= min(values) < 0.91 and 0.98 < max(values) <= 0.99
