"""The console: a progress bar and tables on a terminal, plain lines in a pipe."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LINE_EVERY = 10.0  # seconds between plain lines

_BRIEF = {
    "rollout/ep_rew_mean": "reward",
    "rollout/ep_len_mean": "length",
    "rollout/success_rate": "success",
    "time/fps": "steps/s",
}


class Console:
    """Shows a run as it goes.

    Args:
      total: control steps of the whole run.
      start: control steps already done.
      enabled: show anything at all.
    """

    def __init__(self, total: int, *, start: int = 0, enabled: bool = True):
        self._enabled = enabled
        self._total = total
        self._last_line = -math.inf
        self._begun, self._start = time.monotonic(), start
        self._rich = RichConsole(file=sys.stderr, highlight=False)
        self._progress = None
        if enabled and self._rich.is_terminal:
            self._progress = Progress(
                TextColumn("{task.percentage:3.0f}%"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.description}"),
                console=self._rich,
            )
            self._task = self._progress.add_task("compiling", total=total, completed=start)
            self._progress.start()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._enabled:
            self._rich.print(text, markup=False, soft_wrap=True)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Moves the bar; in a pipe prints a line now and then."""
        brief = "  ".join(
            f"{label} {row[name]:,.4g}{_spread(row, name)}"
            for name, label in _BRIEF.items()
            if not math.isnan(row.get(name, math.nan))
        )
        if self._progress:
            self._progress.update(self._task, completed=step, description=brief)
        elif self._enabled and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self.say(f"{step:,}/{self._total:,} steps  ETA {self._eta(step)}  {brief}")
        if any(name.startswith("eval/") for name in row):
            self._table(row)

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        left = (time.monotonic() - self._begun) * (self._total - step) / done
        return f"{int(left) // 60}:{int(left) % 60:02d}"

    def _table(self, row: dict[str, float]) -> None:
        if not self._enabled:
            return
        table = Table(show_header=False, box=None, pad_edge=False)
        section = None
        for name in sorted(row):
            if name.removesuffix("_std") in row and name.endswith("_std"):
                continue
            group, _, short = name.partition("/")
            if group != section:
                table.add_row(f"{group}/", "")
                section = group
            table.add_row(f"   {short}", _number(row[name]) + _spread(row, name))
        self._rich.print(table)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()


def _spread(row: dict[str, float], name: str) -> str:
    """Of a population, the standard deviation over its members."""
    std = row.get(f"{name}_std", math.nan)
    return "" if math.isnan(std) else f" ± {std:.2g}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}"
