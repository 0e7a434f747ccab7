"""The report page of a run: its results, curves, tables and settings in one HTML file."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError
from jaxrl.files import check_writable, first_free, write_text
from jaxrl.logs import columns, readable
from jaxrl.reporting import overlay, reading
from jaxrl.reporting.members import check_run, is_population
from jaxrl.reporting.pages import (
    RETURN,
    SECONDS,
    SOURCES,
    STEPS,
    Panel,
    axes,
    data,
    device,
    document,
    hardware_table,
    history_table,
    image,
    need_matplotlib,
    percent,
    plots,
    sections,
    table,
)
from jaxrl.reporting.reading import Evaluation, Summary
from jaxrl.runs import is_resumable

COLOURS = {"training": "#0072b2", "evaluation": "#d55e00"}


def write(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page of a run, or one page that compares several, and returns its path.

    Args:
      runs: folders of the runs.
      out: the file to write; None: RUN/report.html for a single run that was trained here,
        otherwise the first free name of ./report.html, ./report-2.html, ...

    Raises:
      UserError: Matplotlib is missing, a folder cannot be read or has nothing to show, or the
        file cannot be written.
    """
    need_matplotlib()
    runs = reading.distinct(runs)
    trained_here = len(runs) == 1 and is_resumable(runs[0])
    if out:
        check_writable(out)
    several = len(runs) > 1 or is_population(runs[0])
    with reading.unreadable_is_said(runs[0]):
        text = overlay.page(runs) if several else page(runs[0])
    if not out:
        out = runs[0] / "report.html" if trained_here else first_free(Path("report.html"))
    write_text(out, text)
    return out


def curve(run: Path) -> str:
    """The return over the control steps, in training and evaluation, as an HTML image."""
    need_matplotlib()
    rows = reading.read_rows(run / "progress.csv")
    return _panel(rows, RETURN, {}) if rows else ""


def page(run: Path) -> str:
    """The page of the run in a folder.

    Raises:
      UserError: the folder holds no run, or progress.csv has no rows.
    """
    check_run(run)
    rows = reading.read_rows(run / "progress.csv")
    if not rows:
        raise UserError(f"{run}: progress.csv has no rows yet")
    config = reading.read_config(run) or {}
    evaluations, baselines = reading.read_evaluations(run), reading.read_baselines(run)
    facts = reading.hardware(run)
    text = (run / "config.yaml").read_text() if config else ""
    parts = [
        f"<h1>{html.escape(run.resolve().name)}</h1>",
        f"<p class='headline'>{headline(config, rows, evaluations, facts)}</p>",
        _video(run),
        *_curves(rows, baselines),
        _evaluations(evaluations),
        _baseline_table(baselines),
        history_table(reading.read_history(run)),
        f"<h2>Hardware and versions</h2>{hardware_table(facts)}" if facts else "",
        f"<h2>Configuration</h2><pre>{html.escape(text)}</pre>" if text else "",
    ]
    return document(run.resolve().name, parts)


def headline(
    config: dict[str, Any],
    rows: Sequence[dict[str, float]],
    evaluations: Sequence[Evaluation],
    facts: dict[str, Any],
) -> str:
    """The result in one sentence (HTML)."""
    env = config.get("env")
    task = env.get("name", "") if isinstance(env, dict) else env or ""
    algo = str(config.get("algo", "")).upper()
    final = next((e for e in evaluations if e.name == "final"), None)
    steps, seconds = rows[-1][STEPS], rows[-1].get(SECONDS, math.nan)
    cost = f"{steps:,.0f} control steps"
    cost += f" in {readable(seconds / 60, 2)} minutes" if math.isfinite(seconds) else ""
    machine = device(facts or (final.hardware if final else {}))
    cost += f" on {machine}" if machine else ""
    setup = " on ".join(part for part in (algo, str(task)) if part) or "This run"
    return html.escape(f"{setup}: {_outcome(rows, final)}, after {cost}.")


def _outcome(rows: Sequence[dict[str, float]], final: Evaluation | None) -> str:
    """The best model's score, or else the last score in training."""
    if final:
        summary = final.summaries[next(iter(final.summaries))]
        scores = {name: values["mean"] for name, values in summary.items()}
        source = "the best model"
        source += f", over {final.episodes:,} episodes," if final.episodes >= 0 else ""
        return f"{source} {_scores(scores.get('return'), scores.get('success'))}"
    for source, names in (
        ("the last evaluation in training", (columns.EVAL_RETURN, columns.EVAL_SUCCESS)),
        ("training", (columns.ROLLOUT_RETURN, columns.ROLLOUT_SUCCESS)),
    ):
        last = [next((y for _, y in reversed(_points(rows, name))), None) for name in names]
        if last[0] is not None:
            return f"{source} {_scores(*last)}"
    return "no episode has ended"


