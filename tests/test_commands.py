"""What the commands say to right and wrong input."""

import importlib.util
import json
import os
import re
import shutil
from contextlib import nullcontext

import pytest

from jaxrl import cli, options, pipelines, tuning
from jaxrl.commands import evaluate, report, train
from jaxrl.config import read_yaml, resolve, write_yaml
from jaxrl.errors import UserError
from jaxrl.planning import plan
from jaxrl.pretraining import PretrainConfig


def refuse(main, argv, pattern, capfd, monkeypatch):
    """The command prints one line that matches, and exits with 2."""
    monkeypatch.setattr("sys.argv", ["command", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    lines = [x for x in capfd.readouterr().err.splitlines() if x.strip()]
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    assert re.search(pattern, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["--ppo.learning_rat", "1"], r"unknown setting ppo.learning_rat; did you mean ppo.learning_rate\?"),
        (["--num_env", "8"], r"unknown setting num_env; did you mean num_envs\?"),
        (["--env.drve", "x"], r"unknown setting env.drve; did you mean env.drive\?"),
        (["--env.drive", "tracks"], r"env.drive: got 'tracks', expected one of 'no_slip', 'omniwheel'"),
        (["--env.name", "balbot"], r"unknown task 'balbot'; did you mean 'ballbot'\?"),
        (["--num_envs", "0"], r"num_envs: got 0, must be at least 1"),
        (["--num_envs", "many"], r"num_envs: got 'many', expected whole number"),
        (["--num_envs", "2.5"], r"num_envs: got '2.5', expected whole number"),
        (["--ppo.learning_rate", "-1"], r"ppo.learning_rate: got -1.0, must be above 0"),
        (["--ppo.gamma", "1.5"], r"ppo.gamma: got 1.5, must be at most 1"),
        (["--ppo.num_minibatches", "7"], r"ppo.num_minibatches: .* cannot be split evenly into 7"),
        (["--ppo", "fast"], r"ppo: expected a section, got 'fast'"),
        (["--ppo.network.policy_hidden", "[64,-3]"], r"policy_hidden: got -3, must be at least 1"),
        (["--env.max_speed", "inf"], r"env.max_speed: got 'inf', expected number"),
        (["--env.episode_seconds", "0.005"], r"env.episode_seconds: got 0.005, must be at least"),
        (["--env.start_tilt", "20", "--env.max_tilt", "10"], r"env.start_tilt: got 20.0, must be below"),
        (["--ppo.network.policy_keys", "eyes"], r"policy_keys: the observation has no part 'eyes'"),
        (["--wandb=false"], r"--wandb: takes no value"),
        (["--resume", ""], r"--resume: needs a value"),
        (["--resume", "x", "--seed", "3"], r"--seed: cannot be changed together with --resume"),
        (["--resume", "x", "--init_from", "y"], r"--init_from: cannot be changed together with"),
        (["--env", "franka_reach", "--env.privileged", "true"], r"privileged: has no effect"),
        (["--config", "nowhere.yaml"], r"config nowhere.yaml: No such file"),
        (["--resume", "nowhere"], r"nowhere.*No such file"),
        (["--seed"], r"--seed: needs a value"),
        (["ballbot"], r"unexpected argument 'ballbot'"),
        (["--out", "/proc/nowhere"], r"out: cannot write to /proc/nowhere"),
    ],
)  # fmt: skip
def test_train_refuses_in_one_line(argv, pattern, capfd, monkeypatch):
    refuse(train.main, argv, pattern, capfd, monkeypatch)


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        ([], r"expected one run or checkpoint"),
        (["nowhere"], r"nowhere: no such file or folder"),
        (["."], r"no undamaged checkpoint"),
        ([".", "--episodes", "none"], r"--episodes: got 'none'"),
        ([".", "--episode", "3"], r"unknown argument --episode; did you mean --episodes\?"),
        ([".", "--seed", "abc"], r"--seed: got 'abc'"),
        ([".", "--set", "env.drive"], r"--set env.drive: expected KEY=VALUE"),
        (["--baselines", "balbot"], r"did you mean 'ballbot'"),
    ],
)
def test_evaluate_refuses_in_one_line(argv, pattern, capfd, monkeypatch):
    refuse(evaluate.main, argv, pattern, capfd, monkeypatch)


def test_yaml_that_is_none_is_refused(tmp_path, capfd, monkeypatch):
    path = tmp_path / "bad.yaml"
    path.write_text("ppo: [1, 2\n")
    refuse(train.main, ["--config", str(path)], r"bad.yaml: not valid YAML", capfd, monkeypatch)
    path.write_text("- 3\n")
    refuse(train.main, ["--config", str(path)], r"expected settings", capfd, monkeypatch)


