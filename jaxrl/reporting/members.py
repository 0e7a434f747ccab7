"""The runs that a page compares: members of populations and single runs, grouped by settings."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.algos import ALGORITHMS
from jaxrl.errors import UserError
from jaxrl.logs import columns
from jaxrl.options import flatten
from jaxrl.reporting.pages import SECONDS, STEPS
from jaxrl.reporting.reading import Evaluation, read_config, read_evaluation, read_rows, warn
from jaxrl.runs import MEMBERS

# Settings that do not affect what a run learns, or that concern a population as a whole.
WITHOUT_EFFECT = ("log", "checkpoint", "eval", "num_seeds", "sweep")


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a comparison.

    Args:
      name: its folder, relative to the folder that contains all compared runs.
      folder: its folder.
      seed: its seed.
      settings: "a.b" -> value, of all settings that can affect what is learned, except the seed.
      rows: rows of progress.csv.
    """

    name: str
    folder: Path
    seed: Any
    settings: dict[str, Any]
    rows: list[dict[str, float]]

    def curve(self, name: str, x: str = STEPS) -> np.ndarray:
        """[2, K] x and y values of a column: the finite ones before the run diverged."""
        end = math.inf if self.diverged is None else self.diverged
        rows = (row for row in self.rows if row[STEPS] < end)
        points = [(row.get(x, math.nan), row.get(name, math.nan)) for row in rows]
        pairs = np.array(points).reshape(-1, 2).T
        return pairs[:, np.isfinite(pairs).all(0)]

    def last(self, name: str) -> float:
        """The last finite value of a column; NaN if there is none."""
        values = self.curve(name)[1]
        return float(values[-1]) if len(values) else math.nan

    @functools.cached_property
    def diverged(self) -> float | None:
        """Control steps from which no loss is finite any more; None: the run did not diverge."""
        diverged_at = None
        algo = self.settings.get("algo")
        start = self.settings.get(f"{algo}.learning_starts", 0)  # no losses are logged before
        start = start if isinstance(start, (int, float)) else 0
        for row in reversed([row for row in self.rows if row[STEPS] > start]):
            losses = [v for k, v in row.items() if k.startswith(columns.TRAIN) and "loss" in k]
            if not losses or any(map(math.isfinite, losses)):
                break
            diverged_at = row[STEPS]
        return diverged_at

    @functools.cached_property
    def judged(self) -> Evaluation | None:
        """The evaluation at the end (eval/final.json); None if there is none that can be read."""
        path = self.folder / "eval" / "final.json"
        return read_evaluation(path) if path.is_file() else None

    @functools.cached_property
    def final(self) -> dict[str, float]:
        """Mean "return" and "success" of the evaluation at the end, else the last in training."""
        if self.judged:
            summary = next(iter(self.judged.summaries.values()))
            means = {name: values["mean"] for name, values in summary.items()}
            return {name: means.get(name, math.nan) for name in ("return", "success")}
        return {
            "return": self.last(columns.EVAL_RETURN),
            "success": self.last(columns.EVAL_SUCCESS),
        }

    @property
    def minutes(self) -> float:
        """Wall-clock time of the run (min); NaN without rows."""
        return self.rows[-1].get(SECONDS, math.nan) / 60 if self.rows else math.nan


@dataclasses.dataclass(frozen=True)
class Group:
    """Members with the same settings, except for the seed.

    Args:
      label: the settings in which the group differs from the other groups.
      settings: settings of every member.
      members: members, sorted by seed.
    """

    label: str
    settings: dict[str, Any]
    members: list[Member]

    @property
    def steps(self) -> float:
        """Control steps of the member with the most steps; NaN without rows."""
        return max((m.rows[-1][STEPS] for m in self.members if m.rows), default=math.nan)

    def status(self, member: Member) -> str:
        """Why the member's curve ends early; empty if it reaches the end."""
        if not member.rows:
            return "no rows"
        if member.diverged is not None:
            return f"diverged at {member.diverged:,.0f} steps"
        if (end := member.rows[-1][STEPS]) < self.steps:
            return f"ended at {end:,.0f} of {self.steps:,.0f} steps"
        return ""


