"""Building blocks of report pages: panels, tables, texts, the HTML document."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from typing import Any

from jaxrl.errors import UserError
from jaxrl.logs import columns, readable

STEPS = columns.STEPS
SECONDS = columns.ELAPSED


@dataclasses.dataclass(frozen=True)
class Panel:
    """Columns of progress.csv that are drawn on the same scale.

    Args:
      title: title of the panel.
      y: label of the vertical axis.
      columns: names of the columns; those of training before those of evaluations.
    """

    title: str
    y: str
    columns: tuple[str, ...]


# A page shows the panels whose columns are in progress.csv.
RETURN = Panel("Return", "sum of rewards", (columns.ROLLOUT_RETURN, columns.EVAL_RETURN))
CURVES = (
    RETURN,
    Panel("Success rate", "share of episodes", (columns.ROLLOUT_SUCCESS, columns.EVAL_SUCCESS)),
    Panel("Episode length", "control steps", (columns.ROLLOUT_LENGTH, columns.EVAL_LENGTH)),
    Panel("Curriculum level", "level (0 to 1)", (columns.LEVEL,)),
    Panel("Distance to the expert's actions", "squared distance", (columns.EXPERT_LOSS,)),
    Panel("Approximate KL", "divergence (nats)", (columns.KL,)),
    Panel("Explained variance", "share of variance", (columns.EXPLAINED_VARIANCE,)),
    Panel("Value loss", "loss", (columns.VALUE_LOSS,)),
    Panel("Policy gradient loss", "loss", (columns.POLICY_LOSS,)),
    Panel("Exploration", "std of the actions", (columns.STD,)),
    Panel("Critic loss", "loss", (columns.CRITIC_LOSS,)),
    Panel("Actor loss", "loss", (columns.ACTOR_LOSS,)),
    Panel("Q value", "mean over the batch", (columns.Q_VALUE,)),
    Panel("Temperature", "weight of the entropy", (columns.TEMPERATURE,)),
    Panel("Temperature loss", "loss", (columns.TEMPERATURE_LOSS,)),
    Panel("Speed", "control steps per second", (columns.SPEED,)),
)
COUNTERS = (columns.EPISODES, columns.NAN_RESETS, columns.RESTARTS, columns.EVAL_RETURN_STD)
CLOCKS = (STEPS, SECONDS, columns.ITERATIONS)
PANEL = (4.6, 2.7)  # inches
SOURCES = {"rollout": "training", "eval": "evaluation"}  # by prefix of the column

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}
h1{overflow-wrap:anywhere}.headline{font-size:1.15em;max-width:60em}
table{border-collapse:collapse;margin:1em 0;font-size:14px}
td,th{padding:.25em .7em;text-align:right;white-space:nowrap}
th{border-bottom:1px solid #999}td:first-child,th:first-child{text-align:left}
.texts td,.texts th{text-align:left;vertical-align:top;white-space:normal;max-width:36em}
.texts td:first-child{white-space:nowrap}.texts td:last-child{overflow-wrap:anywhere}
tr:nth-child(even){background:#f4f5f7}
pre{background:#f4f5f7;padding:1em;overflow:auto}img,video{max-width:100%}
.plots{display:grid;gap:.8em 1.2em;
grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr))}
.plots img{width:100%}small{color:#666}.wide{overflow-x:auto}summary{cursor:pointer}
summary h2{display:inline-block}
.legend{position:sticky;top:0;background:#fffe;padding:.5em 0;margin-bottom:.8em;max-height:30vh;
overflow:auto;border-bottom:1px solid #ddd}
.group{display:flex;align-items:baseline;white-space:normal;text-align:left}svg{flex:none;margin-right:.5em}
@media(max-width:600px){body{margin:1em auto}.legend{max-height:20vh;font-size:13px}}
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A complete HTML page that needs no other files."""
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, "
        f"initial-scale=1'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = "".join(sections)
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table.

    Args:
      head, rows: cells as HTML; the first cell of a row is text, the others are numbers.
      kind: "texts": all cells are text, which may be long.
    """
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<div class='wide'><table class='{kind}'>{''.join(lines)}</table></div>"


def data(raw: bytes, kind: str) -> str:
    """A data URL that contains the bytes."""
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


# -- panels ---------------------------------------------------------------------------


def need_matplotlib() -> None:
    """Raises UserError if Matplotlib, which draws the figures, is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            "figures: Matplotlib is not installed; run `pip install 'jaxrl[report]'`"
        ) from error


