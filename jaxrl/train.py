"""`python -m jaxrl.train`: train a policy."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import LOCK
from jaxrl.options import flatten, merge

if TYPE_CHECKING:
    from jaxrl.config import RunConfig

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
    from jaxrl.trainer import Trainer

    resume = flags.get("resume")
    folder = Path(resume) if resume else _new_folder(config)
    try:
        trainer = Trainer(config, folder, resume=bool(resume))
    except UserError:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {LOCK}:  # it holds nothing yet
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise
    if trainer.finished:
        print(
            f"{folder}: all of its {trainer.progress.timesteps:,} control steps have been trained; "
            "to go on, give a larger --total_timesteps",
            file=sys.stderr,
        )
        if not (folder / "eval" / "final.json").exists():  # it was killed before its end
            _finish(config, folder, trainer)
        return 0
    many = f"{len(trainer.population)} runs at once, " if config.is_population else ""
    print(
        f"{config.task} with {config.train.algo}, {many}{config.train.num_envs} worlds"
        f"{' each' if many else ''} -> {folder}",
        file=sys.stderr,
    )
    status = trainer.run()
    if status:
        print(
            f"stopped and saved; go on with: python -m jaxrl.train --resume {folder}",
            file=sys.stderr,
        )
        return status
    _finish(config, folder, trainer)
    return 0


def _configure(flags: dict[str, Any], settings: dict[str, Any]) -> RunConfig:
    """The run that the arguments ask for."""
    platform = cli.start_jax()
    from jaxrl.config import read_yaml, resolve

    layers = [settings]
    if flags.get("config"):
        layers.insert(0, read_yaml(flags["config"]))
    if flags.get("resume"):
        _check_resume(Path(flags["resume"]), {key for layer in layers for key in layer})
        layers.insert(0, read_yaml(Path(flags["resume"]) / "config.yaml"))
    config = resolve(*layers, platform=platform)
    _check_effect(config, list(flatten(settings)))
    return config


def _check_effect(config: RunConfig, typed: list[str]) -> None:
    """Refuses settings from the command line that would change nothing; a file may have them."""
    from jaxrl.algos import ALGORITHMS

    train, judged = config.train, config.eval_every > 0
    algo, own = train.algo, train.settings
    needs: list[tuple[str, bool, str]] = [
        *((f"{other}.", other == algo, f"--algo {other}") for other in ALGORITHMS),
        ("ppo.expert.coef", train.ppo.expert.name is not None, "ppo.expert.name"),
        ("ppo.expert.until", train.ppo.expert.name is not None, "ppo.expert.name"),
        (f"{algo}.value_range", vars(own).get("num_atoms", 1) > 1, f"{algo}.num_atoms above 1"),
        (
            f"{algo}.network.value_hidden",
            not own.network.shared_trunk,
            f"{algo}.network.shared_trunk false",
        ),
        ("checkpoint.replay", algo != "ppo", "--algo sac or td3"),
        ("eval.stop_metric", train.eval.stop_at is not None, "eval.stop_at"),
        ("eval.episodes", judged, "eval.every above 0"),
        ("eval.best_by", judged, "eval.every above 0"),
    ]
    for key in typed:
        for prefix, met, needed in needs:
            if key.startswith(prefix) and not met:
                raise UserError(f"--{key}: has no effect without {needed}")


def _check_resume(run: Path, settings: set[str]) -> None:
    """Refuses to go on with what is no whole run, or as another run."""
    from jaxrl.runs import MEMBERS

    for key in ("out", "seed", "num_seeds", "sweep", "algo"):
        if key in settings:
            raise UserError(f"--{key}: cannot be changed together with --resume")
    if run.resolve().parent.name == MEMBERS:
        raise UserError(
            f"--resume {run}: a member of a population goes on with it: "
            f"--resume {run.resolve().parent.parent}"
        )
    if (run / "best").exists() and not (run / "checkpoints").exists():
        raise UserError(
            f"--resume {run}: holds a trained policy, but no training state to go on from"
        )


def _new_folder(config: RunConfig) -> Path:
    """--out, or the first free checkpoints/<task>-<n>."""
    if config.train.out:
        folder = Path(config.train.out)
        try:
            taken = (folder / "config.yaml").exists()
        except OSError as error:  # such as a name that is too long
            raise UserError(f"out: cannot write to {folder}: {error.strerror}") from error
        if taken:
            raise UserError(
                f"out: {folder} already holds a run; go on with it by --resume {folder}, "
                "or choose another --out"
            )
        return folder
    for number in range(1, 100_000):
        folder = Path("checkpoints") / f"{config.task.replace(':', '-')}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"out: cannot write to {folder}: {error.strerror}") from error
    raise UserError("out: checkpoints/ is full of runs; choose another with --out")


def _finish(config: RunConfig, folder: Path, trainer) -> None:
    """Evaluates the best models and says where everything lies."""
    from jaxrl.evaluation import format_summary
    from jaxrl.runs import evaluate_policy, load_policy, write_json

    episodes = config.train.eval.final_episodes
    for own in trainer.folder.members if episodes else ():
        if not own.best.steps() and config.is_population:
            print(f"\n{own.path}: never evaluated before it diverged")
            continue
        trained = load_policy(own.path)
        result = evaluate_policy(trained, episodes, own.member.config.train.seed)
        write_json(own.path / "eval" / "final.json", result)
        print(f"\n{own.member.name or folder} {result['source']} over {episodes} episodes:")
        print(format_summary(result["summary"], config.eval_env))
    minutes = trainer.progress.elapsed / 60
    best = trainer.folder.best(trainer.progress)
    video = f" --video {best}/videos/best.mp4" if config.env.can_render else ""
    print(f"""
{trainer.progress.timesteps:,} control steps in {minutes:.1f} min, all in {folder}/
  evaluate   python -m jaxrl.evaluate {best}{video}
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


if __name__ == "__main__":
    cli.run(main)
