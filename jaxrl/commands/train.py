"""`python -m jaxrl.train`: train a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.options import merge

if TYPE_CHECKING:
    from jaxrl.config import RunConfig
    from jaxrl.training import Trained

USAGE = """\
usage: python -m jaxrl.train [--config FILE] [--resume RUN] [--SETTING VALUE ...]

Trains a policy; without arguments, the ballbot. Settings are dotted keys:
  python -m jaxrl.train --seed 1 --ppo.learning_rate 1e-4 --env.max_speed 0.4

  --config FILE    settings from a YAML file (see configs/)
  --resume RUN     go on with a run from its newest checkpoint, with its own settings
  --num_seeds N    N runs with seeds from --seed on, in one program
  --sweep KEY=VALUE,VALUE..  a run for each value, in one program; several make a grid
  --eval_overrides.SETTING VALUE  a setting of the task (--env.SETTING) that differs when it
                   is evaluated
  --wandb          log to Weights & Biases too
  --print_config   print the settings that the run would have, as a file for --config
  --help           this text, and all settings with what the run would have
"""

FLAGS = {
    "config": True,
    "resume": True,
    "sweep": True,
    "wandb": False,
    "print_config": False,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; settings are --KEY VALUE")
    if flags.get("wandb"):
        settings = merge(settings, {"log": {"wandb": True}})
    if flags.get("sweep"):
        settings = merge(settings, {"sweep": flags["sweep"]})
    if flags.get("help"):
        print(USAGE)
    config = _configure(flags, settings)
    if flags.get("help"):
        return _help(config)
    if flags.get("print_config"):
        return _print_config(config)
    from jaxrl import training

    resume = flags.get("resume")
    trained = training.train(config, Path(resume) if resume else None)
    if trained.status == 0:
        _show(trained)
    return trained.status


def _configure(flags: dict[str, Any], settings: dict[str, Any]) -> RunConfig:
    """The run that the arguments ask for."""
    platform = cli.start_jax()
    from jaxrl import training
    from jaxrl.config import read_yaml

    layers = [settings]
    if flags.get("config"):
        layers.insert(0, read_yaml(flags["config"]))
    resume = Path(flags["resume"]) if flags.get("resume") else None
    return training.configure(layers, platform, resume=resume, typed=settings)


def _show(trained: Trained) -> None:
    """Prints what the best models do, and where everything lies."""
    from jaxrl.evaluation import format_summary

    config, folder = trained.config, trained.folder
    for name, path, result in trained.finals:
        if result is None:
            print(f"\n{path}: never evaluated before it diverged")
            continue
        episodes = result["episodes"]
        print(f"\n{name or folder} {result['source']} over {episodes} episodes:")
        print(format_summary(result["summary"], config.eval_env))
    if trained.was_finished and not trained.finals:
        return
    video = f" --video {trained.best}/videos/best.mp4" if config.env.can_render else ""
    steps, minutes = trained.progress.timesteps, trained.progress.elapsed / 60
    print(f"""
{steps:,} control steps in {minutes:.1f} min, all in {folder}/
  evaluate   python -m jaxrl.evaluate {trained.best}{video}
  report     python -m jaxrl.report {folder}
  curves     tensorboard --logdir {folder}/tensorboard""")


def _print_config(config: RunConfig) -> int:
    from jaxrl import strict_yaml

    out = {"out": config.train.out} if config.train.out else {}
    print(strict_yaml.dump(config.to_dict() | out), end="")
    return 0


def _help(config: RunConfig) -> int:
    from jaxrl import envs

    own, training = config.describe()
    print(f"Tasks (--env.name): {', '.join(envs.names())}. Settings of {config.task}:")
    _print_rows(own)
    print(f"\nTraining with {config.train.algo} (others: --algo NAME --help):")
    _print_rows(training)
    return 0


def _print_rows(rows: list[tuple[str, str, str, str]]) -> None:
    for key, kind, value, text in rows:
        print(f"  --{key} [{kind}; {value}]\n        {text}")
