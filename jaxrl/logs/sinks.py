"""Sinks: each takes one row of named numbers for a time step."""

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
    """Takes rows; numbers that are not there are left out."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def read_csv(path: Path) -> tuple[list[dict[str, str]], int]:
    """The readable rows of a `progress.csv`, and the number of lines that are none.

    A readable row has the control steps and in every cell a number or nothing. A line that
    was cut short when the run died, or that something else wrote, is none.

    Raises:
      OSError: the file cannot be read.
    """
    rows: list[dict[str, str]] = []
    names: list[str] = []
    bad = 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line in file:
            cells = _cells(line)
            if not names and cells:
                names = cells
            elif cells and len(cells) == len(names) and _is_row(row := dict(zip(names, cells))):
                rows.append(row)
            elif line.strip():
                bad += 1
    return rows, bad


def _cells(line: str) -> list[str]:
    """The cells of a whole line; none of one that is broken."""
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
    """One row a call in a CSV file; cells without a number are empty.

    A column that no row before had is added, and the file written anew.

    Args:
      path: file; readable rows up to `resume_step` are kept, others dropped.
      resume_step: control steps that the resumed run stands at, 0 for a new one.
    """

    def __init__(self, path: Path, *, resume_step: int = 0):
        kept: list[dict[str, str]] = []
        if resume_step and path.exists():
            rows, bad = read_csv(path)
            kept = [row for row in rows if float(row[columns.STEPS]) <= resume_step]
            if bad:
                lines = "1 line that is" if bad == 1 else f"{bad:,} lines that are"
                print(f"warning: {path}: dropped {lines} no row of numbers", file=sys.stderr)
        self._path = path
        self._begin(list(kept[0]) if kept else [columns.STEPS], kept)

    def _begin(self, names: list[str], rows: list[dict[str, str]]) -> None:
        """Writes the file with these columns and rows, and goes on behind them."""
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
        self._writer.writerow({k: _cell(v) for k, v in row.items() if _known(v)})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _known(value: float) -> bool:
    return not math.isnan(value)


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"


class TensorBoardSink:
    """TensorBoard event files; after a resume, later points are hidden."""

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            if _known(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_thread_hook = threading.excepthook


def _quiet_writer(args: Any) -> None:
    """TensorBoard's thread meets a full disk together with the loop, which tells of it."""
    writer = "EventLogger" in type(args.thread).__name__
    if not (writer and isinstance(args.exc_value, OSError)):
        _thread_hook(args)


threading.excepthook = _quiet_writer


class WandbSink:
    """Weights & Biases; WANDB_MODE=offline needs no network.

    Raises:
      UserError: the extra is not installed.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError("log.wandb: needs `pip install 'jaxrl[wandb]'`") from error
        known = folder / "wandb_id"
        if not known.exists():
            write_text(known, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project="jaxrl",
                name=name,
                id=known.read_text(),
                dir=str(folder),
                config=config,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(f"log.wandb: {error} (WANDB_MODE=offline needs no login)") from error

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log({k: v for k, v in row.items() if _known(v)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _tensorboard(folder: Path, config: RunConfig, start: int) -> Sink:
    return TensorBoardSink(folder / "tensorboard", resume_step=start)


def _wandb(folder: Path, config: RunConfig, start: int) -> Sink:
    return WandbSink(folder, folder.name, config.to_dict())


# (the run's folder, its configuration, control steps that it stands at) -> sink.
MakeSink = Callable[[Path, "RunConfig", int], Sink]
# An installed package adds one with the entry-point group; `log.sinks` names those to use.
SINKS: Registry[MakeSink] = Registry("jaxrl.sinks", {"tensorboard": _tensorboard, "wandb": _wandb})


def known_mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
