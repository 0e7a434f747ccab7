"""`python -m jaxrl.report RUN ...`: one HTML page that holds all there is to say of runs."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import write_text
from jaxrl.reporting import overlay
from jaxrl.reporting.members import check_run, is_population
from jaxrl.reporting.pages import (
    CURVES,
    STEPS,
    data,
    document,
    hardware,
    hardware_table,
    image,
    panels,
    read_rows,
    table,
)

BASELINES = "baselines.json"  # what `evaluate --baselines RUN` writes into RUN/eval

USAGE = """\
usage: python -m jaxrl.report RUN [RUN ...] [--out FILE]

One run: learning curves, evaluations, hardware, configuration and the newest video, in
one file that needs no network.

A population, or several runs (populations among them): their curves over each other,
grouped by all settings but the seed, with each group's interquartile mean and its 95 %
interval; tables of the groups, the members and the settings that differ.

  --out FILE   where the page goes (RUN/report.html; of several runs ./report.html)
"""


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"out": True, "help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if not positionals:
        raise UserError("expected the folder of a run, or of several (see --help)")
    runs = list({Path(p).resolve(): Path(p) for p in positionals}.values())
    several = len(runs) > 1 or is_population(runs[0])
    text = overlay.page(runs) if several else page(runs[0])
    out = Path(flags.get("out") or (runs[0] if len(runs) == 1 else Path()) / "report.html")
    write_text(out, text)
    print(f"written to {out}")
    return 0


def page(run: Path) -> str:
    """The page of the run in a folder."""
    check_run(run)
    rows = read_rows(run / "progress.csv")
    if not rows:
        raise UserError(f"{run}: progress.csv has no rows yet")
    last = rows[-1]
    steps, minutes = last[STEPS], last["time/time_elapsed"] / 60
    facts, baselines = hardware(run), _baselines(run)
    sections = [
        f"<h1>{html.escape(run.resolve().name)}</h1>",
        f"<p>{steps:,.0f} control steps in {minutes:.1f} minutes.</p>",
        _video(run),
        "<h2>Learning curves</h2>",
        _plots(rows, baselines),
        *[_evaluation(path) for path in sorted((run / "eval").glob("*.json"))],
        _baseline_table(baselines),
        f"<h2>Hardware and versions</h2>{hardware_table(facts)}" if facts else "",
        "<h2>Configuration</h2>",
        f"<pre>{html.escape((run / 'config.yaml').read_text())}</pre>",
    ]
    return document(run.resolve().name, sections)


def _baselines(run: Path) -> dict[str, dict[str, Any]]:
    """Summaries of the task's baselines by name, where they have been judged."""
    path = run / "eval" / BASELINES
    return json.loads(path.read_text()).get("baselines", {}) if path.exists() else {}


def _baseline_table(baselines: dict[str, dict[str, Any]]) -> str:
    if not baselines:
        return ""
    columns = [c for c in ("return", "success", "length") if c in next(iter(baselines.values()))]
    rows = [
        (html.escape(name), *(f"{summary[c]['mean']:.4g}" for c in columns))
        for name, summary in baselines.items()
    ]
    return "<h2>Baselines (means)</h2>" + table(["", *columns], rows)


def _plots(rows: list[dict[str, float]], baselines: dict[str, dict[str, Any]]) -> str:
    known = [(t, [n for n in names if _points(rows, n)]) for t, names in CURVES]
    known = [(title, names) for title, names in known if names]
    if not known:
        return "<p>There is no finite number to draw.</p>"
    figure, axes = panels(len(known), height=2.6)
    for axis, (title, names) in zip(axes, known):
        for name in names:
            style = {"marker": "o", "ms": 3} if name.startswith("eval/") else {"alpha": 0.8}
            axis.plot(*zip(*_points(rows, name)), label=name, **style)
        for number, (name, summary) in enumerate(baselines.items()):
            judged = summary.get({"Return": "return", "Success rate": "success"}.get(title))
            if judged:
                style = {"color": "#555", "lw": 1, "ls": ("--", ":", "-.")[number % 3]}
                axis.axhline(judged["mean"], label=name, **style)
        axis.set_title(title, fontsize=11, loc="left", fontweight="bold")
        if axis.get_legend_handles_labels()[1][1:]:
            axis.legend(fontsize=7)
    return image(figure, "learning curves")


def _points(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(r[STEPS], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))]


def _video(run: Path) -> str:
    videos = sorted((run / "videos").glob("*.mp4"), key=lambda p: p.stat().st_mtime)
    if not videos:
        return ""
    source = data(videos[-1].read_bytes(), "video/mp4")
    return f"<video controls autoplay loop muted src='{source}'></video>"


def _evaluation(path: Path) -> str:
    result: dict[str, Any] = json.loads(path.read_text())
    if "summary" not in result:
        return ""
    columns = ("mean", "std", "min", "max", "ci95_low", "ci95_high")
    rows = [
        (html.escape(name), *(f"{values[c]:.4g}" for c in columns))
        for name, values in result["summary"].items()
    ]
    settings = html.escape(json.dumps(result["settings"])) if result.get("settings") else ""
    return (
        f"<h2>Evaluation: {html.escape(path.stem)}</h2>"
        f"<p>{result['episodes']} episodes, seed {result['seed']} {settings}</p>"
        + table([c.replace("ci95_", "95 % ") for c in ("", *columns)], rows)
    )


if __name__ == "__main__":
    cli.run(main)
