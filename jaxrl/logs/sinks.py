"""Sinks: each writes rows of named numbers, one row per chunk of training."""

from __future__ import annotations

import csv
import io
import math
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxrl.errors import UserError
from jaxrl.files import write_text
from jaxrl.logs import columns
from jaxrl.plugins import Registry

if TYPE_CHECKING:
    from jaxrl.config import RunConfig


class Sink(Protocol):
    """Writes rows of numbers; NaN stands for a missing number, which is left out."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def read_csv(path: Path) -> tuple[list[dict[str, str]], int]:
    """The readable rows of a `progress.csv`, and the number of its unreadable lines.

    In a readable row every cell holds a number or nothing, and the one of the control steps is
    not empty. Unreadable are lines that were cut short when a run was killed, and foreign text.

    Raises:
      OSError: the file cannot be read.
    """
    rows: list[dict[str, str]] = []
    names: list[str] = []
    unreadable = 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line in file:
            cells = _cells(line)
            if not names and cells:
                names = cells
            elif cells and len(cells) == len(names) and _is_row(row := dict(zip(names, cells))):
                rows.append(row)
            elif line.strip():
                unreadable += 1
    return rows, unreadable


def _cells(line: str) -> list[str]:
    """The cells of a complete line; an empty list for a damaged line."""
    if not line.endswith("\n"):
        return []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _is_row(row: dict[str, str]) -> bool:
    try:
        numbers = {name: float(cell or "nan") for name, cell in row.items()}
    except ValueError:
        return False
    return math.isfinite(numbers.get(columns.STEPS, math.nan))


class CSVSink:
    """Writes one row per call to a CSV file; cells without a number are empty.

    If a row has a new column, the file is written again with this column.

    Args:
      path: the file; when a run is resumed, its readable rows up to `resume_step` are kept.
      resume_step: control steps that the resumed run has done; 0 for a new run.
    """

    def __init__(self, path: Path, *, resume_step: int = 0):
        old_rows: list[dict[str, str]] = []
        if resume_step and path.exists():
            rows, unreadable = read_csv(path)
            old_rows = [row for row in rows if float(row[columns.STEPS]) <= resume_step]
            if unreadable:
                lines = (
                    "1 unreadable line" if unreadable == 1 else f"{unreadable:,} unreadable lines"
                )
                print(f"warning: {path}: dropped {lines}", file=sys.stderr)
        self._path = path
        self._begin(list(old_rows[0]) if old_rows else [columns.STEPS], old_rows)

    def _begin(self, names: list[str], rows: list[dict[str, str]]) -> None:
        """Writes the file with these columns and rows; later rows are appended to it."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())
        self._names, self._file = names, self._path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, names)

    def write(self, step: int, row: dict[str, float]) -> None:
        new = [name for name in row if name not in self._names]
        if new:
            self._file.close()
            self._begin([*self._names, *new], read_csv(self._path)[0])
        self._writer.writerow({k: _cell(v) for k, v in row.items() if _has_value(v)})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _has_value(value: float) -> bool:
    return not math.isnan(value)


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"


class TensorBoardSink:
    """Writes TensorBoard event files; after a resume, points beyond `resume_step` are hidden."""

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            if _has_value(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_thread_hook = threading.excepthook


def _hide_disk_errors(args: Any) -> None:
    """Hides disk errors in TensorBoard's thread, since the training loop reports them itself."""
    is_tensorboard = "EventLogger" in type(args.thread).__name__
    if not (is_tensorboard and isinstance(args.exc_value, OSError)):
        _thread_hook(args)


threading.excepthook = _hide_disk_errors


class WandbSink:
    """Writes to Weights & Biases; WANDB_MODE=offline needs no network.

    Raises:
      UserError: the extra `wandb` is not installed, or Weights & Biases cannot be started.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError("log.wandb: needs `pip install 'jaxrl[wandb]'`") from error
        id_file = folder / "wandb_id"
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project="jaxrl",
                name=name,
                id=id_file.read_text(),
                dir=str(folder),
                config=config,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(f"log.wandb: {error} (WANDB_MODE=offline needs no login)") from error

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log({k: v for k, v in row.items() if _has_value(v)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _tensorboard(folder: Path, config: RunConfig, start: int) -> Sink:
    return TensorBoardSink(folder / "tensorboard", resume_step=start)


def _wandb(folder: Path, config: RunConfig, start: int) -> Sink:
    return WandbSink(folder, folder.name, config.to_dict())


# (folder of the run, its configuration, control steps that it has already done) -> sink.
MakeSink = Callable[[Path, "RunConfig", int], Sink]
# Installed packages add sinks by entry points of this group; `log.sinks` names those in use.
SINKS: Registry[MakeSink] = Registry("jaxrl.sinks", {"tensorboard": _tensorboard, "wandb": _wandb})


def known_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
