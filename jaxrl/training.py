"""Training from settings to results: the common part of the command and of `jaxrl.train`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrl import hosts, platform, storage
from jaxrl.algos import ALGORITHMS
from jaxrl.callbacks import Callback
from jaxrl.config import RunConfig, read_yaml, resolve
from jaxrl.errors import UserError
from jaxrl.files import LOCK
from jaxrl.options import flatten, merge
from jaxrl.run_folder import Progress
from jaxrl.runs import MEMBERS, evaluate_policy, load_constants, load_policy, write_json
from jaxrl.trainer import Trainer

LARGE = 200e6  # bytes of training's memory that are said at the start


@dataclasses.dataclass(frozen=True)
class Trained:
    """The results of training.

    Attributes:
      config: configuration of the run.
      folder: folder of the run.
      best: folder of the run, or of the population's best member.
      status: 0, or 128 + the number of the signal that stopped training.
      progress: the counters at the end.
      finals: name and folder of each member, and the evaluation of its best model, or None if the
        member has no best model. Empty if there was no evaluation at the end.
      was_finished: whether nothing was left to train at the start.
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
    """Makes the configuration of a run from settings.

    Args:
      layers: dictionaries of settings; later ones win.
      platform: "cpu" or "gpu".
      resume: folder of a run to continue; the other settings replace its own.
      typed: settings that were given directly, not in a file; refused if they have no effect.

    Raises:
      UserError: settings that cannot be used, or a folder without a run that can be continued.
    """
    layers, constants = list(layers), None
    if resume is not None:
        _check_resume(resume, {key for layer in layers for key in layer})
        constants = load_constants(resume, merge(*layers))
        layers.insert(0, read_yaml(resume / "config.yaml"))
    config = resolve(*layers, platform=platform, constants=constants)
    _check_effect(config, list(flatten(typed)))
    return config


def train(
    config: RunConfig, resume: Path | None = None, callbacks: Sequence[Callback] = ()
) -> Trained:
    """Trains a run, and evaluates its best models at the end.

    Args:
      config: configuration of the run.
      resume: folder of the run to continue; None: a new run.
      callbacks: called during training.

    Raises:
      UserError: the run cannot be trained.
    """
    folder = resume or Path(hosts.share_json(str(_folder(config))))
    location = config.train.storage if hosts.is_first() else None
    with storage.mirrored(folder, location, is_new=resume is None):
        return _train(config, folder, is_resumed=resume is not None, callbacks=callbacks)


def train_in(
    folder: Path, make: Callable[[], RunConfig], callbacks: Sequence[Callback] = ()
) -> Trained:
    """Trains the run in a folder: continues it if it was begun, and otherwise begins it.

    Args:
      folder: folder of the run.
      make: returns the configuration of a new run; its `out` is replaced.
      callbacks: called during training.

    Raises:
      UserError: the run cannot be trained.
    """
    if (folder / "config.yaml").exists():
        return train(configure([], "none", resume=folder, typed={}), folder, callbacks)
    config = make()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, out=str(folder)))
    return train(config, None, callbacks)


def _train(
    config: RunConfig, folder: Path, *, is_resumed: bool, callbacks: Sequence[Callback]
) -> Trained:
    """Trains the run in a folder, and evaluates its best models at the end."""
    watch = hosts.Watch(f"continue from the newest checkpoint with --resume {folder}")
    trainer = _make_trainer(config, folder, resume=is_resumed, callbacks=callbacks)
    was_finished, status = trainer.finished, 0
    if not hosts.is_first():  # the first process prints and evaluates
        status = 0 if was_finished else trainer.run()
    elif was_finished:
        print(
            f"{folder}: all of its {trainer.progress.timesteps:,} control steps have been trained; "
            "to continue, give a larger --total_timesteps",
            file=sys.stderr,
        )
        trainer.close()
    else:
        count = f"{len(trainer.population)} runs at once, " if config.is_population else ""
        number = trainer.population.algo.devices
        places = f" on {number} devices" if number > 1 else ""
        engine = f" on the engine {config.env.engine_name}" if config.env.engine_name else ""
        print(
            f"{config.task}{engine} with {config.train.algo}, {count}{config.train.num_envs} worlds"
            f"{' each' if count else ''}{places} -> {folder}",
            file=sys.stderr,
        )
        memory = trainer.population.memory
        if sum(memory.values()) > LARGE:
            print(f"memory: at least {platform.sizes(memory)}", file=sys.stderr)
        status = trainer.run()
    if status and hosts.is_first():
        print(
            f"stopped and saved; continue with: python -m jaxrl.train --resume {folder}",
            file=sys.stderr,
        )
    watch.done()
    # A finished run has no final evaluation if it was killed before its end.
    ends = not status and not (was_finished and (folder / "eval" / "final.json").exists())
    ends = ends and hosts.is_first()
    return Trained(
        config=config,
        folder=folder,
        best=trainer.folder.best(trainer.progress),
        status=status,
        progress=trainer.progress,
        finals=_evaluate_best(config, trainer) if ends else [],
        was_finished=was_finished,
    )


