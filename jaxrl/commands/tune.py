"""`python -m jaxrl.tune`: search for good settings."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError

USAGE = """\
usage: python -m jaxrl.tune --space FILE [--config FILE] [--trials N] [--out DIR]
                            [--processes N] [--backend ray [--cpus X] [--gpus X]] [--resume]

Searches for good settings with Optuna: each trial is a run of jaxrl.train with other settings, and
trials that are behind the others are stopped early. A trial whose process was killed is continued.

  --space FILE     the settings to search, and what is optimised (YAML; example:
                   configs/ballbot_space.yaml)
  --config FILE    settings that all trials share, as for jaxrl.train
  --trials N       number of trials; default: 50
  --processes N    number of trials that run at the same time, each in its own process; default: 1
  --backend ray    these processes are tasks of a Ray cluster: the one of RAY_ADDRESS, or of this
                   machine, which is started if there is none; all its machines need DIR under the
                   same path
  --cpus X         CPU cores of such a task; default: 1
  --gpus X         GPUs of such a task, such as 0.25: four of them share a GPU; default: 0
  --out DIR        folder of the study; default: studies/<name of the space's file>
  --resume         continue the study in DIR; a larger --trials adds trials
  --help           print this text and the settings of a study

Written into DIR: a run's folder for each trial, study.json (all trials), best.yaml (the best
settings, as a file for jaxrl.train --config), and report.html.
"""

FLAGS = {
    "space": True,
    "config": True,
    "trials": True,
    "processes": True,
    "backend": True,
    "cpus": True,
    "gpus": True,
    "out": True,
    "resume": False,
    "worker": True,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, FLAGS)
    if positionals:
        raise UserError(f"unexpected argument {positionals[0]!r}; expected --space FILE")
    if flags.get("help"):
        return _help()
    from jaxrl import tuning

    trials = cli.parse_int(flags, "trials", 50)
    work = _workers(flags)
    config, folder = _find(flags)
    if work:  # which need the GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platform = cli.start_jax()
    worker = cli.parse_int(flags, "worker", 0, minimum=0)
    study = tuning.Study(config, folder, trials=trials, platform=platform, worker=worker)
    if "worker" not in flags:
        tuning.save_spec(config, folder)
    status = 0
    try:
        if work:
            status = work(folder, trials)
        else:
            study.work()
    except tuning.Stopped as stopped:
        return stopped.status
    if "worker" not in flags:
        _show(study)
    return status


def _workers(flags: dict[str, Any]) -> Callable[[Path, int], int] | None:
    """What works in the folder of a study with a number of trials; None: this process."""
    from jaxrl import workers

    count = cli.parse_int(flags, "processes", 1)
    backend = flags.get("backend", "processes")
    if backend not in ("processes", "ray"):
        raise UserError(f"--backend: got {backend!r}, expected processes or ray")
    if backend == "ray":
        cpus, gpus = (cli.parse_number(flags, *each) for each in (("cpus", 1), ("gpus", 0)))
        return functools.partial(workers.on_ray, count, cpus=cpus, gpus=gpus)
    for name in ("cpus", "gpus"):
        if name in flags:
            raise UserError(f"--{name}: only with --backend ray")
    return functools.partial(workers.in_processes, count) if count > 1 else None


def _find(flags: dict[str, Any]) -> tuple[Any, Path]:
    """The study, and its folder."""
    from jaxrl import tuning

    out = Path(flags["out"]) if flags.get("out") else None
    resumes = "resume" in flags or "worker" in flags
    if flags.get("space"):
        folder = out or Path("studies") / Path(flags["space"]).stem
    elif resumes and out:
        folder = out
    else:
        raise UserError("expected --space FILE, or --resume --out DIR (see --help)")
    begun = (folder / tuning.JOURNAL).exists()
    if begun and not resumes:
        raise UserError(
            f"{folder}: already holds a study; continue it with --resume, or choose another --out"
        )
    if resumes and not (folder / tuning.SPEC).exists():
        raise UserError(f"--resume: {folder} holds no study")
    if not flags.get("space"):
        return tuning.read(folder / tuning.SPEC, None), folder
    return tuning.read(flags["space"], flags.get("config")), folder


def _show(study: Any) -> None:
    """Writes the study's results, and prints the best ones."""
    from jaxrl import tuning
    from jaxrl.files import write_text
    from jaxrl.reporting import study_page

    study.write()
    try:
        write_text(study.folder / "report.html", study_page.page(study))
    except UserError as error:
        print(f"no report: {error}", file=sys.stderr)
    best = study.best()
    if not best:
        print(f"no trial is complete; see {study.folder}/{tuning.REPORT}")
        return
    for trial in best:
        values = ", ".join(
            f"{m} {v:.4g}" for m, v in zip(study.config.metrics, trial.values, strict=True)
        )
        print(f"best: trial {trial.number}, {values}")
        for key, value in trial.params.items():
            print(f"  {key} {tuning.shown(value)}")
    name = tuning.BEST if len(best) == 1 else "best-1.yaml"
    print(f"train with them: python -m jaxrl.train --config {study.folder}/{name}")


def _help() -> int:
    from jaxrl import tuning
    from jaxrl.commands.train import print_rows
    from jaxrl.options import describe

    print(USAGE)
    print("Settings of a study (the file of --space):")
    print_rows(describe(tuning.StudyConfig))
    return 0
