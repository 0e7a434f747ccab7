"""Input that is wrong, huge, ambiguous or without effect: one line, exit status 2, at once."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl import cli, envs, platform, strict_yaml
from jaxrl.commands import collect, train
from jaxrl.config import read_yaml, resolve
from jaxrl.errors import UserError
from jaxrl.options import Raw, nest
from jaxrl.population import Population
from tests.test_commands import refuse

SMALL = {"env": {"name": "countdown"}, "num_envs": 8}
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def twenty_gigabytes(monkeypatch, tmp_path):
    """Memory of the device, and a folder to work in."""
    monkeypatch.setattr(platform, "free_bytes", lambda: 20 * 10**9)
    monkeypatch.chdir(tmp_path)


# -- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"num_envs": "1e9", "ppo": {"num_steps": 1}}, r"num_envs: training takes .* GB .*lower num_envs"),
        ({"num_envs": "1e9"}, r"num_envs: .* control steps in an iteration, must be at most"),
        ({"ppo": {"num_steps": "2e8"}}, r"num_envs: training takes .*ppo.num_steps"),
        ({"ppo": {"num_steps": "1e9"}}, r"num_envs: .* control steps in an iteration, must be at most"),
        ({"chunk": "1e12"}, r"chunk: got 1000000000000, must be at most"),
        ({"num_seeds": "1e9"}, r"num_seeds: got 1000000000, must be at most"),
        ({"total_timesteps": "1e30"}, r"total_timesteps: got 1e\+30, must be at most"),
        ({"total_timesteps": "1e15"}, r"total_timesteps: .* iterations, must be at most"),
        ({"ppo": {"network": {"policy_hidden": ["1e9"]}}}, r"ppo.network.*lower ppo.network"),
        ({"ppo": {"network": {"value_hidden": ["1e5", "1e5"]}}}, r"ppo.network.*networks 1[0-9]{2}"),
        ({"env": {"wrap": {"history": "1e9"}}}, r"env.wrap.history: got 1000000000, must be at most"),
        ({"env": {"wrap": {"action_delay": "1e9"}}}, r"env.wrap.action_delay: got 1000000000, must"),
        ({"env": {"episode_length": "1e18"}}, r"env.episode_length: got .*, must be at most"),
        ({"eval": {"episodes": "1e10"}}, r"eval.episodes: got 10000000000, must be at most"),
        ({"num_seeds": 5000, "eval": {"episodes": "1e6"}}, r"eval.episodes: training takes"),
        ({"sweep": ["ppo.gamma=0.9,0.99"], "num_seeds": 9999}, r"sweep, num_seeds: 2 x 9,999 runs"),
        ({"algo": "sac", "sac": {"num_atoms": "1e9"}}, r"sac.num_atoms: got 1000000000, must be"),
        ({"algo": "sac", "sac": {"num_critics": "1e9"}}, r"sac.num_critics: got 1000000000, must"),
        ({"algo": "sac", "sac": {"n_step": "1e9"}}, r"sac.buffer_size: got 1000000, must be at least"),
        ({"algo": "sac", "sac": {"batch_size": "1e9"}}, r"sac.batch_size: training takes"),
        ({"algo": "td3", "td3": {"gradient_steps": "1e7"}}, r"td3.gradient_steps: .* updates in the run"),
        ({"algo": "td3", "td3": {"buffer_size": "1e18"}}, r"td3.buffer_size: got .*, must be at most"),
        ({"algo": "td3", "total_timesteps": "1e12"}, r"total_timesteps: .* must be at most"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_before_it_is_made(settings, pattern):
    with pytest.raises(UserError, match=pattern):
        Population(resolve(SMALL, settings, platform="none"))


def test_what_fits_is_not_refused():
    for algo in ("ppo", "sac", "td3"):
        Population(resolve(SMALL, {"algo": algo}, platform="none"))


def test_an_evaluation_that_cannot_fit_is_refused():
    with pytest.raises(UserError, match=r"episodes: 1,000,000,000 worlds .* GB"):
        resolve(SMALL, platform="none").env.runtime().evaluator(None, 10**9)


def test_gymnasium_worlds_are_bounded():
    config = resolve({"env": {"gym": "Pendulum-v1"}, "num_envs": "1e7"}, platform="cpu")
    with pytest.raises(UserError, match=r"num_envs: got 10,000,000, must be at most"):
        Population(config)


@pytest.mark.parametrize("value", ["1e-60", "1e60", "-1e39", "1e-39"])
def test_numbers_that_float32_cannot_hold_are_refused(value):
    with pytest.raises(UserError, match=r"env.control_dt: got .* which float32 cannot hold"):
        resolve(SMALL, {"env": {"control_dt": value}}, platform="none")


@pytest.mark.parametrize(
    ("algo", "key"),
    [
        ("ppo", "learning_rate"),
        ("sac", "critic_learning_rate"),
        ("sac", "temperature_learning_rate"),
    ],
)
def test_a_learning_rate_that_moves_nothing_is_refused(algo, key):
    with pytest.raises(UserError, match=rf"{algo}.{key}: got 1e-13, must be .*at least 1e-12"):
        Population(resolve(SMALL, {"algo": algo, algo: {key: "1e-13"}}, platform="none"))


BAD = [
    "1e9",
    "1e18",
    "1e60",
    "1e-60",
    "-1",
    "nan",
    "-inf",
    " ",
    "abc",
    "[1,2]",
    "[]",
    "ü漢",
    "9" * 400,
]
BAD += [None, True, {}, {"a": {"b": 1}}, [[1]], [None], 10**30, 1e300, float("nan"), "\0", "\ud800"]


@pytest.mark.parametrize("task", ["pendulum", "ballbot"])
@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_no_value_of_any_setting_is_a_traceback(task, algo):
    base = {"env": {"name": task}, "algo": algo}
    own, training = resolve(base, platform="cpu").describe()
    keys = [row[0] for row in training if row[0].startswith(f"{algo}.") or algo == "ppo"]
    refused = 0
    for key in [*keys, *(row[0] for row in own if algo == "ppo")]:
        for value in BAD:
            try:
                resolve(base, nest({key: value}), platform="cpu")
            except UserError as error:
                refused += 1
                assert key.rpartition(".")[0] in str(error) or "env" in str(error)
                assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    assert refused > 10 * len(keys)


# -- what would change nothing -------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["--algo", "sac", "--ppo.learning_rate", "1e-3"], r"--ppo.learning_rate: has no effect without --algo ppo"),
        (["--td3.tau", "0.1"], r"--td3.tau: has no effect without --algo td3"),
        (["--ppo.expert.coef", "2"], r"--ppo.expert.coef: has no effect without ppo.expert.name"),
        (["--ppo.expert.until", "0.2"], r"--ppo.expert.until: has no effect without"),
        (["--eval.stop_metric", "success_rate"], r"--eval.stop_metric: has no effect without eval.stop_at"),
        (["--checkpoint.replay", "false"], r"--checkpoint.replay: has no effect without --algo sac"),
        (["--eval.every", "0", "--eval.episodes", "3"], r"--eval.episodes: has no effect"),
        (["--algo", "sac", "--sac.value_range", "0,1"], r"--sac.value_range: has no effect without sac.num_atoms"),
        (["--ppo.schedule.factors", "0.1"], r"ppo.schedule.factors: has no effect with ppo.schedule.kind"),
        (["--ppo.schedule.kind", "constant", "--ppo.schedule.final", "0.1"], r"ppo.schedule.final: has no effect"),
        (["--sweep", "ppo.gamma=0.9", "--sweep", "ppo.gamma=0.8"], r"sweep: got ppo.gamma twice"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(argv, pattern, capfd, monkeypatch):
    refuse(train.main, argv, pattern, capfd, monkeypatch)


def test_a_file_may_have_sections_of_several_algorithms(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text("algo: sac\nppo: {gamma: 0.5}\nsac: {gamma: 0.6}\nenv: pendulum\n")
    assert train.main(["--config", str(path), "--print_config"]) == 0
    assert "gamma: 0.6" in capsys.readouterr().out


def test_another_kind_of_schedule_takes_the_place_of_the_preset_s():
    schedule = {"ppo": {"schedule": {"kind": "constant"}}}
    config = resolve({"env": "ballbot"}, schedule, platform="cpu")
    assert config.train.ppo.schedule.final == 0.0  # the preset's, linear, falls to 0.05
    saved = resolve({"env": "ballbot"}, platform="cpu").to_dict()
    resumed = resolve(saved, schedule, platform="cpu")
    assert resumed.train.ppo.schedule.final == 0.0
    linear = resolve({"env": "ballbot", "ppo": {"schedule": {"kind": "linear"}}}, platform="cpu")
    assert linear.train.ppo.schedule.final == 0.05
    file, typed = {"ppo": {"schedule": {"final": 0.1}}}, {"ppo": {"schedule": {"kind": "cosine"}}}
    assert resolve(SMALL, file, typed, platform="cpu").train.ppo.schedule.final == 0.1


# -- YAML ----------------------------------------------------------------------------------


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("seed: 1\nseed: 2\n", r"line 2, column 1\): the key 'seed' occurs twice"),
        ("ppo: {gamma: 0.9, gamma: 0.8}", r"the key 'gamma' occurs twice"),
        ("total_timesteps: 1:30", r"total_timesteps: got '1:30', expected whole number"),
        (LAUGHS, r"not valid YAML \(line .*more than 20,000 values"),
        ("a: &a [*a]", r"more than 20,000 values"),
        ("a: " + "[" * 10_000, r"more than 50 nested sections or lists"),
        ("a: " + "{b: " * 10_000, r"more than 50 nested sections or lists"),
        ("out: 5", r"out: got 5, expected text"),
        ("out: {}", r"out: got \{\}, expected text"),
        ("out: [a]", r"out: got \['a'\], expected text"),
        ("out: ''", r"out: got '', expected text"),
        ("out: no", r"out: got False, expected text"),
        ('out: "a\\0b"', r"out: got 'a\\x00b', expected text"),
        ("env: {name: 3}", r"env.name: got 3, expected text"),
        ("env: {gym: {}}", r"env.gym: got \{\}, expected text"),
        ("env: [1]", r"env: expected a section or a task's name, got \[1\]"),
        ("env: {name: ballbot, gym: Pendulum-v1}", r"env.gym: got 'Pendulum-v1', but env.name is"),
        ("3: 4", r"the key '3' is not text"),
        ("null: 4", r"the key 'null' is not text"),
        ("seed: !!binary aGk=", r"not valid YAML .*binary"),
        ("seed: !!python/name:os.system x", r"not valid YAML .*python"),
        ("seed: !!bool x", r"not valid YAML"),
        ("seed: !!int ''", r"not valid YAML"),
        ("a: 1\n---\nb: 2\n", r"not valid YAML"),
        ("a\0b: 1", r"not valid YAML"),
        (b"\xff\xfe\x00a", r"not valid YAML: not UTF-8 text"),
        (b"x: 1\n" * 300_000, r"more than 1,000,000 bytes"),
        ("seed: " + "1" * 5000, r"x.yaml: not valid YAML|seed: got"),
    ],
)  # fmt: skip
def test_a_file_that_means_something_else_is_refused(content, pattern, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=pattern) as error:
        resolve(read_yaml(path), platform="none")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("path", [".", "/dev/zero", "a\0b", "nowhere"])
def test_a_path_that_is_no_file_is_refused(path):
    with pytest.raises(UserError, match=r"config .*: ."):
        read_yaml(path)


def test_yaml_is_read_as_it_is_meant():
    text = "{a: 1:30, b: 2024-01-01, c: 010, d: 1e-3, e: 1_000, f: 'no', g: no, h: &x [1], i: *x}"
    assert strict_yaml.load(text, "x") == {
        "a": "1:30", "b": "2024-01-01", "c": "010", "d": 1e-3, "e": 1000,
        "f": "no", "g": False, "h": [1], "i": [1],
    }  # fmt: skip


def test_sections_and_values_of_one_key_do_not_mix(capfd, monkeypatch):
    for argv, pattern in (
        (["--ppo", "fast"], r"ppo: expected a section, got 'fast'"),
        (["--ppo", "fast", "--ppo.gamma", "1"], r"ppo: got both a section and the value 'fast'"),
        (["--env.wrap", "3"], r"env.wrap: expected a section, got '3'"),
        (["--eval", "3"], r"eval: expected a section, got '3'"),
        (["--env.wrap.history.x", "3"], r"env.wrap.history: got .*, expected whole number"),
        (["--env.wrap.history.x", "3", "--env.wrap.history", "2"], r"history: got both a section"),
        (["--" + "a." * 5000, "3"], r"unknown setting 'a"),
        (["--seed", "9" * 5000], r"seed: got .*, expected whole number"),
        (["--env", "ballbot", "--env.drive", "x"], r"env.drive: got 'x', expected one of"),
        (["--env.gym", "X-v1", "--env.name", "ballbot"], r"env.gym: got 'X-v1', but env.name"),
        (["--se\ned", "1"], r"unknown setting se.*ned; did you mean seed\?"),
    ):
        refuse(train.main, argv, pattern, capfd, monkeypatch)


def test_a_task_named_alone_in_one_layer_keeps_its_settings_of_another():
    config = resolve({"env": "pendulum"}, {"env": {"max_torque": 3}}, platform="none")
    assert (config.task, config.env.max_torque) == ("pendulum", 3.0)


# -- values of any type ---------------------------------------------------------------------

KINDS = ["12", "no", "2024-01-01", "1e-3", "~", "1:30", "", " a ", "ü", 12, 1.5, 1e-7, True, None]


def test_values_of_any_type_read_back_the_same(tmp_path):
    values = {f"k{i}": value for i, value in enumerate(KINDS)}
    values |= {"list": [*KINDS, [KINDS]], "deep": {"a": {"b": dict(values)}}}
    text = strict_yaml.dump({"env": {"gym": "tests.gym_envs:Anything", "kwargs": values}})
    config = resolve(strict_yaml.load(text, "x"), platform="none")
    assert config.env.kwargs == values
    assert [type(x) for x in config.env.kwargs["list"][:-1]] == [type(x) for x in KINDS]
    for again in (
        strict_yaml.load(strict_yaml.dump(config.to_dict()), "x"),
        json.loads(json.dumps(config.to_dict())),
    ):
        assert resolve(again, platform="none") == config
        assert again["env"]["kwargs"] == values


def test_what_is_typed_is_read_as_yaml_once(tmp_path):
    argv = ["--env.gym", "tests.gym_envs:Anything"]
    typed = {"n": "12", "b": "no", "t": "'12'", "d": "2024-01-01", "l": "[1, '2']", "m.x": "{y: 1}"}
    for key, value in typed.items():
        argv += [f"--env.kwargs.{key}", value]
    settings = cli.parse(argv, {}, settings=True)[2]
    overrides = {"eval_overrides": {"kwargs": {"n": Raw("13"), "b": "no"}}}
    config = resolve(settings, overrides, platform="none")
    assert config.env.kwargs == {
        "n": 12, "b": False, "t": "12", "d": "2024-01-01", "l": [1, "2"], "m": {"x": {"y": 1}},
    }  # fmt: skip
    assert config.eval_overrides == {"kwargs": {"n": 13, "b": "no"}}
    again = strict_yaml.load(strict_yaml.dump(config.to_dict()), "x")  # fails on a `Raw`
    assert again == json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert resolve(again, platform="none") == config


def test_a_value_of_any_type_that_is_no_yaml_is_refused():
    for text in ("[1", "a: b: c", "{1: 2}", "{a: 1, a: 2}", "[" * 1000):
        with pytest.raises(UserError, match=r"env.kwargs.x: "):
            resolve({"env": {"gym": "Pendulum-v1", "kwargs": {"x": Raw(text)}}}, platform="none")


# -- help and hints -------------------------------------------------------------------------


def test_settings_of_old_runs_are_read_under_their_old_names():
    config = resolve(
        {"env": {"name": "pendulum"}, "algo": "td3", "td3": {"exploration_noise_least": 0.01}},
        platform="none",
    )
    assert config.train.td3.exploration_noise_minimum == 0.01


def test_help_shows_what_the_run_would_have(capsys):
    assert train.main(["--help", "--env.name", "pendulum", "--algo", "sac", "--seed", "7"]) == 0
    text = capsys.readouterr().out
    for row in (
        "--sac.learning_rate [number; 0.003]",
        "--num_envs [whole number; 4]",
        "--seed [whole number; 7]",
        "--env.max_torque [number; 2.0]",
        "--env.wrap.history [whole number; 1]",
    ):
        assert row in text, row
    assert "--ppo." not in text.partition("Tasks")[2] and "--td3." not in text


def test_the_printed_configuration_reads_back(tmp_path, capsys):
    argv = ["--env.name", "pendulum", "--env.wrap.history", "2", "--ppo.gamma", "0.5"]
    assert train.main([*argv, "--out", "there", "--print_config"]) == 0
    path = tmp_path / "x.yaml"
    path.write_text(capsys.readouterr().out)
    again = resolve(read_yaml(path), platform="none")
    assert (again.train.out, again.train.ppo.gamma, again.env.wrap.history) == ("there", 0.5, 2)
    assert again.train.num_envs == 64  # the preset's
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "ppo.learning_rate"),
        ("learning_rat", "ppo.learning_rate"),
        ("gamma", "ppo.gamma"),
        ("hidden", "ppo.network.policy_hidden or ppo.network.value_hidden"),
        ("max_torque", "env.max_torque"),
        ("history", "env.wrap.history"),
        ("name", "env.name or ppo.expert.name"),
        ("every", "eval.every or checkpoint.every"),
        ("ppo.policy_hidden", "ppo.network.policy_hidden"),
        ("env.history", "env.wrap.history"),
        ("env.learning_rate", "ppo.learning_rate"),
    ],
)
def test_an_unknown_setting_is_told_its_full_name(key, meant, capfd, monkeypatch):
    pattern = rf"unknown setting {key}; did you mean {meant}\?"
    argv = ["--env.name", "pendulum", f"--{key}", "1"]
    refuse(train.main, argv, pattern, capfd, monkeypatch)


# -- tasks by their class -------------------------------------------------------------------

MODULE = """
import dataclasses, gymnasium
from envs_mjx.pendulum import Pendulum as Whole
from jaxrl.envs import Task
class Loose(Task): ...
def function(): ...
class Plain: ...
@dataclasses.dataclass(frozen=True)
class Part(Task):
    episode_length: int = 3
    def reset(self, key): ...
