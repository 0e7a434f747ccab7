"""`python -m jaxrl.train`: train a policy."""

from __future__ import annotations

import textwrap
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

Trains a policy; without arguments, on the task ballbot. Settings are dotted keys, each given as
--KEY VALUE or as --set KEY=VALUE:
  python -m jaxrl.train --seed 1 --ppo.learning_rate 1e-4 --env.max_speed 0.4

  --config FILE    read settings from a YAML file (examples: configs/)
  --resume RUN     continue the run in the folder RUN from its newest checkpoint, with its
                   own settings
  --num_seeds N    train N runs in one program, with the seeds --seed, --seed + 1, ...
  --sweep KEY=VALUE,VALUE,...
                   train one run for each value of the setting KEY, all in one program;
                   several --sweep make a grid of all combinations; KEY:KEY=VALUE:VALUE,... changes
                   settings together
  --eval_overrides.SETTING VALUE
                   value that the task's setting --env.SETTING has in evaluations only
  --distributed auto
                   train in the processes that SLURM or Open MPI has started; by hand, each process
                   has --distributed.coordinator HOST:PORT (where process 0 listens),
                   --distributed.num_processes N and --distributed.process_id I
  --wandb          also log to Weights & Biases
  --dry_run        do not train: print what will run where, its memory, the seconds that
                   compilation takes, and about the largest num_envs that fits
  --print_config   print the settings of the run as YAML, which --config can read, and exit
  --help           print this text and all settings, with the values they have in this run
"""
MAX_LINE = 100  # characters of a line of the settings in --help

FLAGS = {
    "distributed": True,
    "distributed.coordinator": True,
    "distributed.num_processes": True,
    "distributed.process_id": True,
    "config": True,
    "resume": True,
    "sweep": True,
    "wandb": False,
    "dry_run": False,
    "print_config": False,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; give settings as --KEY VALUE")
    if flags.get("wandb"):
        settings = merge(settings, {"log": {"wandb": True}})
    if flags.get("sweep"):
        settings = merge(settings, {"sweep": flags["sweep"]})
    if flags.get("help"):
        print(USAGE)
    config, resume = _configure(flags, settings)
    if flags.get("help"):
        return _help(config)
    if flags.get("print_config"):
        return _print_config(config)
    if flags.get("dry_run"):
        from jaxrl import planning

        print(planning.describe(planning.plan(config)))
        return 0
    from jaxrl import training

    trained = training.train(config, resume)
    from jaxrl import hosts

    if trained.status == 0 and hosts.is_first():
        _show(trained)
    return trained.status


def _configure(flags: dict[str, Any], settings: dict[str, Any]) -> tuple[RunConfig, Path | None]:
    """The configuration of the run that the arguments describe, and its folder if it is resumed."""
    from jaxrl import hosts

    hosts.start(flags)
    platform = cli.start_jax()
    from jaxrl import storage, training
    from jaxrl.config import read_yaml

    layers = [settings]
    if flags.get("config"):
        layers.insert(0, read_yaml(flags["config"]))
    resume = storage.resumed(flags["resume"]) if flags.get("resume") else None
    return training.configure(layers, platform, resume=resume, typed=settings), resume


def _show(trained: Trained) -> None:
    """Prints the final evaluations, and the commands for the next steps."""
    from jaxrl.evaluation import format_summary

    config, folder = trained.config, trained.folder
    for name, path, result in trained.finals:
        if result is None:
            print(f"\n{path}: diverged before its first evaluation")
            continue
        episodes = result["episodes"]
        print(f"\n{name or folder} {result['source']} over {episodes} episodes:")
        print(format_summary(result["summary"], config.eval_env))
    if trained.was_finished and not trained.finals:
        return
    video = f" --video {trained.best}/videos/best.mp4" if config.env.can_render else ""
    steps, minutes = trained.progress.timesteps, trained.progress.elapsed / 60
    print(f"""
{steps:,} control steps in {minutes:.1f} min, written to {folder}/
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

    task_rows, training_rows = config.describe()
    _print_wrapped(f"Tasks (--env.name): {', '.join(envs.names())}")
    print(f"\nSettings of the task {config.task}:")
    print_rows(task_rows)
    print(
        f"\nSettings of training with {config.train.algo} (other algorithms: --algo NAME --help):"
    )
    print_rows(training_rows)
    return 0


def print_rows(rows: list[tuple[str, str, str, str]]) -> None:
    """Prints rows (dotted key, type, value, help) of settings."""
    for key, kind, value, text in rows:
        _print_wrapped(f"  --{key} [{kind}; {value}]")
        _print_wrapped(" " * 8 + text)


def _print_wrapped(text: str) -> None:
    """Prints a text in lines of at most `MAX_LINE` characters, later ones indented."""
    lines = textwrap.wrap(
        text,
        MAX_LINE,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))
