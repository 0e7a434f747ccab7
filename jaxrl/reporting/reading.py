"""Reads the files of a run's folder for its report.

A run's files may be damaged, cut off, or written by another program. A file that cannot be used
is named in a warning on standard error, and the report continues without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta
from jaxrl.config import read_yaml
from jaxrl.errors import UserError
from jaxrl.logs import read_csv

BASELINES = "baselines.json"  # written into RUN/eval by `evaluate --baselines RUN`
HISTORY = "history.yaml"  # how the run was started and resumed
COLUMNS = ("mean", "std", "min", "max", "ci95_low", "ci95_high")  # of a summary
MAX_VIDEO = 64 << 20  # bytes, largest video that is put into a page

Summary = dict[str, dict[str, float]]  # statistic -> "mean", "std", ... -> number


def distinct(runs: Sequence[Path]) -> list[Path]:
    """The folders without those that are named twice."""
    return list({run.resolve(): run for run in runs}.values())


@contextlib.contextmanager
def unreadable_is_said(folder: Path) -> Iterator[None]:
    """Turns an error of the file system (no permission, a failing disk) into a UserError that names
    the file, or `folder` if the error names none."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation.

    Args:
      name: name of its file, without the suffix.
      episodes, seed: number of episodes and their seed; -1 if the file does not contain them.
      settings: settings that differ from those of the run.
      hardware: the machine that it ran on.
      summaries: simulator -> summary; "" -> summary for an evaluation in one simulator.
    """

    name: str
    episodes: int
    seed: int
    settings: dict[str, Any]
    hardware: dict[str, Any]
    summaries: dict[str, Summary]


def warn(path: Path, reason: str) -> None:
    """Prints a warning that a file, or a part of it, is skipped."""
    print(f"warning: {path}: {reason}; skipped", file=sys.stderr)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Readable rows of `progress.csv`; empty cells are NaN."""
    try:
        rows, bad = read_csv(path)
    except OSError as error:
        warn(path, error.strerror or str(error))
        return []
    if bad:
        warn(path, f"{bad:,} line{' is not a row' if bad == 1 else 's are not rows'} of numbers")
    return [{name: float(cell or "nan") for name, cell in row.items()} for row in rows]


def read_config(folder: Path) -> dict[str, Any] | None:
    """The run's settings; None if they cannot be read."""
    try:
        return read_yaml(folder / "config.yaml")
    except UserError as error:
        print(f"warning: {error}; skipped", file=sys.stderr)
    except RecursionError:
        warn(folder / "config.yaml", "nested too deeply")
    return None


def read_evaluations(run: Path) -> list[Evaluation]:
    """All evaluations in RUN/eval, except baselines; the one at the end of training comes first."""
    paths = sorted((run / "eval").glob("*.json"), key=lambda p: (p.stem != "final", p.stem))
    evaluations = [read_evaluation(path) for path in paths if path.name != BASELINES]
    return [each for each in evaluations if each is not None]


def read_evaluation(path: Path) -> Evaluation | None:
    """Reads one evaluation; returns None if the file is not an output of `evaluate`."""
    content = _read_json(path)
    if content is None:
        return None
    parts = content.get("simulators", {"": content})
    summaries = {}
    for name, part in parts.items() if isinstance(parts, dict) else ():
        summaries[name] = _summary(part.get("summary") if isinstance(part, dict) else None)
    if not summaries or not all(summaries.values()):
        warn(path, "not the output of an evaluation")
        return None
    facts = next(iter(parts.values()))
    return Evaluation(
        name=path.stem,
        episodes=_to_int(facts.get("episodes")),
        seed=_to_int(facts.get("seed")),
        settings=_section(facts.get("settings")),
        hardware=_section(facts.get("hardware")),
        summaries=summaries,
    )


def read_baselines(run: Path) -> dict[str, Summary]:
    """Summaries of the task's baselines, by name; empty if they have not been evaluated."""
    path = run / "eval" / BASELINES
    content = _read_json(path) if path.exists() else None
    if content is None:
        return {}
    summaries = {k: _summary(v) for k, v in _section(content.get("baselines")).items()}
    if not summaries or not all(summaries.values()):
        warn(path, "not the output of an evaluation of baselines")
        return {}
    return summaries


def read_history(run: Path) -> list[dict[str, Any]]:
    """The parts of the run, one for each start or resume; empty without a history file."""
    path = run / HISTORY
    if not path.exists():
        return []
    try:  # not with read_yaml, which reads mappings only: this file holds a list
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        warn(path, f"cannot be read ({type(error).__name__})")
        return []
    parts = [part for part in content if isinstance(part, dict)] if _is_list(content) else []
    if not parts or len(parts) < len(content):
        warn(path, "has entries that training does not write")
    return parts


def newest_video(run: Path) -> bytes | None:
    """The newest complete video of the run, of at most `MAX_VIDEO` bytes; None without one."""
    videos = []
    for path in (run / "videos").glob("*.mp4"):
        try:
            videos.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError as error:
            warn(path, error.strerror or str(error))
    for _, size, path in sorted(videos, reverse=True):
        if size > MAX_VIDEO:
            warn(path, f"{size / 1e6:,.0f} MB is too large for a page")
            continue
        try:
            raw = path.read_bytes()
        except OSError as error:
            warn(path, error.strerror or str(error))
            continue
        if _is_mp4(raw):
            return raw
        warn(path, "not a complete video")
    return None


def hardware(run: Path) -> dict[str, Any]:
    """The machine that the run used, from its newest readable checkpoint; empty without one."""
    for store in (Checkpointer(run / "checkpoints"), Checkpointer(run / "best")):
        for step in reversed(store.steps()):
            try:
                return _section(read_meta(store.folder / str(step))["meta"]["hardware"])
            except (DamagedError, KeyError, TypeError):
                continue
    return {}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        warn(path, reason or str(error))
        return None
    if not isinstance(content, dict):
        warn(path, "not the output of an evaluation")
        return None
    return content


def _summary(content: Any) -> Summary:
    """A summary as read from a file; empty if it is not valid. Missing columns are NaN."""
    summary = {}
    for name, values in _section(content).items():
        values = _section(values)
        if not _is_number(values.get("mean")):
            return {}
        numbers = {c: values[c] for c in COLUMNS if _is_number(values.get(c))}
        summary[str(name)] = {c: float(numbers.get(c, math.nan)) for c in COLUMNS}
    return summary


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 1000  # larger ones may not fit into a float
    return isinstance(value, float)


def _to_int(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_mp4(raw: bytes) -> bool:
    """Whether this is a complete MP4 file.

    Its boxes must fill the file to the end, and one must be the index that a player needs (moov).
    """
    kinds, start = [], 0
    while start + 8 <= len(raw):
        size, kind = int.from_bytes(raw[start : start + 4]), raw[start + 4 : start + 8]
        if size == 1:  # the true size follows in 8 bytes
            size = int.from_bytes(raw[start + 8 : start + 16])
        if size == 0:  # to the end of the file
            size = len(raw) - start
        if size < 8:
            return False
        kinds.append(kind)
        start += size
    return start == len(raw) and kinds[:1] == [b"ftyp"] and b"moov" in kinds
