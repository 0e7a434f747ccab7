"""From settings to a trained run, as the command and `jaxrl.train` both do it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.algos import ALGORITHMS
from jaxrl.callbacks import Callback
from jaxrl.config import RunConfig, read_yaml, resolve
from jaxrl.errors import UserError
from jaxrl.files import LOCK
from jaxrl.options import flatten
from jaxrl.run_folder import Progress
from jaxrl.runs import MEMBERS, evaluate_policy, load_policy, write_json
from jaxrl.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes:
      config: of the run.
      folder: of the run.
      best: the folder of the run, or of the population's best member.
      status: 0, or 128 + the number of the signal that stopped it.
      progress: counters.
      finals: of each member its name, its folder and the evaluation of its best model; None
        where it has none. Empty where nothing was evaluated at the end.
      was_finished: nothing was left to train.
    """

    config: RunConfig
    folder: Path
    best: Path
    status: int
    progress: Progress
    finals: list[tuple[str, Path, dict[str, Any] | None]]
    was_finished: bool


def configure(
    layers: Sequence[dict[str, Any]], platform: str, *, resume: Path | None, typed: dict[str, Any]
) -> RunConfig:
    """The run that settings ask for.

    Args:
      layers: settings; later ones win.
      platform: "cpu" or "gpu".
      resume: a run to go on with; its own settings come first.
      typed: settings that are refused where they would change nothing.

    Raises:
      UserError: settings that cannot be used, or a folder that holds no run to go on with.
    """
    layers = list(layers)
    if resume is not None:
        _check_resume(resume, {key for layer in layers for key in layer})
        layers.insert(0, read_yaml(resume / "config.yaml"))
    config = resolve(*layers, platform=platform)
    _check_effect(config, list(flatten(typed)))
    return config


def train(
    config: RunConfig, resume: Path | None = None, callbacks: Sequence[Callback] = ()
) -> Trained:
    """Trains a run, and evaluates its best models at the end.

    Args:
      config: the run.
      resume: the folder of the run to go on with; none: a new one.
      callbacks: called while it trains.

    Raises:
      UserError: it cannot be trained.
    """
    folder = resume or new_folder(config)
    try:
        trainer = Trainer(config, folder, resume=resume is not None, callbacks=callbacks)
    except UserError:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {LOCK}:  # it holds nothing yet
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise
    was_finished, status = trainer.finished, 0
    if was_finished:
        print(
            f"{folder}: all of its {trainer.progress.timesteps:,} control steps have been trained; "
            "to go on, give a larger --total_timesteps",
            file=sys.stderr,
        )
        trainer.close()
    else:
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
    # A finished run has no final evaluation if it was killed before its end.
    ends = not status and not (was_finished and (folder / "eval" / "final.json").exists())
    return Trained(
        config=config,
        folder=folder,
        best=trainer.folder.best(trainer.progress),
        status=status,
        progress=trainer.progress,
        finals=_evaluate_best(config, trainer) if ends else [],
        was_finished=was_finished,
    )


def _evaluate_best(
    config: RunConfig, trainer: Trainer
) -> list[tuple[str, Path, dict[str, Any] | None]]:
    """The members' best models in fresh episodes, written to RUN/eval/final.json."""
    finals: list[tuple[str, Path, dict[str, Any] | None]] = []
    episodes = config.train.eval.final_episodes
    for own in trainer.folder.members if episodes else ():
        result = None
        if own.best.steps() or not config.is_population:
            trained = load_policy(own.path)
            result = evaluate_policy(trained, episodes, own.member.config.train.seed)
            write_json(own.path / "eval" / "final.json", result)
        finals.append((own.member.name, own.path, result))
    return finals


def _check_effect(config: RunConfig, typed: list[str]) -> None:
    """Refuses settings from the command line that would change nothing; a file may have them."""
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


def new_folder(config: RunConfig) -> Path:
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
