"""The console: a progress bar and short tables in a terminal, plain lines in a pipe or file."""

from __future__ import annotations

import math
import sys
import time
from typing import IO, Any, Literal, cast

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from jaxrl.logs import columns
from jaxrl.logs.numbers import readable

LINE_EVERY = 10.0  # seconds between plain lines

_BRIEF = {
    columns.ROLLOUT_RETURN: "return",
    columns.ROLLOUT_SUCCESS: "success",
    columns.ROLLOUT_LENGTH: "length",
    columns.SPEED: "steps/s",
}
# label, column of evaluations, column of training
_SHORT = (
    ("return", columns.EVAL_RETURN, columns.ROLLOUT_RETURN),
    ("success", columns.EVAL_SUCCESS, columns.ROLLOUT_SUCCESS),
    ("length", columns.EVAL_LENGTH, columns.ROLLOUT_LENGTH),
    ("KL", "", columns.KL),
    ("value loss", "", columns.VALUE_LOSS),
    ("critic loss", "", columns.CRITIC_LOSS),
    ("actor loss", "", columns.ACTOR_LOSS),
    ("steps/s", "", columns.SPEED),
)


class Console:
    """Shows the progress of a run on standard error; errors of that stream are ignored.

    Args:
      total: control steps of the whole run.
      start: control steps that are already done.
      enabled: whether anything is shown.
      table: the numbers that are shown after an evaluation: the most important ones, or all.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool = True,
        table: Literal["short", "full"] = "short",
    ):
        self._total = total
        self._full = table == "full"
        self._last_line = -math.inf
        # Time and control step at the end of the first chunk; the speed is measured from there.
        self._speed_start: tuple[float, int] | None = None
        self._enabled = enabled and sys.stderr is not None  # None: closed by the shell
        self._rich = RichConsole(file=cast(IO[str], _Quiet(sys.stderr)), highlight=False)
        self._bar = None
        if self._enabled and self._rich.is_interactive:
            self._bar = _Bar(self._rich, start, max(total, start))
            self._bar.start()

    def print(self, text: str) -> None:
        """Prints a line, in a terminal above the progress bar."""
        if self._enabled:
            self._rich.print(text, markup=False, soft_wrap=True)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Updates the bar or prints a line every `LINE_EVERY` s; a table after evaluations."""
        # A run ends with a complete iteration, which may go beyond `total`.
        total, time_left = max(self._total, step), self._time_left(step)
        brief = [
            f"{label} {_number(row, name)}"
            for name, label in _BRIEF.items()
            if not math.isnan(row.get(name, math.nan))
            and (name != columns.SPEED or time_left != "?")  # the first chunk includes compilation
        ]
        if self._bar:
            self._bar.show(step, total, time_left, brief)
        elif self._enabled and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self.print("  ".join([f"{step:,}/{total:,} steps", f"ETA {time_left}", *brief]))
        if self._enabled and any(name.startswith(columns.EVAL) for name in row):
            self._rich.print(_full_table(row) if self._full else _short_table(step, row))

    def _time_left(self, step: int) -> str:
        """Time to the end at the speed since the end of the first chunk; "?" until it is known."""
        now, steps = time.monotonic(), max(self._total - step, 0)
        start_time, start = self._speed_start = self._speed_start or (now, step)
        if steps and step == start:
            return "?"
        seconds = int((now - start_time) * steps / (step - start)) if steps else 0
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


class _Bar(Progress):
    """A line with the progress over the full width, and below it a line with numbers."""

    def __init__(self, console: RichConsole, start: int, total: int):
        column = Column(no_wrap=True)
        self._numbers = ["compiling"]
        super().__init__(
            TextColumn("{task.percentage:3.0f}%", table_column=column),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps", table_column=column),
            TimeElapsedColumn(table_column=column),
            TextColumn("ETA {task.fields[time_left]}", table_column=column),
            console=console,
            expand=True,
        )
        self._task = self.add_task("", total=total, completed=start, time_left="?")

    def show(self, step: int, total: int, time_left: str, numbers: list[str]) -> None:
        self._numbers = numbers
        self.update(self._task, completed=step, total=total, time_left=time_left)

    def get_renderables(self):
        yield self.make_tasks_table(self.tasks)
        yield _Fitting(self._numbers)


class _Fitting:
    """A line with those of the texts that fit on it."""

    def __init__(self, texts: list[str]):
        self._texts = texts

    def __rich_console__(self, console: RichConsole, options: Any):
        line = "    "
        for text in self._texts:
            if len(line) + len(text) + 1 <= options.max_width:
                line += f" {text} "
        yield Text(line, no_wrap=True, overflow="crop")


class _Quiet:
    """A stream that ignores everything after the first failed write (closed pipe, full disk)."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream
        self._failed = stream is None

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *args: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self._stream, method)(*args)
        except (OSError, ValueError):  # ValueError: closed by Python
            self._failed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _short_table(step: int, row: dict[str, float]) -> Table:
    table = Table(f"   at {step:,} steps", box=None, pad_edge=False, header_style="dim")
    for column in ("evaluation", "training"):
        table.add_column(column, justify="right", min_width=12)
    for label, *names in _SHORT:
        if any(name in row for name in names):
            table.add_row(f"   {label}", *(_number(row, n) if n in row else "" for n in names))
    return table


def _full_table(row: dict[str, float]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    section = None
    for name in sorted(row):
        if name.removesuffix("_std") in row and name.endswith("_std"):
            continue
        group, _, short = name.partition("/")
        if group != section:
            table.add_row(f"{group}/", "")
            section = group
        table.add_row(f"   {short}", _number(row, name))
    return table


def _number(row: dict[str, float], name: str) -> str:
    """The number as text, for a population with the standard deviation over its members."""
    std = row.get(f"{name}_std", math.nan)
    return readable(row[name]) + ("" if math.isnan(std) else f" ± {readable(std, 2)}")
