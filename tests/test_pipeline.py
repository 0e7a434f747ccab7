"""Pipelines: sessions in sequence, their criteria, and what an interruption leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from jaxrl import files, pipelines, strict_yaml, training
from jaxrl.commands import pipeline as command
from jaxrl.errors import UserError
from jaxrl.options import merge
from jaxrl.runs import load_policy
from jaxrl.trainer import Trainer
from tests.test_checkpoint import ROOT, assert_same, stop_after

SMALL = {
    "env": {"name": "countdown"},
    "num_envs": 8,
    "chunk": 2,
    "ppo": {"num_steps": 8, "network": {"policy_hidden": [8], "value_hidden": [8]}},
    "eval": {"every": 128, "episodes": 4, "final_episodes": 4},
    "checkpoint": {"every": 128},
    "log": {"console": False, "tensorboard": False},
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that writes a pipeline of these sessions and returns its configuration."""
    monkeypatch.setattr(pipelines.Pipeline, "_write_page", lambda self: None)
    file = tmp_path / "settings.yaml"
    file.write_text(strict_yaml.dump(SMALL))

    def config(*sessions, **settings):
        common = {"config": str(file), "timesteps": 256}
        path = tmp_path / "pipeline.yaml"
        rows = [common | session for session in sessions]
        path.write_text(strict_yaml.dump({"name": "test", "sessions": rows} | settings))
        return pipelines.read(path)

    return config


def run(config, folder, **how):
    """Runs a pipeline; returns its exit status, and its state."""
    pipeline = pipelines.Pipeline(config, folder, platform="none", **how)
    try:
        status = pipeline.run()
    finally:
        pipeline.close()
    return status, json.loads((folder / pipelines.STATE).read_text())


TWO = ({"name": "first"}, {"name": "second", "use_previous_checkpoint": True})


def test_a_session_begins_with_the_policy_of_the_one_before(make, tmp_path):
    status, state = run(make(*TWO), tmp_path / "p")
    assert status == 0 and state["status"] == "complete"
    assert state["sessions_completed"] == ["first", "second"]
    assert state["checkpoints"] == {"first": "first", "second": "second"}
    assert state["current_session"] is None
    config = yaml.safe_load((tmp_path / "p/second/config.yaml").read_text())
    assert config["init_from"] == str(tmp_path / "p/first")
    assert config["total_timesteps"] == 256
    report = json.loads((tmp_path / "p" / pipelines.REPORT).read_text())
    assert [s["status"] for s in report["sessions"]] == ["completed", "completed"]
    assert report["sessions"][1]["attempts"][0]["summary"]["return"]["mean"] == 10.0
    assert report["training_seconds"] > 0


def test_transfer_can_be_switched_off(make, tmp_path):
    run(make(*TWO, enable_transfer_learning=False), tmp_path / "p")
    config = yaml.safe_load((tmp_path / "p/second/config.yaml").read_text())
    assert config["init_from"] is None


def test_a_session_can_begin_with_any_earlier_one_or_a_path(make, tmp_path):
    run(make({"name": "a"}), tmp_path / "p")
    outside = str(tmp_path / "p" / "a")
    sessions = (
        {"name": "x"},
        {"name": "y", "checkpoint": outside},
        {"name": "z", "checkpoint": "x"},
    )
    run(make(*sessions), tmp_path / "q")
    begun = [
        yaml.safe_load((tmp_path / "q" / name / "config.yaml").read_text())["init_from"]
        for name in "xyz"
    ]
    assert begun == [None, outside, str(tmp_path / "q" / "x")]


def test_a_sessions_file_can_name_the_policy_that_it_begins_with(make, tmp_path):
    run(make({"name": "a"}), tmp_path / "p")
    source = str(tmp_path / "p/a")
    (tmp_path / "own.yaml").write_text(strict_yaml.dump(SMALL | {"init_from": source}))
    own = {"name": "b", "config": str(tmp_path / "own.yaml")}
    for name, on in (("q", True), ("r", False)):
        run(make(own, enable_transfer_learning=on), tmp_path / name)
        config = yaml.safe_load((tmp_path / name / "b/config.yaml").read_text())
        assert config["init_from"] == (source if on else None)


