"""Settings where a task has none of its own, and the benchmark that measures them."""

import dataclasses
import json

import pytest

from benchmarks import defaults, swingup
from jaxrl import envs
from jaxrl.algos.defaults import GENERIC
from jaxrl.config import resolve
from jaxrl.options import flatten, to_dict
from jaxrl.runs import make_algorithm
from tests.toys import Countdown

CASES = [(device, algo) for device in GENERIC for algo in GENERIC[device]]


@dataclasses.dataclass(frozen=True)
class Tuned(Countdown):
    """A task with a preset of PPO on a CPU, and no other."""

    presets = {"cpu": {"ppo": {"num_envs": 5, "ppo": {"gamma": 0.5}}}}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    known = {"countdown": Countdown, "tuned": Tuned}
    monkeypatch.setattr(envs.registry, "_registered", known)


@pytest.mark.parametrize(("device", "algo"), CASES)
def test_a_task_without_presets_gets_the_defaults_and_they_fit_together(device, algo):
    config = resolve({"env": "countdown", "algo": algo}, platform=device)
    preset = GENERIC[device][algo]
    assert preset.items() <= {**to_dict(config.train), algo: preset[algo]}.items()
    settings = flatten(to_dict(getattr(config.train, algo)))
    for key, value in flatten(preset[algo]).items():
        assert settings[key] == value, key
    make_algorithm(config)


def test_a_preset_of_the_task_stands_alone():
    plain = resolve({"env": "tuned"}, platform="none").train
    tuned = resolve({"env": "tuned"}, platform="cpu").train
    own = dataclasses.replace(plain.ppo, gamma=0.5)
    assert tuned == dataclasses.replace(plain, num_envs=5, ppo=own)
    missing = resolve({"env": "tuned", "algo": "sac"}, platform="cpu").train
    assert missing.num_envs == GENERIC["cpu"]["sac"]["num_envs"]


def test_settings_win_over_the_defaults():
    layer = {"env": "countdown", "ppo": {"num_epochs": 3}}
    ppo = resolve(layer, platform="cpu").train.ppo
    assert ppo.num_epochs == 3
    assert ppo.num_minibatches == GENERIC["cpu"]["ppo"]["ppo"]["num_minibatches"]


@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_gymnasium_tasks_differ_only_in_worlds_and_iterations(algo):
    layer = {"env": {"gym": "Pendulum-v1"}, "algo": algo}
    here, gpu = (resolve(layer, platform=device).train for device in ("cpu", "gpu"))
    compiled = resolve({"env": "countdown", "algo": algo}, platform="cpu").train
    assert here == gpu  # the simulator is on the host either way
    a, b = (flatten(to_dict(getattr(train, algo))) for train in (here, compiled))
    assert {key for key in a if a[key] != b[key]} <= {"num_steps", "gradient_steps"}
    make_algorithm(resolve(layer, platform="cpu"))


def test_the_benchmark_reads_finished_runs(tmp_path):
    def run(name, evaluations, final):
        folder = tmp_path / name
        (folder / "eval").mkdir(parents=True)
        rows = [f"{1000 * (i + 1)},1.0,{value}" for i, value in enumerate(evaluations)]
        head = "time/total_timesteps,time/time_elapsed,eval/mean_reward"
        (folder / "progress.csv").write_text("\n".join([head, *rows]) + "\n")
        summary = {"return": {"mean": final}}
        (folder / "eval" / "final.json").write_text(json.dumps({"summary": summary}))
        (folder / "seconds").write_text("7.5\n")
        return folder

    runs = [run("a", ["", -9.0, -5.0, -7.0], -5.5), run("b", ["", -9.0], -8.0)]
    said = defaults.measure(runs, defaults.Goal(-6.0, "a paper"))
    assert said["steps_to_goal"] == [3000.0, None]
    assert said["final"] == [-5.5, -8.0]
    assert said["seconds"] == [7.5, 7.5]


def test_the_swing_up_succeeds_after_a_second_upright():
    task = swingup.SwingUp()
    assert task.observation_spec.shape == (5,)
    up, hanging = task.physics.init([0.0, 0.0]), task.physics.init([0.0, 3.1])
    steps = round(1 / task.control_dt)
    assert task._state(up, 0.0, steps - 1.0).metrics["success"] == 1
    assert task._state(up, 0.0, steps - 2.0).metrics["success"] == 0
    assert task._state(hanging, 0.0, steps + 5.0).info == 0
