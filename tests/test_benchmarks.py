"""The benchmarks reach into the algorithms, so they must follow when these change."""

from __future__ import annotations

from benchmarks import throughput

SMALL = {
    "env": {"name": "countdown"},
    "num_envs": 4,
    "ppo": {"num_steps": 4, "network": {"policy_hidden": [4], "value_hidden": [4]}},
}


def test_each_part_of_an_update_is_timed():
    timed = throughput.measure(SMALL, "none", repeats=1)

    assert all(seconds > 0 for seconds in timed["seconds"].values())
    assert timed["train_steps_per_second"] > 0
