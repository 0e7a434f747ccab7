"""Tuning: what a study finds, stops early, and keeps when workers are killed."""

import functools
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import yaml

from jaxrl import strict_yaml, tuning, workers
from jaxrl.commands import tune
from jaxrl.config import resolve
from jaxrl.errors import UserError
from tests.test_checkpoint import ROOT
from tests.test_pipeline import SMALL

SPACE = {"env": {"ends_at": {"int": [2, 9]}}, "ppo.gamma": {"uniform": [0.9, 0.99]}}
ON_RAY = functools.partial(workers.on_ray, cpus=0.5, gpus=0)
BASE = SMALL | {"total_timesteps": 256, "eval": {"every": 64, "episodes": 4, "final_episodes": 4}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A function that writes the files of a study; the arguments for them."""
    monkeypatch.chdir(tmp_path)

    def write(space=SPACE, base=BASE, **settings):
        (tmp_path / "space.yaml").write_text(strict_yaml.dump({"space": space} | settings))
        (tmp_path / "base.yaml").write_text(strict_yaml.dump(base))
        return ["--space", "space.yaml", "--config", "base.yaml"]

    return write


def report(folder):
    return json.loads((folder / "study.json").read_text())


def test_a_study_finds_the_best_setting(files, tmp_path, capsys):
    given = files(sampler="random", pruner="none")
    assert tune.main([*given, "--trials", "3"]) == 0
    found = report(tmp_path / "studies/space")
    trials = found["trials"]
    assert [t["state"] for t in trials] == ["complete"] * 3
    assert all(t["values"] == [float(t["params"]["env.ends_at"])] for t in trials)
    best = max(trials, key=lambda t: t["values"][0])
    assert found["best"] == [best["number"]]
    text = (tmp_path / "studies/space/best.yaml").read_text()
    config = resolve(yaml.safe_load(text), platform="none")
    assert config.env.ends_at == best["params"]["env.ends_at"]
    assert config.train.total_timesteps == 256
    out = capsys.readouterr().out
    assert f"best: trial {best['number']}, mean_reward {best['values'][0]:.4g}" in out
    page = (tmp_path / "studies/space/report.html").read_text()
    assert "env.ends_at" in page and "<img" in page and "3 complete" in page
    # More trials.
    with pytest.raises(UserError, match="already holds a study; continue it with --resume"):
        tune.main([*given, "--trials", "4"])
    assert tune.main(["--resume", "--out", "studies/space", "--trials", "4"]) == 0
    numbers = report(tmp_path / "studies/space")["trials"]
    assert [t["number"] for t in numbers] == list(range(4))
    assert len({json.dumps(t["params"]) for t in numbers}) == 4


def test_trials_that_are_behind_are_stopped_early(files, tmp_path):
    given = files(space={"env.ends_at": {"choice": [9, 2]}}, pruner="median", sampler="random")
    monkey = optuna.pruners.MedianPruner(n_startup_trials=1)
    config = tuning.read("space.yaml", "base.yaml")
    study = tuning.Study(config, tmp_path / "s", trials=5, platform="none")
    study.study.pruner = monkey
    study.work()
    study.write()
    states = {t["params"]["env.ends_at"]: set() for t in report(tmp_path / "s")["trials"]}
    for t in report(tmp_path / "s")["trials"]:
        states[t["params"]["env.ends_at"]].add(t["state"])
    assert "pruned" in states[2] and states[9] == {"complete"}
    assert given


def test_several_metrics(files, tmp_path):
    given = files(
        metrics=["mean_reward", "final/x"], directions=["maximize", "minimize"], sampler="nsga2"
    )
    with pytest.raises(UserError, match=r"have no metric 'final/x' .they have: "):
        tune.main([*given, "--trials", "4"])
    given = files(metrics=["return", "length"], directions=["maximize", "minimize"])
    assert tune.main([*given, "--trials", "4"]) == 0
    found = report(tmp_path / "studies/space")
    assert found["best"] == [0, 1, 2, 3]  # the return is the length: none beats another
    assert (tmp_path / "studies/space/best-1.yaml").exists()


def test_a_trial_is_the_mean_of_its_members(files, tmp_path):
    given = files(base=BASE | {"num_seeds": 2})
    assert tune.main([*given, "--trials", "2"]) == 0
    for t in report(tmp_path / "studies/space")["trials"]:
        assert t["values"] == [float(t["params"]["env.ends_at"])]


def test_trials_side_by_side_in_one_program(files, tmp_path):
    """Trials with the same settings have the same result, and one that diverges fails alone."""
    space = {"ppo.learning_rate": {"choice": [1e-3, 1e30]}}
    base = BASE | {"env": {"name": "pendulum"}}
    given = files(space, base, sampler="random", together=4)
    assert tune.main([*given, "--trials", "4"]) == 0
    folder = tmp_path / "studies/space"
    trials = report(folder)["trials"]
    assert [t.get("together_with") for t in trials] == [None, 0, 0, 0]
    assert [path.name for path in (folder / "trials").iterdir()] == ["0"]
    results = {(t["params"]["ppo.learning_rate"], t["state"], str(t["values"])) for t in trials}
    assert {(rate, state) for rate, state, _ in results} == {(1e-3, "complete"), (1e30, "fail")}
    assert len(results) == 2
    with pytest.raises(UserError, match=r"together: env.ends_at changes the program, .* ppo.gamma"):
        tune.main([*files(together=2), "--out", "other"])


def test_a_diverging_trial_fails_and_the_study_goes_on(files, tmp_path):
    space = {"ppo.learning_rate": {"choice": [1e30, 1e-3]}}
    given = files(space=space, base=BASE | {"env": {"name": "pendulum"}}, sampler="random")
    assert tune.main([*given, "--trials", "6"]) == 0
    trials = report(tmp_path / "studies/space")["trials"]
    by_rate = {t["params"]["ppo.learning_rate"]: t for t in trials}
    assert by_rate[1e30]["state"] == "fail" and "diverged" in by_rate[1e30]["error"]
    assert by_rate[1e-3]["state"] == "complete"


@pytest.mark.parametrize("backend", ["processes", "ray"])
def test_a_killed_worker_loses_nothing(files, tmp_path, monkeypatch, backend):
    """Two workers, one of which is killed in the middle of a trial, which another one continues."""
    given = files(base=BASE | {"total_timesteps": 16_000, "checkpoint": {"every": 1000}})
    config = tuning.read("space.yaml", "base.yaml")
    tuning.save_spec(config, tmp_path / "s")
    code = (
        "import tests.conftest; from jaxrl import cli; from jaxrl.commands import tune;"
        "cli.run(tune.main)"
    )
    command = workers.command
    monkeypatch.setattr(workers, "command", lambda *each: ["-c", code, *command(*each)[2:]])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    work = workers.in_processes if backend == "processes" else ON_RAY
    with ThreadPoolExecutor() as pool:
        status = pool.submit(work, 2, tmp_path / "s", 3)
        killed = tmp_path / "s/trials/0/run/checkpoints"
        deadline = time.monotonic() + 120
        while not list(killed.glob("[0-9]*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        owner = int((tmp_path / "s/trials/0/.lock").read_text().split()[1])
        os.kill(owner, signal.SIGKILL)
        assert status.result() == 0
    study = tuning.Study(config, tmp_path / "s", trials=3, platform="none")
    study.write()
    trials = report(tmp_path / "s")["trials"]
    assert [t["state"] in ("complete", "pruned") for t in trials] == [True] * 3
    assert len(yaml.safe_load((tmp_path / "s/trials/0/run/history.yaml").read_text())) == 2
    assert given


WRONG = [
    ({"space": {}}, "expected at least one setting"),
    ({"space": {"ppo.gamma": {"uniform": [1, 0]}}}, "space.ppo.gamma: got .* expected one of"),
    ({"space": {"ppo.gamma": {"log": [0, 1]}}}, "space.ppo.gamma: got"),
    ({"space": {"ppo.gamma": 3}}, "space.ppo.gamma: got 3, expected a section"),
    ({"space": {"ppo.gama": {"uniform": [0, 1]}}}, "unknown setting ppo.gama; did you mean"),
    ({"spaces": {}}, "unknown setting spaces; did you mean space"),
    ({"directions": ["maximize", "minimize"]}, "got 2, expected one for each of the 1 metrics"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_mistakes(files, settings, message):
    space = settings.pop("space", SPACE)
    given = files(space, **settings)
    with pytest.raises(UserError, match=message):
        tune.main([*given, "--trials", "1"])


def test_arguments(files):
    for arguments, message in (
        ([], "expected --space FILE, or --resume --out DIR"),
        (["--resume", "--out", "nowhere"], "nowhere holds no study"),
        (["x"], "unexpected argument 'x'"),
        (["--backend", "slurm"], "--backend: got 'slurm', expected processes or ray"),
        (["--gpus", "1"], "--gpus: only with --backend ray"),
        (["--backend", "ray", "--gpus", "half"], "--gpus: got 'half', expected a number from 0"),
    ):
        with pytest.raises(UserError, match=message):
            tune.main(arguments)


def test_a_worker_that_no_machine_can_hold():
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"GPU": 4}}]
    workers.check_room(nodes, 2, 0)
    with pytest.raises(UserError, match=r"got 1 and 0.5 for a worker, .* GPUs of each: 2 and 0"):
        workers.check_room(nodes, 1, 0.5)


def test_without_ray(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"run `pip install 'jaxrl\[ray\]'`"):
        tune.main([*files(), "--backend", "ray"])


def test_without_optuna(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"run `pip install 'jaxrl\[tune\]'`"):
        tune.main(files())
