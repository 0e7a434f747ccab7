"""What a resume changes, and what it leaves as it was."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml

from jaxrl import history
from jaxrl.checkpoint import Checkpointer
from jaxrl.commands import train
from jaxrl.config import read_yaml, write_yaml
from jaxrl.errors import UserError
from jaxrl.rhythm import Rhythm
from jaxrl.run_folder import Progress
from jaxrl.runs import load_policy
from jaxrl.trainer import Trainer, _words
from tests.test_checkpoint import ROOT, assert_same, leaves

HALF = {"total_timesteps": 256}


def trained(config, folder, **how):
    trainer = Trainer(config, folder, **how)
    assert trainer.run() == 0
    return trainer


def test_each_part_of_a_run_is_written_down(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/jaxrl/train.py", "--seed", "a b"])
    trained(small_run(HALF), tmp_path)
    trained(small_run({"ppo": {"gamma": 0.9}}), tmp_path, resume=True)
    first, second = yaml.safe_load((tmp_path / "history.yaml").read_text())
    assert (first["from_step"], second["from_step"]) == (0, 256)
    assert first["command"] == "python -m jaxrl.train --seed 'a b'"
    monkeypatch.setattr("sys.argv", ["/x/bin/jaxrl", "train", "--seed", "1"])
    assert history.command() == "jaxrl train --seed 1"
    monkeypatch.setattr("sys.argv", ["/x/jaxrl/__main__.py", "train", "--seed", "1"])
    assert history.command() == "python -m jaxrl train --seed 1"
    assert first["date"] and first["jax"] == jax.__version__
    assert "changed" not in first
    assert second["changed"] == {"total_timesteps": [256, 512], "ppo.gamma": [0.99, 0.9]}


def test_the_commit_is_of_the_folders_repository(tmp_path):
    def git(*words):
        name = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    assert history.commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    clean = history.commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert history.commit(tmp_path) == f"{clean}-dirty"


def test_a_refused_resume_leaves_the_run_as_it_was(small_run, tmp_path):
    trained(small_run(HALF), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    for other in (
        {"ppo": {"network": {"policy_hidden": [16]}}},  # does not fit
        {"total_timesteps": 256, "ppo": {"gamma": 0.5}},  # would change nothing
        {"eval": {"every": 0, "stop_at": 1.0}},  # refused when training begins
    ):
        with pytest.raises(UserError):
            Trainer(small_run(other), tmp_path, resume=True).run()
        after = {p: p.read_bytes() for p in before}
        assert after == before


def test_a_finished_run_says_so(small_run, tmp_path, capfd, monkeypatch):
    config = small_run(HALF)
    run = tmp_path / "run"
    trained(config, run)
    state = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
    assert train.main(["--resume", str(run)]) == 0  # it had no final evaluation yet
    assert "all of its 256 control steps have been trained" in capfd.readouterr().err
    assert (run / "eval" / "final.json").exists()
    assert {p: p.read_bytes() for p in state} == state
    with pytest.raises(UserError, match=r"a change of ppo.gamma has no effect; give a larger"):
        train.main(["--resume", str(run), "--ppo.gamma", "0.5"])


def test_another_task_begins_a_new_record_and_keeps_the_old_model(small_run, tmp_path, capfd):
    first = trained(small_run(HALF), tmp_path)
    assert first.progress.best == [10.0]
    harder = small_run({"env": {"name": "countdown", "episode_length": 4}})
    second = trained(harder, tmp_path, resume=True)
    assert second.progress.best == [4.0]  # 10 belongs to the other task
    said = capfd.readouterr().err
    assert "env.episode_length has changed from 10 to 4: scores from 256 control steps on" in said
    assert load_policy(tmp_path).config.env.episode_length == 4
    assert load_policy(tmp_path / "earlier" / "best").config.env.episode_length == 10


def test_another_learning_rate_keeps_the_record(small_run, tmp_path):
    trained(small_run(HALF), tmp_path)
    steps = Checkpointer(tmp_path / "best").steps()
    again = trained(small_run({"ppo": {"learning_rate": 1e-3}}), tmp_path, resume=True)
    assert again.progress.best == [10.0] and Checkpointer(tmp_path / "best").steps() == steps


def test_twice_the_steps_in_two_parts_are_one_run_without_a_schedule(small_run, tmp_path, capfd):
    whole = trained(small_run(), tmp_path / "whole")
    trained(small_run(HALF), tmp_path / "parts")
    parts = trained(small_run(), tmp_path / "parts", resume=True)
    assert_same(whole.state, parts.state)
    assert "schedule" not in capfd.readouterr().err


def test_with_a_schedule_they_are_not_and_the_resume_says_so(small_run, tmp_path, capfd):
    linear = {"ppo": {"schedule": {"kind": "linear"}}}
    whole = trained(small_run(linear), tmp_path / "whole")
    trained(small_run(HALF | linear), tmp_path / "parts")
    parts = trained(small_run(linear), tmp_path / "parts", resume=True)
    assert "ppo.schedule now spans 512 control steps" in capfd.readouterr().err
    same = [np.array_equal(a, b) for a, b in zip(leaves(whole.state), leaves(parts.state))]
    assert not all(same)


def test_a_run_has_one_trainer_at_a_time(small_run, tmp_path):
    first = Trainer(small_run(), tmp_path)
    with pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on "):
        Trainer(small_run(), tmp_path, resume=True)
    first.close()
    Trainer(small_run(), tmp_path).close()


def test_a_killed_trainer_leaves_no_lock(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from jaxrl import files; "
        "file = files.lock(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert ended.returncode == -9
    from jaxrl import files

    files.lock(tmp_path).close()


def test_a_renamed_checkpoint_is_noticed(small_run, tmp_path, capfd):
    trained(small_run(), tmp_path)
    os.rename(tmp_path / "checkpoints/512", tmp_path / "checkpoints/400")
    again = Trainer(small_run(), tmp_path, resume=True)
    assert again.progress.timesteps == 384
    assert "it was saved at step 512: the folder was renamed" in capfd.readouterr().err
    again.close()


@pytest.mark.parametrize("name", ["checkpoints", "best", "damaged", "earlier", "eval"])
def test_a_file_in_place_of_a_folder_is_named(small_run, tmp_path, name):
    (tmp_path / name).write_text("not a folder")
    with pytest.raises(UserError, match=rf"{name}: exists, but is not a folder"):
        Trainer(small_run(), tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "progress.csv", "history.yaml"])
def test_a_folder_in_place_of_a_file_is_named(small_run, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: exists, but is not a file"):
        Trainer(small_run(), tmp_path)


def test_strange_entries_among_checkpoints_do_no_harm(small_run, tmp_path):
    trained(small_run(HALF), tmp_path)
    (tmp_path / "checkpoints" / "999").write_text("a file named like a step")
    (tmp_path / "checkpoints" / "888").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert trained(small_run(), tmp_path, resume=True).progress.timesteps == 512


# -- counting ----------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "done"), [(1, 64), (64, 64), (200, 256), (320, 320)])
def test_a_run_is_as_long_as_asked_but_for_whole_iterations(small_run, tmp_path, asked, done):
    assert trained(small_run({"total_timesteps": asked}), tmp_path).progress.timesteps == done


def test_a_run_judges_itself_several_times_unless_told_otherwise(small_run):
    def every(**settings):
        return small_run({"eval": {"every": None, **settings}, "total_timesteps": 1000}).eval_every

    assert every() == 100
    assert every(episodes=10) == 200  # ten steps each: fewer, so as not to play more than it trains
    assert every(episodes=1000) == 333
    assert every(every=7) == 7 and every(every=0) == 0


def test_chunks_come_to_take_two_seconds():
    rhythm, seconds = Rhythm(None), 0.01  # of an iteration
    counts = []
    for _ in range(8):
        counts.append(rhythm.next(10_000))
        rhythm.took(30.0 if len(counts) == 1 else seconds * counts[-1])  # the first is compiled
    assert counts == [1, 1, 8, 64, 200, 200, 200, 200]
    assert rhythm.next(17) == 17
    fixed = Rhythm(5)
    assert [fixed.next(most) for most in (9, 3, 9)] == [5, 3, 5]


def test_runs_of_more_than_2_to_the_32_steps_are_judged_and_resumed(small_run, tmp_path):
    start = 2**40 - 2048
    large = {"num_envs": 64, "ppo": {"num_steps": 16}}
    long = small_run(large | {"total_timesteps": 2**40, "eval": {"every": 1024}})
    trainer = Trainer(long, tmp_path)
    trainer.progress = Progress(timesteps=start, best=[None])
    assert trainer.run() == 0
    assert trainer.progress.timesteps == 2**40
    again = Trainer(long, tmp_path, resume=True)
    assert again.finished
    again.close()
    assert _words(0) == [0] and _words(2**32 + 5) == [5, 1] and _words(2**70) == [0, 0, 64]


def test_configuration_reads_back_with_what_is_left_open(small_run, tmp_path):
    config = small_run({"chunk": None, "eval": {"every": None}, "checkpoint": {"every": None}})
    write_yaml(config, tmp_path / "config.yaml")
    assert small_run(read_yaml(tmp_path / "config.yaml")) == config


def test_a_setting_that_older_runs_do_not_have_had_its_default(small_run):
    config = small_run()
    now = config.to_dict()
    before = {key: value for key, value in now.items() if key != "num_seeds"}
    before["env"] = {"name": now["env"]["name"]}
    assert history.differences(before, now, config.defaults()) == {}
    before["env"] = {"name": now["env"]["name"], "ends_at": 3}
    changed = history.differences(before, now, config.defaults())
    assert changed == {"env.ends_at": [3, 0]}