def is_population(run: Path) -> bool:
    return (run / MEMBERS).is_dir()


def check_run(folder: Path) -> None:
    """Checks that a folder holds a run.

    Raises:
      UserError: config.yaml or progress.csv is missing.
    """
    for name in ("config.yaml", "progress.csv"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a run's folder (it has no {name})")


def read_members(runs: Sequence[Path]) -> list[Member]:
    """Reads runs and the members of populations; skips those that cannot be read.

    Raises:
      UserError: a folder holds no run, no run can be read, or no run has rows.
    """
    folders: list[Path] = []
    for run in runs:
        if is_population(run):
            member_folders = sorted(p for p in (run / MEMBERS).iterdir() if p.is_dir())
            if not member_folders:
                raise UserError(f"{run}: a population without members (members/ is empty)")
            folders += member_folders
        else:
            check_run(run)
            folders.append(run)
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    members = [member for folder in folders if (member := _read(folder, shared))]
    names = ", ".join(map(str, runs))
    if not members:
        raise UserError(f"{names}: none of the runs can be read (see the warnings)")
    if not any(member.rows for member in members):
        raise UserError(f"{names}: progress.csv has no rows yet")
    return members


def _read(folder: Path, shared: Path) -> Member | None:
    """The run in a folder; None if its settings cannot be read."""
    if not (folder / "config.yaml").is_file():
        warn(folder, "not a run's folder (it has no config.yaml)")
        return None
    config = read_config(folder)
    if config is None:
        return None
    unused = {*WITHOUT_EFFECT, "seed", *ALGORITHMS} - {str(config.get("algo"))}
    progress = folder / "progress.csv"
    return Member(
        name=str(folder.resolve().relative_to(shared)),
        folder=folder,
        seed=config.get("seed"),
        settings=flatten({k: v for k, v in config.items() if k not in unused}),
        rows=read_rows(progress) if progress.is_file() else [],
    )


def grouped(members: Sequence[Member]) -> list[Group]:
    """Groups members with the same settings, sorted by the values of the settings that differ."""
    same: list[list[Member]] = []  # lists of members with the same settings
    for member in members:
        group = next((g for g in same if g[0].settings == member.settings), None)
        if group is None:
            same.append(group := [])
        group.append(member)
    settings = [group[0].settings for group in same]
    differ = differing(settings)
    order = sorted(range(len(same)), key=lambda i: [_rank(settings[i].get(k)) for k in differ])
    groups = []
    for i in order:
        by_seed = sorted(same[i], key=lambda m: (_rank(m.seed), m.name))
        plural = "" if len(by_seed) == 1 else "s"
        label = _label(settings[i], settings) or f"{len(by_seed)} seed{plural}"
        groups.append(Group(label, settings[i], by_seed))
    return groups


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings that differ, in the order of their first appearance."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [n for n in names if any(not _same(n, settings[0], each) for each in settings)]


def _same(name: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (name in first) == (name in second) and first.get(name) == second.get(name)


def _label(settings: dict[str, Any], all_settings: Sequence[dict[str, Any]]) -> str:
    """The settings in which a group differs from the others, such as "ppo.gamma=0.9".

    A setting of a task or an algorithm is compared only with groups of that task or algorithm.
    """
    comparable = {
        name: [other for other in all_settings if _owner(name, other) == _owner(name, settings)]
        for name in differing(all_settings)
    }
    return ", ".join(
        f"{name}={shown(settings[name])}" if name in settings else f"no {name}"
        for name, others in comparable.items()
        if not all(_same(name, settings, other) for other in others)
    )


def _owner(name: str, settings: dict[str, Any]) -> Any:
    """The algorithm or task that a setting belongs to; None for settings that all runs have."""
    section = name.partition(".")[0]
    if section == settings.get("algo"):
        return section
    return settings.get("env.name") if section == "env" and name != "env.name" else None


def _rank(value: Any) -> tuple:
    """Sort key: numbers by value, then texts."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, str(value))


def shown(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