def test_all_checkpoints_can_be_kept(make, tmp_path):
    sessions = ({"name": "a", "timesteps": 512},)
    run(make(*sessions), tmp_path / "p")
    run(make(*sessions, save_all_checkpoints=True), tmp_path / "q")
    kept = [len(list((tmp_path / p / "a/checkpoints").glob("[0-9]*"))) for p in "pq"]
    assert kept == [2, 4]


# -- criteria -------------------------------------------------------------------------

SHORT = {"env.ends_at": 3}  # return 3, success 1


def test_a_failed_session_is_tried_again_with_other_settings(make, tmp_path, capsys):
    session = {
        "name": "a",
        "overrides": {"seed": 3, "ppo": {"gamma": 0.9}},
        "success_criteria": {"success_rate": 0.5, "length": {"max": 5}},
        "retries": [{"overrides": {"ppo": {"gamma": 0.8}}}, {"overrides": SHORT}],
    }
    status, state = run(
        make(session, {"name": "b", "use_previous_checkpoint": True}), tmp_path / "p"
    )
    assert status == 0
    assert state["checkpoints"]["a"] == "a-retry-2"
    reasons = [attempt["reason"] for attempt in state["attempts"]["a"]]
    first = "success_rate is 0, must be at least 0.5; length is 10, must be at most 5"
    assert reasons == [first, first, None]
    assert f"a: {first}; retry 1" in capsys.readouterr().err
    made = [
        yaml.safe_load((tmp_path / "p" / name / "config.yaml").read_text())
        for name in ("a", "a-retry-1", "a-retry-2", "b")
    ]
    assert [config["ppo"]["gamma"] for config in made[:3]] == [0.9, 0.8, 0.9]
    assert [config["seed"] for config in made[:3]] == [3, 3, 3]
    assert [config["env"]["ends_at"] for config in made[:3]] == [0, 0, 3]
    assert made[3]["init_from"] == str(tmp_path / "p/a-retry-2")


@pytest.mark.parametrize("goes_on", [False, True])
def test_criteria_that_are_never_met(make, tmp_path, goes_on):
    sessions = ({"name": "a", "success_criteria": {"mean_reward": 11}}, {"name": "b"})
    config = make(*sessions, continue_on_error=goes_on)
    status, state = run(config, tmp_path / "p")
    assert status == 1 and state["status"] == "failed"
    assert state["sessions_failed"] == ["a"]
    assert state["sessions_completed"] == (["b"] if goes_on else [])
    # The criteria of a complete session can be changed: it is judged again, and not trained.
    sessions[0]["success_criteria"] = {"mean_reward": 10}
    before = (tmp_path / "p/a/history.yaml").read_text()
    status, state = run(make(*sessions), tmp_path / "p", resume=True)
    assert status == 0 and state["sessions_failed"] == []
    assert sorted(state["sessions_completed"]) == ["a", "b"]
    assert (tmp_path / "p/a/history.yaml").read_text() == before


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_error_in_a_session(make, tmp_path, monkeypatch, goes_on):
    real = training.train

    def train(config, resume=None, callbacks=()):
        if "broken" in config.train.out:
            raise UserError("no space left")
        return real(config, resume, callbacks)

    monkeypatch.setattr(training, "train", train)
    sessions = ({"name": "broken"}, {"name": "b"}, {"name": "c", "checkpoint": "broken"})
    status, state = run(make(*sessions, continue_on_error=goes_on), tmp_path / "p")
    assert status == 1
    assert state["sessions_failed"] == (["broken", "c"] if goes_on else ["broken"])
    assert state["sessions_completed"] == (["b"] if goes_on else [])
    assert state["attempts"]["broken"][0]["reason"] == "no space left"
    monkeypatch.setattr(training, "train", real)
    status, state = run(make(*sessions), tmp_path / "p", resume=True)
    assert status == 0 and state["sessions_failed"] == []


# -- interruptions --------------------------------------------------------------------


def test_a_stopped_pipeline_ends_as_one_that_was_not_stopped(make, tmp_path, monkeypatch):
    config = make(*TWO)
    run(config, tmp_path / "whole")

    class Stopping(Trainer):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            stop_after(self, 1)

    monkeypatch.setattr(training, "Trainer", Stopping)
    statuses = [run(config, tmp_path / "parts")[0]]
    while statuses[-1] and len(statuses) < 10:
        status, state = run(config, tmp_path / "parts", resume=True)
        statuses.append(status)
    assert statuses[0] == 143 and statuses[-1] == 0 and len(statuses) > 3
    for name in ("first", "second"):
        one, two = (load_policy(tmp_path / p / name / "checkpoints") for p in ("whole", "parts"))
        assert_same(one.params, two.params)
    assert state["sessions_completed"] == ["first", "second"]


