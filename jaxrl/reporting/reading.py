"""What a run's folder holds, as far as it can be read.

A run's files may be damaged, cut short, or of someone else. Each that is of no use is named in
a warning on standard error, and the report goes on without it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml

from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta
from jaxrl.config import read_yaml
from jaxrl.errors import UserError
from jaxrl.logs import read_csv

BASELINES = "baselines.json"  # what `evaluate --baselines RUN` writes into RUN/eval
HISTORY = "history.yaml"  # how the run was started and resumed
COLUMNS = ("mean", "std", "min", "max", "ci95_low", "ci95_high")  # of a summary
MOST_VIDEO = 64 << 20  # bytes of a video that a page may hold

Summary = dict[str, dict[str, float]]  # statistic -> "mean", "std", ... -> number


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Args:
      name: of its file.
      episodes, seed: as it was run; -1 where the file does not say.
      settings: what was changed against the run's own.
      hardware: what it ran on.
      summaries: by simulator; of an evaluation in one simulator under "".
    """

    name: str
    episodes: int
    seed: int
    settings: dict[str, Any]
    hardware: dict[str, Any]
    summaries: dict[str, Summary]


def warn(path: Path, what: str) -> None:
    """Names a file that is passed over."""
    print(f"warning: {path}: {what}; passed over", file=sys.stderr)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Readable rows of `progress.csv`; empty cells are NaN."""
    try:
        rows, bad = read_csv(path)
    except OSError as error:
        warn(path, error.strerror or str(error))
        return []
    if bad:
        warn(path, f"{bad:,} line{'' if bad == 1 else 's'} without the numbers of a row")
    return [{name: float(cell or "nan") for name, cell in row.items()} for row in rows]


def read_config(folder: Path) -> dict[str, Any] | None:
    """The run's settings; None if they cannot be read."""
    try:
        return read_yaml(folder / "config.yaml")
    except UserError as error:
        print(f"warning: {error}; passed over", file=sys.stderr)
    except RecursionError:
        warn(folder / "config.yaml", "nested too deeply")
    return None


def read_evaluations(run: Path) -> list[Evaluation]:
    """All in RUN/eval, but for the baselines; the one at the end of training first."""
    paths = sorted((run / "eval").glob("*.json"), key=lambda p: (p.stem != "final", p.stem))
    found = [read_evaluation(path) for path in paths if path.name != BASELINES]
    return [each for each in found if each is not None]


def read_evaluation(path: Path) -> Evaluation | None:
    """One evaluation; None if the file is not what `evaluate` writes."""
    content = _read_json(path)
    if content is None:
        return None
    parts = content.get("simulators", {"": content})
    summaries = {}
    for name, part in parts.items() if isinstance(parts, dict) else ():
        summaries[name] = _summary(part.get("summary") if isinstance(part, dict) else None)
    if not summaries or not all(summaries.values()):
        warn(path, "not what an evaluation writes")
        return None
    facts = next(iter(parts.values()))
    return Evaluation(
        name=path.stem,
        episodes=_whole(facts.get("episodes")),
        seed=_whole(facts.get("seed")),
        settings=_section(facts.get("settings")),
        hardware=_section(facts.get("hardware")),
        summaries=summaries,
    )


def read_baselines(run: Path) -> dict[str, Summary]:
    """Summaries of the task's baselines by name, where they have been judged."""
    path = run / "eval" / BASELINES
    content = _read_json(path) if path.exists() else None
    if content is None:
        return {}
    found = {k: _summary(v) for k, v in _section(content.get("baselines")).items()}
    if not found or not all(found.values()):
        warn(path, "not what an evaluation of baselines writes")
        return {}
    return found


def read_history(run: Path) -> list[dict[str, Any]]:
    """The parts of the run, each since a start or a resume; empty without a history."""
    path = run / HISTORY
    if not path.exists():
        return []
    try:  # read_yaml is for mappings, and here is a list
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        warn(path, f"cannot be read ({type(error).__name__})")
        return []
    parts = [part for part in content if isinstance(part, dict)] if _is_list(content) else []
    if not parts or len(parts) < len(content):
        warn(path, "not only what training writes")
    return parts


def newest_video(run: Path) -> bytes | None:
    """The newest whole video of the run."""
    found = []
    for path in (run / "videos").glob("*.mp4"):
        try:
            found.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError as error:
            warn(path, error.strerror or str(error))
    for _, size, path in sorted(found, reverse=True):
        if size > MOST_VIDEO:
            warn(path, f"{size / 1e6:,.0f} MB is too large for a page")
            continue
        try:
            raw = path.read_bytes()
        except OSError as error:
            warn(path, error.strerror or str(error))
            continue
        if _is_mp4(raw):
            return raw
        warn(path, "no whole video")
    return None


def hardware(run: Path) -> dict[str, Any]:
    """What the run ran on, as its newest readable checkpoint says; empty without one."""
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
        warn(path, "not what an evaluation writes")
        return None
    return content


def _summary(content: Any) -> Summary:
    """The summary in a file; empty if it is none. Columns that are missing are NaN."""
    summary = {}
    for name, values in _section(content).items():
        values = _section(values)
        if not _is_number(values.get("mean")):
            return {}
        known = {c: values[c] for c in COLUMNS if _is_number(values.get(c))}
        summary[str(name)] = {c: float(known.get(c, math.nan)) for c in COLUMNS}
    return summary


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 1000  # others are no float
    return isinstance(value, float)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_mp4(raw: bytes) -> bool:
    """Its boxes fill the file to the end, and one is the index that a player needs."""
    kinds, at = [], 0
    while at + 8 <= len(raw):
        size, kind = int.from_bytes(raw[at : at + 4]), raw[at + 4 : at + 8]
        if size == 1:  # the true size follows in 8 bytes
            size = int.from_bytes(raw[at + 8 : at + 16])
        if size == 0:  # to the end of the file
            size = len(raw) - at
        if size < 8:
            return False
        kinds.append(kind)
        at += size
    return at == len(raw) and kinds[:1] == [b"ftyp"] and b"moov" in kinds
