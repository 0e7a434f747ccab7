"""Populations: many runs in one program are the same runs."""

import csv
import json

import jax
import numpy as np
import pytest

from jaxrl import cli
from jaxrl.checkpoint import Checkpointer
from jaxrl.commands import evaluate, train
from jaxrl.errors import UserError
from jaxrl.logs.rows import mean_and_std
from jaxrl.population import Population, members
from jaxrl.runs import load_policy
from jaxrl.trainer import Trainer
from tests.test_checkpoint import assert_same, in_two_parts, stop_after

SAC = {
    "algo": "sac",
    "sac": {
        "num_steps": 8,
        "buffer_size": 256,
        "learning_starts": 32,
        "batch_size": 16,
        "network": {"policy_hidden": [8], "value_hidden": [8]},
    },
}


def close(many, alone, index):
    """Every number of a member against the same run by itself."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(many), jax.tree.leaves(alone), strict=True
    ):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a = a[index] if a.ndim > b.ndim else a
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("algo", [{}, SAC])
def test_members_are_the_same_as_runs_alone(algo, small_run):
    name = algo.get("algo", "ppo")
    config = small_run(
        algo, {"num_seeds": 2, "seed": 3, "sweep": [f"{name}.learning_rate=1e-3,1e-2"]}
    )
    population = Population(config)
    names = [member.name for member in population.members]
    assert names[:2] == ["learning_rate=0.001,seed=3", "learning_rate=0.001,seed=4"]
    assert len(names) == 4
    step = jax.jit(population.step)
    state = jax.jit(population.init)()
    for _ in range(6):
        state, _ = step(state)
    assert state.iteration.shape == ()
    for i in (0, 3):
        single = Population(population.members[i].config)
        own, alone = jax.jit(single.init)(), jax.jit(single.step)
        for _ in range(6):
            own, _ = alone(own)
        close(state, own, i)
    first, last = (population.split(state.policy.params)[i] for i in (0, 2))  # same seed
    assert not jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b), first, last))


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_population_logs_mean_and_spread_saves_each_and_resumes(small_run, tmp_path):
    in_two_parts(small_run(SAC, {"num_seeds": 3}), tmp_path)

    table = rows(tmp_path / "parts" / "progress.csv")
    own = [rows(tmp_path / f"parts/members/seed={s}/progress.csv") for s in range(3)]
    assert [len(t) for t in (table, *own)] == [4] * 4
    losses = [float(t[-1]["train/critic_loss"]) for t in own]
    assert len(set(losses)) == 3
    np.testing.assert_allclose(float(table[-1]["train/critic_loss"]), np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(float(table[-1]["train/critic_loss_std"]), np.std(losses), rtol=1e-4)
    for seed in range(3):
        trained = load_policy(tmp_path / f"parts/members/seed={seed}")
        assert trained.config.train.seed == seed and not trained.config.is_population


def test_a_member_that_diverges_leaves_the_others(small_run, tmp_path, capfd):
    config = small_run({"sweep": ["ppo.learning_rate=1e-3,1e30"], "log": {"console": True}})
    trainer = Trainer(config, tmp_path)
    assert trainer.run() == 0
    assert "member learning_rate=1e+30,seed=0 diverged" in capfd.readouterr().err
    last = rows(tmp_path / "progress.csv")[-1]
    good = rows(tmp_path / "members/learning_rate=0.001,seed=0/progress.csv")[-1]
    assert float(last["train/loss"]) == pytest.approx(float(good["train/loss"]))
    assert Checkpointer(tmp_path / "members/learning_rate=0.001,seed=0/best").steps()
    with pytest.raises(UserError, match="every member diverged"):
        Trainer(small_run({"sweep": ["ppo.learning_rate=1e30,2e30"]}), tmp_path / "all").run()


@pytest.mark.parametrize(
    ("sweep", "pattern"),
    [
        (
            "ppo.num_steps=8,16",
            r"got 'ppo.num_steps=8,16', expected KEY=.*ppo.learning_rate",
        ),
        ("ppo.gamma", r"sweep: got 'ppo.gamma', expected values"),
        ("ppo.gamma=.9,0.90", r"sweep: got .* two runs are the same"),
        (
            "ppo.gamma:ppo.clip_range=.9:.1,.99",
            r"expected values, such as ppo.gamma:ppo.clip_range=1:1,2:2",
        ),
        ("ppo.gamma:ppo.gamma=.9:.8", r"sweep: got ppo.gamma twice"),
        ("ppo.gamma=.9,2", r"ppo.gamma: got 2.0, must be at most 1"),
    ],
)
def test_what_cannot_be_swept_is_refused(sweep, pattern, small_run):
    with pytest.raises(UserError, match=pattern):
        members(small_run({"sweep": [sweep]}))


def test_settings_that_change_together(small_run):
    sweep = ["ppo.gamma:ppo.clip_range=.9:.1, .99:.2"]
    found = [m.config.train.ppo for m in members(small_run({"sweep": sweep, "num_seeds": 2}))]
    assert [(each.gamma, each.clip_range) for each in found] == [(0.9, 0.1)] * 2 + [(0.99, 0.2)] * 2


def test_spread_is_mean_and_std_of_what_is_known():
    row = mean_and_std([{"a": 1.0, "time/fps": 5.0}, {"a": 3.0, "time/fps": 5.0}])
    assert row == {"a": 2.0, "a_std": 1.0, "time/fps": 5.0}
    assert mean_and_std([{"a": 1.0}, {"a": float("nan")}])["a"] == 1.0


def test_the_commands_from_training_to_one_members_evaluation(tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    argv = [
        "--env.name", "countdown", "--num_envs", "8", "--total_timesteps", "128", "--chunk", "1",
        "--ppo.num_steps", "8", "--eval.every", "64", "--eval.final_episodes", "4", "--num_seeds",
        "2", "--sweep", "ppo.gamma=.9,.99", "--sweep", "ppo.clip_range=.1,.2", "--out", str(run),
    ]  # fmt: skip
    assert train.main(argv) == 0
    assert len(list((run / "members").iterdir())) == 8
    member = run / "members" / "gamma=0.9,clip_range=0.1,seed=0"
    assert json.loads((member / "eval" / "final.json").read_text())["episodes"] == 4
    assert "8 runs at once" in capfd.readouterr().err
    monkeypatch.setattr("sys.argv", ["evaluate", str(run)])
    with pytest.raises(SystemExit):
        cli.run(evaluate.main)
    assert "holds a population; choose a member: " in capfd.readouterr().err
    assert evaluate.main([str(member), "--episodes", "3"]) == 0


def test_a_replay_that_cannot_fit_is_refused_before_it_is_made(small_run):
    huge = {"sac": {"buffer_size": "10e9"}}
    with pytest.raises(UserError, match=r"sac.buffer_size: 10,000,000,000 control steps x 3.*GB"):
        Population(small_run(SAC, huge, {"num_seeds": 3}))


@pytest.mark.parametrize("algo", [SAC, {"algo": "td3", "td3": SAC["sac"]}])
def test_exact_resume_with_the_buffer(algo, small_run, tmp_path):
    whole = Trainer(small_run(algo), tmp_path / "a")
    assert whole.run() == 0
    first = Trainer(small_run(algo), tmp_path / "b")
    stop_after(first, 2)
    first.run()
    assert "replay" in {p.name for p in (tmp_path / "b/checkpoints/256").iterdir()}
    second = Trainer(small_run(algo), tmp_path / "b", resume=True)
    assert second.run() == 0
    assert_same(whole.state, second.state)


def test_a_resume_without_the_buffer_refills_it_and_says_so(small_run, tmp_path, capfd):
    without = small_run(SAC, {"checkpoint": {"replay": False}})
    third = Trainer(without, tmp_path / "c")
    stop_after(third, 2)
    third.run()
    assert "replay" not in {p.name for p in (tmp_path / "c/checkpoints/256").iterdir()}
    again = third
    for config in (without, small_run(SAC)):  # whether or not it is wanted now
        again.close()
        capfd.readouterr()
        again = Trainer(config, tmp_path / "c", resume=True)
        assert "plays 32 control steps to refill it" in capfd.readouterr().err
        assert int(again.state.replay.inserted) == 0
    updates = int(again.state.learner.updates)
    assert again.run() == 0
    # Four rows refill it, and the row after them is the first that learns.
    assert int(again.state.learner.updates) == updates + 256 // 8 - (32 // 8 - 1)


def test_what_is_no_whole_run_is_not_resumed(small_run, tmp_path):
    run = tmp_path / "run"
    Trainer(small_run({"num_seeds": 2}), run).run()
    with pytest.raises(UserError, match=r"only be resumed as a whole: --resume .*run$"):
        train.main(["--resume", str(run / "members" / "seed=1")])
    with pytest.raises(UserError, match="--num_seeds: cannot be changed together with --resume"):
        train.main(["--resume", str(run), "--num_seeds", "3"])
    (run / "checkpoints").rename(tmp_path / "gone")
    (run / "best").mkdir()
    with pytest.raises(UserError, match="holds a trained policy, but no training state"):
        train.main(["--resume", str(run)])


def test_another_buffer_is_refused_by_its_name(small_run, tmp_path):
    Trainer(small_run(SAC), tmp_path).run()
    with pytest.raises(UserError, match=r"with another buffer_size.*--checkpoint.replay false"):
        Trainer(small_run(SAC, {"sac": {"buffer_size": 512}}), tmp_path, resume=True)


def test_several_runs_need_evaluations(small_run, tmp_path):
    with pytest.raises(UserError, match=r"eval.every: got 0, must be above 0"):
        Trainer(small_run({"num_seeds": 2, "eval": {"every": 0}}), tmp_path).run()