def test_a_read_only_folder_is_refused(tmp_path, capfd, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    os.chmod(tmp_path, 0o555)
    refuse(train.main, ["--out", str(tmp_path / "x")], r"out: cannot write", capfd, monkeypatch)


def test_values_are_read_by_their_type():
    config = resolve(
        {
            "total_timesteps": "10e6",
            "num_envs": "1_024",
            "ppo": {
                "learning_rate": "1e-3",
                "normalize_reward": "no",
                "target_kl": "none",
                "network": {"policy_hidden": "[64, 32]", "value_hidden": [8]},
            },
        },
        platform="none",
    ).train
    assert (config.total_timesteps, config.num_envs) == (10_000_000, 1024)
    assert config.ppo.learning_rate == 1e-3
    assert config.ppo.normalize_reward is False and config.ppo.target_kl is None
    assert config.ppo.network.policy_hidden == (64, 32)


def test_precedence_is_default_preset_file_command_line(tmp_path):
    from envs_mjx.ballbot import Ballbot

    file = {"env": {"name": "ballbot"}, "ppo": {"gamma": 0.5, "num_epochs": 2}}
    config = resolve(file, {"ppo": {"gamma": "0.7"}}, platform="cpu").train
    preset = Ballbot.presets["cpu"]["ppo"]
    assert config.ppo.num_steps == preset["ppo"]["num_steps"]
    assert (config.ppo.gamma, config.ppo.num_epochs) == (0.7, 2)
    assert config.num_envs == preset["num_envs"]


def test_a_resolved_configuration_reads_back_the_same(tmp_path, small_run):
    write_yaml(small_run(), tmp_path / "config.yaml")
    again = resolve(read_yaml(tmp_path / "config.yaml"), platform="none")
    assert again == small_run()


def test_every_shipped_configuration_resolves():
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs")
    names = [n for n in os.listdir(folder) if n.endswith(".yaml")]
    assert names
    for name in names:
        needs = "gym_aloha" if "legacy_aloha" in name else "pybullet" if "legacy" in name else "jax"
        if name == "depth_encoder.yaml":
            values = read_yaml(os.path.join(folder, name))
            resolve({"env": values.pop("env")}, platform="none")
            options.build(PretrainConfig, values)
            continue
        if name.endswith("pipeline.yaml"):
            pipelines.plan(pipelines.read(os.path.join(folder, name)), "cpu")
            continue
        if name.endswith("_space.yaml"):
            study = tuning.read(os.path.join(folder, name), None)
            first = tuning.first_choices(tuning.distributions(study))
            resolve(tuning.settings(study, first), platform="cpu")
            continue
        missing = importlib.util.find_spec(needs) is None
        said = pytest.raises(UserError, match="pip install") if missing else nullcontext()
        with said:
            resolve(read_yaml(os.path.join(folder, name)), platform="cpu")


def test_help_lists_every_setting(capsys):
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    for key in ("--env.drive", "--ppo.network.policy_hidden", "--checkpoint.keep", "--num_envs"):
        assert key in text
    assert evaluate.main(["--help"]) == 0
    for row in options.describe(type(resolve({}, platform="none").train)):
        assert row[3], f"{row[0]} has no help text"


def test_train_evaluate_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [
        "--env.name",
        "ballbot",
        "--num_envs",
        "8",
        "--total_timesteps",
        "128",
        "--chunk",
        "1",
        "--ppo.num_steps",
        "8",
        "--eval.every",
        "64",
        "--eval.episodes",
        "4",
        "--eval.final_episodes",
        "4",
        "--env.episode_seconds",
        "0.4",
    ]
    assert train.main(argv) == 0
    run = tmp_path / "checkpoints" / "ballbot-1"
    made = {p.name for p in run.iterdir()}
    assert made >= {"config.yaml", "progress.csv", "tensorboard", "checkpoints", "best", "eval"}
    assert "python -m jaxrl.evaluate checkpoints/ballbot-1" in capsys.readouterr().out

    assert evaluate.main([str(run), "--episodes", "4", "--set", "env.drive=omniwheel"]) == 0
    result = json.loads(next((run / "eval").glob("best-*-env.drive=omniwheel.json")).read_text())
    assert result["episodes"] == 4
    assert set(result["summary"]["return"]) == {
        "mean",
        "std",
        "min",
        "max",
        "ci95_low",
        "ci95_high",
    }

    assert evaluate.main([str(run), "--episodes", "2", "--on", "mujoco"]) == 0
    across = json.loads(next((run / "eval").glob("best-*-on-mjx-mujoco.json")).read_text())
    mjx, c = (across["simulators"][name]["summary"]["return"]["mean"] for name in ("mjx", "mujoco"))
    assert c == pytest.approx(mjx, abs=0.1)
    assert "mujoco         gap" in capsys.readouterr().out

    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "data:image/png;base64," in page and "num_envs: 8" in page
    assert not re.search(r"(src|href)=.https?://", page)  # one file, nothing loaded

    with pytest.raises(UserError, match="already holds a run"):
        train.main([*argv, "--out", str(run)])


def test_video_is_written_or_its_lack_explained(tmp_path, monkeypatch):
    from envs_mjx.ballbot import Ballbot
    from jaxrl.commands.evaluate import baselines
    from jaxrl.video import record

    task = Ballbot(episode_seconds=0.4)
    path = tmp_path / "x.mp4"
    try:
        record(task, baselines(task)["lqr"], None, path)
    except UserError as error:
        assert "libegl1" in str(error) and "libosmesa6" in str(error)
    else:
        assert path.stat().st_size > 1000

    import mujoco

    def no_gl(*args, **kwargs):
        raise ImportError("no GL here")

    monkeypatch.setattr(mujoco, "Renderer", no_gl)
    with pytest.raises(UserError, match="install EGL"):
        record(task, baselines(task)["lqr"], None, path)
    shutil.rmtree(tmp_path)


def test_a_dry_run_says_what_a_run_needs_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--env", "countdown", "--num_envs", "64", "--ppo.num_steps", "8"]
    assert train.main([*settings, "--dry_run"]) == 0
    out = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["run"].startswith("countdown with ppo, 64 worlds")
    assert "networks" in lines["memory"] and lines["fits"].startswith("num_envs up to about")
    assert list(tmp_path.iterdir()) == []
    assert train.main(["--env.gym", "Pendulum-v1", "--algo", "sac", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "replay" in out and "compile" not in out


def test_the_memory_of_a_plan_grows_with_the_worlds(small_run):
    few, many = (plan(small_run({"num_envs": count})) for count in (64, 4096))
    assert few["program_bytes"] < many["program_bytes"]
    assert few["max_worlds"] == pytest.approx(many["max_worlds"], rel=0.5)
