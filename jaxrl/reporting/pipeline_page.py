"""The page of a pipeline: all of its sessions in one HTML file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.logs import readable
from jaxrl.reporting import reading
from jaxrl.reporting.overlay import COLOURS
from jaxrl.reporting.pages import (
    CURVES,
    SOURCES,
    STEPS,
    Panel,
    axes,
    document,
    image,
    need_matplotlib,
    plots,
    table,
)
from jaxrl.reporting.run_page import summary_table

MARKS = {"completed": "&#10003;", "failed": "&#10007;"}


def page(folder: Path, report: dict[str, Any]) -> str:
    """The page of the pipeline in a folder.

    Args:
      folder: the folder of the pipeline.
      report: the content of pipeline_report.json.

    Raises:
      UserError: Matplotlib is not installed.
    """
    need_matplotlib()
    runs = [
        (f"{attempt['folder']}", reading.read_rows(path))
        for session in report["sessions"]
        for attempt in session["attempts"]
        if (path := folder / attempt["folder"] / "progress.csv").exists()
    ]
    minutes = report["training_seconds"] / 60
    done = sum(session["status"] == "completed" for session in report["sessions"])
    text = (
        f"{done} of {len(report['sessions'])} sessions are complete, after {readable(minutes, 3)} "
        f"minutes of training; the pipeline is {report['status']}."
    )
    parts = [
        f"<h1>{html.escape(report['name'])}</h1>",
        f"<p>{html.escape(report['description'])}</p>" if report["description"] else "",
        f"<p class='headline'>{text}</p>",
        _sessions(report["sessions"]),
        plots("Learning curves, one session after the other", _curves(runs)),
        *map(_evaluation, report["sessions"]),
    ]
    return document(report["name"], parts)


def _sessions(sessions: Sequence[dict[str, Any]]) -> str:
    """A row for each attempt at a session."""
    head = ["session", "status", "begins with", "control steps", "minutes", "criteria", "result"]
    rows = []
    for session in sessions:
        for i, attempt in enumerate(session["attempts"] or [{}]):
            last = i == max(len(session["attempts"]) - 1, 0)
            status = session["status"] if last else "failed"
            steps, seconds = attempt.get("timesteps"), attempt.get("seconds")
            folder = attempt.get("folder")
            name = html.escape(folder or session["name"])
            cells = [
                f"<a href='{name}/report.html'>{name}</a>" if steps is not None else name,
                f"{MARKS.get(status, '')} {status}",
                html.escape(session["begins_with"] or "new networks"),
                f"{steps:,}" if steps is not None else "",
                readable(seconds / 60, 3) if seconds is not None else "",
                html.escape(", ".join(map(_criterion, session["success_criteria"].items()))),
                html.escape(attempt.get("reason") or ""),
            ]
            rows.append(cells)
    return table(head, rows, kind="texts")


def _criterion(item: tuple[str, Any]) -> str:
    metric, value = item
    limits = value if isinstance(value, dict) else {"min": value}
    words = {"min": "at least", "max": "at most"}
    return f"{metric} {' and '.join(f'{words[key]} {x:g}' for key, x in limits.items())}"


def _curves(runs: Sequence[tuple[str, list[dict[str, float]]]]) -> list[str]:
    """Return and success rate over the control steps of all sessions."""
    return [text for panel in CURVES[:2] if (text := _curve(panel, runs))]


def _curve(panel: Panel, runs: Sequence[tuple[str, list[dict[str, float]]]]) -> str:
    figure, axis = axes(panel.title, panel.y)
    start, drawn = 0.0, False
    for number, (name, rows) in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        for column in panel.columns:
            evaluated = SOURCES[column.partition("/")[0]] == "evaluation"
            style: dict[str, Any] = {"marker": "o", "ms": 3} if evaluated else {"alpha": 0.4}
            points = [
                (start + row[STEPS], row[column])
                for row in rows
                if math.isfinite(row.get(column, math.nan))
            ]
            if points:
                axis.plot(*zip(*points), color=colour, label=name if evaluated else None, **style)
                drawn = True
        start += rows[-1][STEPS] if rows else 0.0
        if number + 1 < len(runs):
            axis.axvline(start, color="#bbb", lw=0.8, ls=":")
    axis.set_xlim(left=0)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8)
    return image(figure, f"{panel.title} of all sessions") if drawn else ""


def _evaluation(session: dict[str, Any]) -> str:
    """The final evaluation of a session's last attempt."""
    attempts = session["attempts"]
    summary = attempts[-1].get("summary") if attempts else None
    if not summary:
        return ""
    about = f"<p>{html.escape(session['description'])}</p>" if session["description"] else ""
    return f"<h2>{html.escape(session['name'])}</h2>{about}{summary_table(summary)}"