def _scores(score: float | None, success: float | None) -> str:
    parts = [f"succeeds in {percent(success)}"] if success is not None else []
    parts += [f"has a mean return of {readable(score)}"] if score is not None else []
    return " and ".join(parts) or "has no return"


def _video(run: Path) -> str:
    raw = reading.newest_video(run)
    if not raw:
        return ""
    return (
        f"<video controls autoplay loop muted playsinline src='{data(raw, 'video/mp4')}'></video>"
    )


# -- curves ---------------------------------------------------------------------------


def _curves(rows: Sequence[dict[str, float]], baselines: dict[str, Summary]) -> list[str]:
    panels_by_heading = sections([name for name in rows[0] if _points(rows, name)])
    if not any(panels_by_heading.values()):
        return ["<p>There is no finite number to draw.</p>"]
    last_heading = list(panels_by_heading)[-1]
    return [
        plots(heading, [_panel(rows, p, baselines) for p in panels], folded=heading == last_heading)
        for heading, panels in panels_by_heading.items()
    ]


def _panel(rows: Sequence[dict[str, float]], panel: Panel, baselines: dict[str, Summary]) -> str:
    """One panel: the curves of training and evaluations, and the baselines' means as lines."""
    figure, axis = axes(panel.title, panel.y)
    for name in panel.columns:
        points = _points(rows, name)
        source = SOURCES.get(name.partition("/")[0], "training")
        marked = source == "evaluation" or len(points) == 1  # a line of one point is invisible
        style = {"marker": "o", "ms": 4} if marked else {}
        axis.plot(*zip(*points), label=source, color=COLOURS[source], **style)
    for number, (name, summary) in enumerate(baselines.items()):
        judged = summary.get({"Return": "return", "Success rate": "success"}.get(panel.title, ""))
        if judged:
            style = {"color": "#555", "lw": 1, "ls": ("--", ":", "-.")[number % 3]}
            axis.axhline(judged["mean"], label=name, **style)
    axis.set_xlim(left=0)
    if len(axis.get_legend_handles_labels()[1]) > 1 or panel.columns[0].startswith(columns.EVAL):
        axis.legend(fontsize=8)
    return image(figure, f"{panel.title} ({', '.join(panel.columns)})")


def _points(rows: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(r[STEPS], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))]


# -- tables ---------------------------------------------------------------------------


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    """A table for each evaluation; evaluations with the same numbers share one."""
    groups: list[list[Evaluation]] = []
    for each in evaluations:
        same = next((group for group in groups if group[0].summaries == each.summaries), None)
        if same is None:
            groups.append(same := [])
        same.append(each)
    return "".join(map(_evaluation, groups))


def _evaluation(same: Sequence[Evaluation]) -> str:
    first = same[0]
    names = html.escape(", ".join(each.name for each in same))
    settings = f", {html.escape(json.dumps(first.settings))}" if first.settings else ""
    facts_shown = [f"{first.episodes:,} episodes"] if first.episodes >= 0 else []
    facts_shown += [f"seed {first.seed}"] if first.seed >= 0 else []
    text = f"<h2>Evaluation: {names}</h2><p>{', '.join(facts_shown)}{settings}</p>"
    if len(first.summaries) > 1:
        return text + _across(first.summaries)
    return text + summary_table(next(iter(first.summaries.values())))


def summary_table(summary: Summary) -> str:
    """Table of the statistics of an evaluation."""
    rows = [
        (html.escape(name), *(readable(values[c]) for c in reading.COLUMNS))
        for name, values in summary.items()
    ]
    return table([c.replace("ci95_", "95 % ") for c in ("", *reading.COLUMNS)], rows)


def _across(summaries: dict[str, Summary]) -> str:
    """Table of the means in several simulators, side by side."""
    names = dict.fromkeys(name for summary in summaries.values() for name in summary)
    rows = [
        (html.escape(n), *(readable(s[n]["mean"]) if n in s else "" for s in summaries.values()))
        for n in names
    ]
    return table(["mean", *map(html.escape, summaries)], rows)


def _baseline_table(baselines: dict[str, Summary]) -> str:
    if not baselines:
        return ""
    columns = [c for c in ("return", "success", "length") if c in next(iter(baselines.values()))]
    rows = [
        (html.escape(name), *(readable(s[c]["mean"]) if c in s else "" for c in columns))
        for name, s in baselines.items()
    ]
    return "<h2>Baselines (means)</h2>" + table(["", *columns], rows)