def _make_trainer(
    config: RunConfig, folder: Path, *, resume: bool, callbacks: Sequence[Callback]
) -> Trainer:
    """Makes the trainer; if that fails, a folder without other files is removed."""
    try:
        return Trainer(config, folder, resume=resume, callbacks=callbacks)
    except UserError:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise


def _evaluate_best(
    config: RunConfig, trainer: Trainer
) -> list[tuple[str, Path, dict[str, Any] | None]]:
    """Evaluates each member's best model in new episodes; writes eval/final.json in its folder."""
    finals: list[tuple[str, Path, dict[str, Any] | None]] = []
    episodes = config.train.eval.final_episodes
    for member in trainer.folder.members if episodes else ():
        result = None
        if member.best.steps() or not config.is_population:
            trained = load_policy(member.path)
            result = evaluate_policy(trained, episodes, member.member.config.train.seed)
            write_json(member.path / "eval" / "final.json", result)
        finals.append((member.member.name, member.path, result))
    return finals


def _check_effect(config: RunConfig, typed: list[str]) -> None:
    """Refuses directly given settings that have no effect; a file may contain such settings."""
    train, evaluates = config.train, config.eval_every > 0
    algo, settings = train.algo, train.settings
    requirements: list[tuple[str, bool, str]] = [
        *((f"{other}.", other == algo, f"--algo {other}") for other in ALGORITHMS),
        ("ppo.expert.coef", train.ppo.expert.name is not None, "ppo.expert.name"),
        ("ppo.expert.until", train.ppo.expert.name is not None, "ppo.expert.name"),
        (
            f"{algo}.value_range",
            vars(settings).get("num_atoms", 1) > 1,
            f"{algo}.num_atoms above 1",
        ),
        (
            f"{algo}.network.value_hidden",
            not settings.network.shared_trunk,
            f"{algo}.network.shared_trunk false",
        ),
        ("checkpoint.replay", algo != "ppo", "--algo sac or td3"),
        ("init_parts", train.init_from is not None, "init_from"),
        ("eval.stop_metric", train.eval.stop_at is not None, "eval.stop_at"),
        ("eval.episodes", evaluates, "eval.every above 0"),
        ("eval.best_by", evaluates, "eval.every above 0"),
    ]
    for key in typed:
        for prefix, is_met, needed in requirements:
            if key.startswith(prefix) and not is_met:
                raise UserError(f"--{key}: has no effect without {needed}")


def _check_resume(run: Path, settings: set[str]) -> None:
    """Refuses a folder without a complete run, and settings that a run must keep."""
    for key in ("out", "seed", "num_seeds", "sweep", "algo", "init_from", "init_parts"):
        if key in settings:
            raise UserError(f"--{key}: cannot be changed together with --resume")
    if run.resolve().parent.name == MEMBERS:
        raise UserError(
            f"--resume {run}: is a member of a population, which can only be resumed as a whole: "
            f"--resume {run.resolve().parent.parent}"
        )
    if (run / "best").exists() and not (run / "checkpoints").exists():
        raise UserError(
            f"--resume {run}: holds a trained policy, but no training state to continue from"
        )


def _folder(config: RunConfig) -> Path | None:
    """The folder of a new run, which the first process makes."""
    return new_folder(config) if hosts.is_first() else None


def new_folder(config: RunConfig) -> Path:
    """The folder of a new run: --out, or the first free checkpoints/<task>-<n>."""
    if config.train.out:
        folder = Path(config.train.out)
        try:
            is_taken = (folder / "config.yaml").exists()
        except OSError as error:  # for example, the name is too long
            raise UserError(f"out: cannot write to {folder}: {error.strerror}") from error
        if is_taken:
            raise UserError(
                f"out: {folder} already holds a run; continue it with --resume {folder}, "
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
    raise UserError(
        "out: checkpoints/ has no free number for another run; choose a folder with --out"
    )
