"""Sinks: each takes one row of named numbers for a time step."""

from __future__ import annotations

import csv
import io
import math
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxrl.errors import UserError
from jaxrl.files import write_text

STEP = "time/total_timesteps"


class Sink(Protocol):
    """Takes rows; numbers that are not there are left out."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class CSVSink:
    """One row a call in a CSV file; cells without a number are empty.

    Args:
      path: file; rows up to `resume_step` are kept, later ones dropped.
      columns: all column names.
      resume_step: control steps that the resumed run stands at, 0 for a new one.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, resume_step: int = 0):
        kept = []
        if resume_step and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if _upto(row, resume_step)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")

    def write(self, step: int, row: dict[str, float]) -> None:
        self._writer.writerow({k: _cell(v) for k, v in row.items() if _known(v)})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _upto(row: dict[str, str], step: int) -> bool:
    try:
        return float(row.get(STEP) or "") <= step
    except ValueError:
        return False  # a row cut short when the run died


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


def known_mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