@pytest.mark.slow
def test_a_killed_pipeline_ends_as_one_that_was_not_killed(tmp_path):
    """Ten kills at random moments."""
    base = merge(SMALL, {"total_timesteps": 40_000, "checkpoint": {"every": 4000}})
    (tmp_path / "settings.yaml").write_text(strict_yaml.dump(base))
    names = ("a", "b", "c")
    rows = [
        {"name": n, "config": str(tmp_path / "settings.yaml"), "use_previous_checkpoint": n != "a"}
        for n in names
    ]
    rows[1]["success_criteria"] = {"return": 11}
    rows[1]["retries"] = [{"overrides": {"seed": 1}}]
    file = tmp_path / "p.yaml"
    content = {"name": "test", "sessions": rows, "continue_on_error": True}
    file.write_text(strict_yaml.dump(content))
    code = (
        "import sys, tests.conftest; from jaxrl import cli; from jaxrl.commands import pipeline;"
        "cli.run(pipeline.main)"
    )

    def start(out, *args):
        given = ["--config", str(file), "--output-dir", str(tmp_path / out), *args]
        return subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT)

    started = time.monotonic()
    assert start("whole").wait() == 1
    seconds = time.monotonic() - started
    chance, kills = random.Random(0), 0
    while kills < 10:
        begun = (tmp_path / "killed" / pipelines.STATE).exists()
        process = start("killed", *(["--resume"] if begun else []))
        try:
            process.wait(chance.uniform(0.1, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # complete: again from the second session
            assert process.returncode == 1
            process = start("killed", "--start-from", "b")
            time.sleep(0.5 * seconds)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert start("killed", "--resume").wait() == 1
    for name in ("a", "b", "b-retry-1", "c"):
        one, two = (load_policy(tmp_path / p / name / "checkpoints") for p in ("whole", "killed"))
        assert_same(one.params, two.params)


def test_begin_again_with_a_session(make, tmp_path):
    sessions = (*TWO, {"name": "third", "checkpoint": "first"})
    config = make(*sessions)
    with pytest.raises(UserError, match=r"second begins with first, of which .* no checkpoint"):
        run(config, tmp_path / "p", start_from="second")
    run(config, tmp_path / "p")
    changed = make(*sessions[:2], sessions[2] | {"overrides": {"seed": 5}})
    with pytest.raises(UserError, match=r"third: was begun with seed None, and now has 5; .*from"):
        run(changed, tmp_path / "p", resume=True)
    status, state = run(changed, tmp_path / "p", start_from="third")
    assert status == 0 and state["sessions_completed"] == ["first", "second", "third"]
    assert yaml.safe_load((tmp_path / "p/third/config.yaml").read_text())["seed"] == 5
    assert yaml.safe_load((tmp_path / "p/earlier/third/config.yaml").read_text())["seed"] == 0
    run(changed, tmp_path / "p", start_from="third")
    assert (tmp_path / "p/earlier/third-2").is_dir()
    # Sessions before it may be left out if nothing needs them.
    status, state = run(make({"name": "a"}, {"name": "b"}), tmp_path / "q", start_from="b")
    assert status == 0 and state["sessions_completed"] == ["b"]
    assert state["sessions_skipped"] == ["a"]


def test_a_folder_belongs_to_one_process(make, tmp_path):
    config = make({"name": "a"})
    (tmp_path / "p").mkdir()
    lock = files.lock(tmp_path / "p")
    with pytest.raises(UserError, match="is being trained by process"):
        run(config, tmp_path / "p")
    lock.close()
    run(config, tmp_path / "p")
    with pytest.raises(UserError, match="already holds a pipeline; continue it with --resume"):
        run(config, tmp_path / "p")
    (tmp_path / "p" / pipelines.STATE).write_text("{")
    with pytest.raises(UserError, match=r"pipeline_state.json: cannot be read"):
        run(config, tmp_path / "p", resume=True)


# -- mistakes -------------------------------------------------------------------------

WRONG = [
    ([{"name": "a", "timestep": 5}], "sessions.0..timestep; did you mean sessions.0..timesteps"),
    ([{"name": "a/b"}], "the name 'a/b' cannot be that of a folder"),
    ([{"name": "a"}, {"name": "a"}], "the name 'a' occurs twice"),
    ([{"name": "a"}, {"name": "a-retry-1"}], "'a-retry-1' is that of a retry's folder"),
    ([], "expected at least one session"),
    ([{"timesteps": 4}], "sessions.0..name: needs a value, text"),
]


@pytest.mark.parametrize(("sessions", "message"), WRONG)
def test_mistakes_in_the_file(make, sessions, message):
    with pytest.raises(UserError, match=message):
        make(*sessions)


LAST = [
    ({"overrides": {"ppo": {"gama": 1}}}, r"settings: unknown setting ppo.gama; did you mean"),
    ({"retries": [{"overrides": {"seed": -1}}]}, r"retries\[0\]: seed: got -1, must be at least 0"),
    ({"overrides": {"out": "x"}}, r"overrides.out: cannot be set here; use --output-dir"),
    ({"overrides": {"init_from": "x"}}, "use checkpoint or use_previous_checkpoint"),
    ({"config": "no.yaml"}, "config no.yaml: No such file"),
    ({"checkpoint": "nowhere"}, "nowhere: no such file or folder"),
    ({"checkpoint": "a", "use_previous_checkpoint": True}, "give one of the two"),
    ({"success_criteria": {"succes": 1}}, "no metric 'succes' .they have: success_rate, mean_"),
    ({"success_criteria": {"success": "much"}}, "success_criteria.success: got 'much', expected"),
    ({"success_criteria": {"success": {"least": 1}}}, "a section with the numbers min or max"),
    (
        {"success_criteria": {"success": 1}, "overrides": {"eval.final_episodes": 0}},
        "success_criteria: needs eval.final_episodes above 0",
    ),
    (
        {"use_previous_checkpoint": True, "overrides": {"ppo.network.policy_hidden": [4]}},
        r"a has network.policy_hidden \[8\], but this run has \[4\]",
    ),
]


@pytest.mark.parametrize(("session", "message"), LAST)
def test_mistakes_in_the_last_session_are_found_before_the_first_begins(
    make, tmp_path, session, message
):
    config = make({"name": "a"}, {"name": "b"} | session)
    with pytest.raises(UserError, match=rf"sessions\[1\] \(b\): .*{message}"):
        run(config, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_arguments(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(*TWO)
    for arguments, message in (
        ([], "expected --config FILE"),
        (["x"], "unexpected argument 'x'"),
        (["--config", "pipeline.yaml", "--platform", "moon"], "got 'moon', expected local"),
        (["--config", "pipeline.yaml", "--resume"], "checkpoints/test holds no pipeline"),
        (["--config", "pipeline.yaml", "--start-from", "x"], "expected a session of the pipeline"),
        (["--resume", "--start-from", "x"], "give one of the two"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(arguments)
    assert command.main(["--config", "pipeline.yaml", "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "second: countdown with ppo, 256 control steps, begins with first" in text
    assert command.main(["--help"]) == 0
    assert "--success_criteria" in capsys.readouterr().out
    assert command.main(["--config", "pipeline.yaml"]) == 0
    assert command.main(["--resume", "--output-dir", "checkpoints/test"]) == 0


def test_the_page_shows_all_sessions(tmp_path):
    (tmp_path / "s.yaml").write_text(strict_yaml.dump(SMALL))
    rows = [
        {"name": n, "config": str(tmp_path / "s.yaml"), "timesteps": 256} for n in ("one", "two")
    ]
    rows[0] |= {"success_criteria": {"return": 11}, "description": "what <one> does"}
    rows[0]["retries"] = [{"overrides": {"seed": 1}}]
    content = {"name": "test", "sessions": rows, "continue_on_error": True}
    (tmp_path / "p.yaml").write_text(strict_yaml.dump(content))
    assert run(pipelines.read(tmp_path / "p.yaml"), tmp_path / "p")[0] == 1
    text = (tmp_path / "p" / pipelines.PAGE).read_text()
    for part in (
        "one-retry-1",
        "return at least 11",
        "what &lt;one&gt; does",
        "<img",
        "two/report",
    ):
        assert part in text
    assert (tmp_path / "p/one-retry-1/report.html").exists()