class Gym(gymnasium.Env): ...
@dataclasses.dataclass(frozen=True)
class Needy(Whole):
    width: float = dataclasses.field(kw_only=True)
@dataclasses.dataclass(frozen=True)
class Odd(Whole):
    other: "Nowhere" = None
"""
BROKEN = {"syntax": "x = = 1", "exits": "raise SystemExit(3)", "fails": "1 / 0", "lacks": "import nowhere_at_all"}  # fmt: skip


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
    package = tmp_path / "own_tasks"
    package.mkdir()
    for name, text in {"__init__": MODULE, **BROKEN}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_tasks")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("own_tasks.syntax:X", "cannot be imported: SyntaxError"),
        ("own_tasks.exits:X", "cannot be imported: SystemExit: 3"),
        ("own_tasks.fails:X", "cannot be imported: ZeroDivisionError"),
        ("own_tasks.lacks:X", "cannot be imported: ModuleNotFoundError"),
        ("own_tasks.nowhere:X", "cannot be imported: ModuleNotFoundError"),
        ("own_tasks:Nowhere", "cannot be imported: AttributeError"),
        ("own_tasks:", "cannot be imported"),
        ("own_tasks:function", "is not a class, but function"),
        ("own_tasks:Plain", "is not a task: it must be derived from jaxrl.envs.Task"),
        ("own_tasks:Loose", "is not a task: it must be a dataclass"),
        ("own_tasks:Part", "it has no control_dt, action_spec, step, observation_parts"),
        ("own_tasks:Gym", "is a Gymnasium environment; use --env.gym own_tasks:Gym"),
        ("own_tasks:Needy", "env.width: needs a value, number"),
        ("own_tasks:Odd", "annotations of 'own_tasks:Odd' cannot be read"),
        ("nofamily:X", r"unknown family 'nofamily' \(known: brax, gym, playground, package.module:"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_task_is_refused(name, pattern, own_tasks, capfd, monkeypatch):
    refuse(train.main, ["--env.name", name], pattern, capfd, monkeypatch)


def test_a_task_is_found_by_its_class(own_tasks):
    config = resolve(
        {"env": {"name": "own_tasks:Whole", "max_torque": "3"}, "num_envs": 2}, platform="cpu"
    )
    assert config.env.max_torque == 3.0 and config.to_dict()["env"]["name"] == "own_tasks:Whole"
    Population(config)
    assert envs.env_class("own_tasks:Needy").__name__ == "Needy"


@pytest.mark.parametrize("name", BROKEN)
def test_a_gymnasium_module_that_breaks_is_refused(name, own_tasks, capfd, monkeypatch):
    argv = ["--env.gym", f"own_tasks.{name}:X"]
    refuse(
        train.main,
        argv,
        "cannot be made: .*(Error|Exit|module)|cannot be made: .*invalid",
        capfd,
        monkeypatch,
    )


# -- the process -----------------------------------------------------------------------------

TINY = (
    "--env.name tests.toys:Countdown --num_envs 4 --total_timesteps 16 --ppo.num_steps 4 --chunk 1 "
    "--ppo.num_minibatches 1 --ppo.num_epochs 1 --ppo.network.policy_hidden 8 --eval.every 0 "
    "--ppo.network.value_hidden 8 --eval.final_episodes 0 --log.tensorboard false --out run"
)


def shell(command, **env):
    """A command as a user types it, from the folder that the test works in."""
    full = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    full = {name: value for name, value in full.items() if value is not None}
    return subprocess.run(
        ["bash", "-c", command.replace("TRAIN", f"{sys.executable} -m jaxrl.train")],
        capture_output=True, text=True, env=full, timeout=300,
    )  # fmt: skip


def test_a_training_needs_neither_home_nor_outputs_nor_x64():
    done = shell(
        f"TRAIN {TINY} > /dev/full",
        HOME=None, XDG_CACHE_HOME="/proc/none", JAX_COMPILATION_CACHE_DIR=None, JAX_ENABLE_X64="1",
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[0] == "JAX_ENABLE_X64 is ignored: training is in float32"
    assert lines[-1] == "error: cannot write to standard output: No space left on device"
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    assert list(Path("run/checkpoints").iterdir())


def test_a_training_goes_on_with_closed_outputs():
    assert shell(f"TRAIN {TINY} 2>&- >&-").returncode == 0
    assert list(Path("run/checkpoints").iterdir())
    assert "16" in Path("run/progress.csv").read_text()


def test_a_setting_is_given_in_two_ways(capsys):
    shown = []
    for argv in (["--env.max_speed", "0.3"], ["--set", "env.max_speed=0.3"]):
        assert train.main([*argv, "--print_config"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "max_speed: 0.3" in shown[0]
    with pytest.raises(UserError, match=r"env.max_sped; did you mean env.max_speed\?"):
        train.main(["--set", "env.max_sped=0.3", "--print_config"])
    with pytest.raises(UserError, match="unknown argument --sweep"):
        collect.main(["ballbot", "--out", "unused", "--sweep", "seed=0,1"])


@pytest.mark.parametrize(
    ("command", "status", "pattern"),
    [
        ("TRAIN --help > /dev/full", 2, r"error: cannot write to standard output: No space left"),
        ("TRAIN --help >&-", 0, ""),
        ("TRAIN --help | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("JAX_PLATFORMS=cuda TRAIN --print_config", 2, r"error: JAX finds no device with JAX_PLAT"),
        ("JAX_PLATFORMS=nonsense TRAIN --print_config", 2, r"error: JAX finds no device with JAX_"),
        ("TRAIN --config <(echo seed: 3) --print_config > x; grep -q 'seed: 3' x", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 TRAIN --out ü --print_config", 2, r"error: out: got '.udcc3"),
    ],
)
def test_the_process_s_surroundings(command, status, pattern):
    if "cuda" in command and Path("/proc/driver/nvidia").exists():
        pytest.skip("there is one")
    done = shell(command)
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == bool(pattern), done.stderr
    assert re.match(pattern, done.stderr)


SLOW_IMPORT = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:  # as some libraries do
    pass
"""


@pytest.mark.parametrize("library", ["yaml", "jax"])  # imported before main, and in it
@pytest.mark.parametrize("module", ["train", "evaluate", "report"])
def test_ctrl_c_during_an_import_ends_the_command(module, library, tmp_path):
    (tmp_path / f"{library}.py").write_text(SLOW_IMPORT)
    # A shell starts what it runs in the background with SIGINT ignored, and we would hand it on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", f"jaxrl.{module}", *([] if module == "train" else ["x"])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")
