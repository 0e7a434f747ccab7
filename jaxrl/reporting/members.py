"""Runs side by side: the members of populations, and the groups that they fall into."""

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

# Settings that change nothing of what a run learns, or that a run has only among others.
WITHOUT_EFFECT = ("log", "checkpoint", "eval", "num_seeds", "sweep")


@dataclasses.dataclass(frozen=True)
class Member:
    """One run among several.

    Args:
      name: its folder, from the folder that all of them share.
      folder: its folder.
      seed: its seed.
      settings: "a.b" -> value, all that can change what is learned, but for the seed.
      rows: of progress.csv.
    """

    name: str
    folder: Path
    seed: Any
    settings: dict[str, Any]
    rows: list[dict[str, float]]

    def curve(self, name: str, x: str = STEPS) -> np.ndarray:
        """[2, K] places and values of a column: finite, and before the run diverged."""
        end = math.inf if self.diverged is None else self.diverged
        rows = (row for row in self.rows if row[STEPS] < end)
        points = [(row.get(x, math.nan), row.get(name, math.nan)) for row in rows]
        pairs = np.array(points).reshape(-1, 2).T
        return pairs[:, np.isfinite(pairs).all(0)]

    def last(self, name: str) -> float:
        """The last finite number of a column; NaN without one."""
        values = self.curve(name)[1]
        return float(values[-1]) if len(values) else math.nan

    @functools.cached_property
    def diverged(self) -> float | None:
        """Control steps from which on no loss is finite, to the end; None if some is."""
        at = None
        algo = self.settings.get("algo")
        start = self.settings.get(f"{algo}.learning_starts", 0)  # there is no loss before
        start = start if isinstance(start, (int, float)) else 0
        for row in reversed([row for row in self.rows if row[STEPS] > start]):
            losses = [v for k, v in row.items() if k.startswith(columns.TRAIN) and "loss" in k]
            if not losses or any(map(math.isfinite, losses)):
                break
            at = row[STEPS]
        return at

    @functools.cached_property
    def judged(self) -> Evaluation | None:
        """What the evaluation at the end found (eval/final.json)."""
        path = self.folder / "eval" / "final.json"
        return read_evaluation(path) if path.is_file() else None

    @functools.cached_property
    def final(self) -> dict[str, float]:
        """Means of "return" and "success": judged at the end, or else last in training."""
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
        """Wall-clock time of the run; NaN without rows."""
        return self.rows[-1].get(SECONDS, math.nan) / 60 if self.rows else math.nan


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that differ in nothing but their seeds.

    Args:
      label: the settings that set it apart from the other groups.
      settings: of each member.
      members: by seed.
    """

    label: str
    settings: dict[str, Any]
    members: list[Member]

    @property
    def steps(self) -> float:
        """Control steps of the member that went furthest; NaN without rows."""
        return max((m.rows[-1][STEPS] for m in self.members if m.rows), default=math.nan)

    def status(self, member: Member) -> str:
        """Nothing, or why the member has no curve to the end."""
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
    """Refuses a folder that holds no run.

    Raises:
      UserError: what it lacks.
    """
    for name in ("config.yaml", "progress.csv"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a run's folder (it has no {name})")


def read_members(runs: Sequence[Path]) -> list[Member]:
    """All runs that can be read, populations opened.

    Raises:
      UserError: a folder holds no run, none can be read, or none has rows.
    """
    folders: list[Path] = []
    for run in runs:
        if is_population(run):
            inside = sorted(p for p in (run / MEMBERS).iterdir() if p.is_dir())
            if not inside:
                raise UserError(f"{run}: a population without members (members/ is empty)")
            folders += inside
        else:
            check_run(run)
            folders.append(run)
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    members = [member for folder in folders if (member := _read(folder, shared))]
    named = ", ".join(map(str, runs))
    if not members:
        raise UserError(f"{named}: no run that can be read (see the warnings)")
    if not any(member.rows for member in members):
        raise UserError(f"{named}: progress.csv has no rows yet")
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
    """Members by their settings, in the order of the settings that differ."""
    found: list[list[Member]] = []
    for member in members:
        alike = next((g for g in found if g[0].settings == member.settings), None)
        if alike is None:
            found.append(alike := [])
        alike.append(member)
    settings = [group[0].settings for group in found]
    differ = differing(settings)
    order = sorted(range(len(found)), key=lambda i: [_rank(settings[i].get(k)) for k in differ])
    groups = []
    for i in order:
        own = sorted(found[i], key=lambda m: (_rank(m.seed), m.name))
        plural = "" if len(own) == 1 else "s"
        label = _label(settings[i], settings) or f"{len(own)} seed{plural}"
        groups.append(Group(label, settings[i], own))
    return groups


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same everywhere, as they first appear."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [n for n in names if any(not _same(n, settings[0], each) for each in settings)]


def _same(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (name in one) == (name in other) and one.get(name) == other.get(name)


def _label(own: dict[str, Any], everyone: Sequence[dict[str, Any]]) -> str:
    """What sets a group apart; a task's and an algorithm's settings only among its like."""
    rivals = {
        name: [e for e in everyone if _kind(name, e) == _kind(name, own)]
        for name in differing(everyone)
    }
    return ", ".join(
        f"{name}={shown(own[name])}" if name in own else f"no {name}"
        for name, others in rivals.items()
        if not all(_same(name, own, other) for other in others)
    )


def _kind(name: str, settings: dict[str, Any]) -> Any:
    """With what a setting can be compared: other algorithms and tasks have other ones."""
    section = name.partition(".")[0]
    if section == settings.get("algo"):
        return section
    return settings.get("env.name") if section == "env" and name != "env.name" else None


def _rank(value: Any) -> tuple:
    """Numbers in their order, then texts."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, str(value))


def shown(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
