"""`python -m jaxrl.report RUN`: one HTML page that holds all there is to say of a run."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import write_text

USAGE = """\
usage: python -m jaxrl.report RUN [--out FILE]

Writes RUN/report.html: learning curves, evaluations, hardware, configuration and the
newest video, in one file that needs no network.
"""

CURVES = (
    ("Return", ("rollout/ep_rew_mean", "eval/mean_reward")),
    ("Success rate", ("rollout/success_rate", "eval/success_rate")),
    ("Episode length (steps)", ("rollout/ep_len_mean", "eval/mean_ep_length")),
    ("Approximate KL", ("train/approx_kl",)),
    ("Explained variance", ("train/explained_variance",)),
    ("Losses", ("train/value_loss", "train/policy_gradient_loss")),
    ("Exploration (std)", ("train/std",)),
    ("Control steps per second", ("time/fps",)),
)

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right}
th{border-bottom:1px solid #999}td:first-child,th:first-child{text-align:left}
tr:nth-child(even){background:#f4f5f7}pre{background:#f4f5f7;padding:1em;overflow:auto}
img,video{max-width:100%}small{color:#666}
"""


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"out": True, "help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if len(positionals) != 1:
        raise UserError(f"expected one run's folder, got {len(positionals)} (see --help)")
    run = Path(positionals[0])
    if not (run / "progress.csv").is_file():
        raise UserError(f"{run}: not a run's folder (it has no progress.csv)")
    out = Path(flags.get("out") or run / "report.html")
    write_text(out, page(run))
    print(f"written to {out}")
    return 0


def page(run: Path) -> str:
    """The page of the run in a folder."""
    rows = _rows(run / "progress.csv")
    if not rows:
        raise UserError(f"{run}: progress.csv has no rows yet")
    last = rows[-1]
    steps, minutes = last["time/total_timesteps"], last["time/time_elapsed"] / 60
    sections = [
        f"<h1>{html.escape(run.resolve().name)}</h1>",
        f"<p>{steps:,.0f} control steps in {minutes:.1f} minutes.</p>",
        _video(run),
        "<h2>Learning curves</h2>",
        _plots(rows),
        *[_evaluation(path) for path in sorted((run / "eval").glob("*.json"))],
        _hardware(run),
        "<h2>Configuration</h2>",
        f"<pre>{html.escape((run / 'config.yaml').read_text())}</pre>",
    ]
    head = f"<meta charset='utf-8'><title>{html.escape(run.name)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(sections)}</body></html>"


def _rows(path: Path) -> list[dict[str, float]]:
    """Rows of the CSV file; empty cells are NaN. A last row cut short is left out."""
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({k: float(v) if v else math.nan for k, v in row.items()})
            except (TypeError, ValueError):
                break
    return rows


def _plots(rows: list[dict[str, float]]) -> str:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise UserError("report: needs `pip install 'jaxrl[report]'`") from error
    known = [(t, [n for n in names if n in rows[0]]) for t, names in CURVES]
    known = [(title, names) for title, names in known if names]
    lines = math.ceil(len(known) / 2)
    figure, axes = plt.subplots(lines, 2, figsize=(10, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(known) :]:
        axis.remove()
    for axis, (title, names) in zip(axes.flat, known, strict=False):
        for name in names:
            points = [(r["time/total_timesteps"], r[name]) for r in rows if not math.isnan(r[name])]
            style = {"marker": "o", "ms": 3} if name.startswith("eval/") else {"alpha": 0.8}
            if points:
                axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        if len(names) > 1:
            axis.legend(fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return f"<img alt='learning curves' src='{_data(buffer.getvalue(), 'image/png')}'>"


def _data(raw: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def _video(run: Path) -> str:
    videos = sorted((run / "videos").glob("*.mp4"), key=lambda p: p.stat().st_mtime)
    if not videos:
        return ""
    source = _data(videos[-1].read_bytes(), "video/mp4")
    return f"<video controls autoplay loop muted src='{source}'></video>"


def _evaluation(path: Path) -> str:
    result: dict[str, Any] = json.loads(path.read_text())
    if "summary" not in result:
        return ""
    columns = ("mean", "std", "min", "max", "ci95_low", "ci95_high")
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{values[c]:.4g}</td>" for c in columns)
        + "</tr>"
        for name, values in result["summary"].items()
    )
    settings = html.escape(json.dumps(result["settings"])) if result.get("settings") else ""
    head = "".join(f"<th>{c.replace('ci95_', '95 % ')}</th>" for c in ("", *columns))
    return (
        f"<h2>Evaluation: {html.escape(path.stem)}</h2>"
        f"<p>{result['episodes']} episodes, seed {result['seed']} {settings}</p>"
        f"<table><tr>{head}</tr>{rows}</table>"
    )


def _hardware(run: Path) -> str:
    from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta

    store = Checkpointer(run / "checkpoints")
    for step in reversed(store.steps()):
        try:
            facts = read_meta(store.folder / str(step))["meta"]["hardware"]
        except DamagedError:
            continue
        rows = "".join(
            f"<tr><td>{k}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items()
        )
        return f"<h2>Hardware and versions</h2><table>{rows}</table>"
    return ""


if __name__ == "__main__":
    cli.run(main)