def sections(columns: Sequence[str]) -> dict[str, list[Panel]]:
    """Panels of the given columns of progress.csv, by heading."""
    known = [
        dataclasses.replace(panel, columns=tuple(c for c in panel.columns if c in columns))
        for panel in CURVES
    ]
    shown = {column for panel in CURVES for column in panel.columns}
    other_columns = [c for c in columns if c not in shown and c not in CLOCKS]
    metrics: dict[str, list[str]] = {}
    for column in other_columns:
        source, _, name = column.partition("/")
        if source in SOURCES and column not in COUNTERS:
            metrics.setdefault(name, []).append(column)
    task_panels = [Panel(name, _statistic(name), tuple(both)) for name, both in metrics.items()]
    used = {column for panel in task_panels for column in panel.columns}
    others = [Panel(c, c.rpartition("/")[2], (c,)) for c in other_columns if c not in used]
    return {
        "Learning curves": [panel for panel in known if panel.columns],
        "The task's own metrics": [p for p in task_panels if not p.title.startswith("reward/")],
        "Terms of the reward": [p for p in task_panels if p.title.startswith("reward/")],
        "All other columns": others,
    }


def _statistic(metric: str) -> str:
    """How a metric is summarised over an episode; see `jaxrl.envs.State`."""
    if metric.startswith("reward/"):
        return "sum over an episode"
    return "end of the episode" if metric.startswith("final/") else "mean over an episode"


def axes(title: str, y: str, x: str = "control steps") -> tuple[Any, Any]:
    """A figure with one panel, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL, layout="constrained")
    axis = figure.subplots()
    prepare(axis, title, y, x)
    return figure, axis


def prepare(axis: Any, title: str, y: str, x: str = "control steps") -> None:
    """Gives axes their look, title and labels."""
    from matplotlib.ticker import EngFormatter

    axis.grid(color="#e4e4e4", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999")
    axis.tick_params(color="#999", labelsize=9)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M
    axis.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def shorten(figure: Any) -> None:
    """Writes large numbers at the vertical axes as 20k or 1M."""
    from matplotlib.ticker import EngFormatter

    for axis in figure.axes:
        if max(map(abs, axis.get_ylim())) >= 10_000:
            axis.yaxis.set_major_formatter(EngFormatter(sep=""))


def image(figure: Any, alt: str) -> str:
    """The figure as an HTML image."""
    shorten(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    source = data(buffer.getvalue(), "image/png")
    return f"<img alt='{html.escape(alt)}' title='{html.escape(alt)}' src='{source}'>"


def plots(heading: str, images: Sequence[str], *, folded: bool = False) -> str:
    """Images under a heading, side by side where they fit; empty without images."""
    if not images:
        return ""
    grid = f"<div class='plots'>{''.join(images)}</div>"
    if folded:
        return f"<details><summary><h2>{heading}</h2></summary>{grid}</details>"
    return f"<h2>{heading}</h2>{grid}"


# -- tables and words -----------------------------------------------------------------


def hardware_table(facts: dict[str, Any]) -> str:
    rows = [(html.escape(str(key)), html.escape(str(value))) for key, value in facts.items()]
    return table(("", ""), rows, kind="texts")


def device(facts: dict[str, Any]) -> str:
    """The device that a run used, as text; empty if it is not known."""
    if facts.get("platform") == "cpu" and facts.get("cpu"):
        return f"{facts['cpu']} with {facts.get('cpu_cores', '?')} cores"
    return str(facts.get("device", ""))


def history_table(parts: Sequence[dict[str, Any]]) -> str:
    """Table of how a run was started and resumed; empty without parts."""
    if not parts:
        return ""
    named = [name for name in ("commit", "jaxrl", "jax", "device") if any(map(_has(name), parts))]
    rows = []
    for part in parts:
        start = part.get("from_step")
        texts = [f"{start:,}" if isinstance(start, int) else start]
        texts += [part.get(name) for name in ("date", *named)]
        texts += [_changes(part.get("changed")), part.get("command")]
        rows.append([html.escape("" if text is None else str(text)) for text in texts])
    head = ["from step", "date", *named, "changed", "command"]
    return "<h2>Parts of the run</h2>" + table(head, rows, kind="texts")


def _has(name: str):
    return lambda part: part.get(name) is not None


def _changes(changed: Any) -> str:
    """Settings that changed since the previous part, as text."""
    if not isinstance(changed, dict):
        return ""
    texts = []
    for key, values in changed.items():
        pair = isinstance(values, list) and len(values) == 2
        old, new = map(_plain, values) if pair else ("?", _plain(values))
        texts.append(f"{key}: {old} \u2192 {new}")
    return "; ".join(texts)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def percent(share: float) -> str:
    return f"{readable(100 * share, 3)} %"
