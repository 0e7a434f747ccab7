"""`python -m jaxrl.train`: train a policy."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import LOCK
from jaxrl.options import merge

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
  --help           this text and all settings
"""

FLAGS = {"config": True, "resume": True, "sweep": True, "wandb": False, "help": False}


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; settings are --KEY VALUE")
    if flags.get("wandb"):
        settings = merge(settings, {"log": {"wandb": True}})
    if flags.get("sweep"):
        settings = merge(settings, {"sweep": flags["sweep"]})
    if flags.get("help"):
        return _help(settings)
    platform = cli.start_jax()
    from jaxrl.config import read_yaml, resolve
    from jaxrl.trainer import Trainer

    layers: list[dict[str, Any]] = []
    resume = flags.get("resume")
    if flags.get("config"):
        settings = merge(read_yaml(flags["config"]), settings)
    if resume:
        _check_resume(Path(resume), settings)
        layers.append(read_yaml(Path(resume) / "config.yaml"))
    config = resolve(*layers, settings, platform=platform)
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


def _check_resume(run: Path, settings: dict[str, Any]) -> None:
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


def _new_folder(config) -> Path:
    """--out, or the first free checkpoints/<task>-<n>."""
    if config.train.out:
        folder = Path(config.train.out)
        if (folder / "config.yaml").exists():
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


def _finish(config, folder: Path, trainer) -> None:
    """Evaluates the best models and says where everything lies."""
    from jaxrl.evaluation import format_summary
    from jaxrl.runs import evaluate_policy, load_policy, write_json
    from jaxrl.video import can_be_drawn

    episodes = config.train.eval.final_episodes
    for own in trainer.folders if episodes else ():
        if not own.best.steps() and config.is_population:
            print(f"\n{own.path}: never evaluated before it diverged")
            continue
        trained = load_policy(own.path)
        result = evaluate_policy(trained, episodes, own.member.config.train.seed)
        write_json(own.path / "eval" / "final.json", result)
        print(f"\n{own.member.name or folder} {result['source']} over {episodes} episodes:")
        print(format_summary(result["summary"], config.eval_env))
    minutes = trainer.progress.elapsed / 60
    best = trainer.best_folder()
    video = f" --video {best}/videos/best.mp4" if can_be_drawn(config.env) else ""
    print(f"""
{trainer.progress.timesteps:,} control steps in {minutes:.1f} min, all in {folder}/
  evaluate   python -m jaxrl.evaluate {best}{video}
  report     python -m jaxrl.report {folder}
  curves     tensorboard --logdir {folder}/tensorboard""")


def _help(settings: dict[str, Any]) -> int:
    from jaxrl import envs
    from jaxrl.config import DEFAULT_TASK, TrainConfig
    from jaxrl.envs import WrapConfig
    from jaxrl.options import describe

    env = settings.get("env", {})
    task = env if isinstance(env, str) else env.get("name", DEFAULT_TASK)
    print(USAGE)
    print(f"Tasks (--env.name): {', '.join(envs.names())}. Settings of {task}:")
    own = [*describe(envs.env_class(task), "env."), *describe(WrapConfig, "env.wrap.")]
    rows = [*own, None, *describe(TrainConfig)]
    for row in rows:
        if row is None:
            print("\nTraining (a task's preset may change these defaults):")
            continue
        key, kind, default, text = row
        print(f"  --{key} [{kind}; {default}]\n        {text}")
    return 0


if __name__ == "__main__":
    cli.run(main)
