"""What the report's pages are made of: a run's rows, tables, figures, one HTML file."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError
from jaxrl.logs import STEP

STEPS = STEP
SECONDS = "time/time_elapsed"

# title, columns that share one scale; a run shows those that its progress.csv has
CURVES = (
    ("Return", ("rollout/ep_rew_mean", "eval/mean_reward")),
    ("Success rate", ("rollout/success_rate", "eval/success_rate")),
    ("Episode length (steps)", ("rollout/ep_len_mean", "eval/mean_ep_length")),
    ("Curriculum level", ("rollout/level",)),
    ("Squared distance to the expert's actions", ("train/expert_loss",)),
    ("Approximate KL", ("train/approx_kl",)),
    ("Explained variance", ("train/explained_variance",)),
    ("Value loss", ("train/value_loss",)),
    ("Policy gradient loss", ("train/policy_gradient_loss",)),
    ("Exploration (std)", ("train/std",)),
    ("Critic loss", ("train/critic_loss",)),
    ("Actor loss", ("train/actor_loss",)),
    ("Q value", ("train/q_value",)),
    ("Temperature", ("train/ent_coef",)),
    ("Temperature loss", ("train/ent_coef_loss",)),
    ("Control steps per second", ("time/fps",)),
)

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-size:14px}
td,th{padding:.25em .7em;text-align:right;white-space:nowrap}
th{border-bottom:1px solid #999}td:first-child,th:first-child{text-align:left}
tr:nth-child(even){background:#f4f5f7}pre{background:#f4f5f7;padding:1em;overflow:auto}
img,video{max-width:100%}small{color:#666}.wide{overflow-x:auto}
.legend{position:sticky;top:0;background:#fffe;padding:.5em 0;margin-bottom:.8em;max-height:30vh;
overflow:auto;border-bottom:1px solid #ddd}
.group{display:flex;align-items:baseline;white-space:normal}svg{flex:none;margin-right:.5em}
"""


def document(title: str, sections: Sequence[str]) -> str:
    """One page that needs nothing else."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(sections)}</body></html>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
      head, rows: HTML of the cells; the first of a row is text, the others are numbers, and
        a single one goes across the table.
    """
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for row in rows:
        across = f" colspan='{len(head)}'" if len(row) == 1 else ""
        lines.append(f"<tr>{''.join(f'<td{across}>{cell}</td>' for cell in row)}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def data(raw: bytes, kind: str) -> str:
    """The bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def panels(count: int, *, height: float) -> tuple[Any, list[Any]]:
    """A figure and its `count` axes, two in a line of `height` inches.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise UserError("report: needs `pip install 'jaxrl[report]'`") from error
    lines = math.ceil(count / 2)
    figure = Figure(figsize=(10.8, height * lines), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    axes = list(figure.subplots(lines, 2, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(color="#e4e4e4", lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#999")
        axis.tick_params(color="#999", labelsize=9)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M
    return figure, axes[:count]


def image(figure: Any, alt: str) -> str:
    """The figure as part of a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return f"<img alt='{html.escape(alt)}' src='{data(buffer.getvalue(), 'image/png')}'>"


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of the CSV file; empty cells are NaN. A last row cut short is left out."""
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({k: math.nan if v == "" else float(v) for k, v in row.items()})
            except (TypeError, ValueError):  # a cell missing, or no number
                break
    return rows


def hardware(run: Path) -> dict[str, Any]:
    """What the run ran on, as its newest readable checkpoint says; empty without one."""
    from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta

    store = Checkpointer(run / "checkpoints")
    for step in reversed(store.steps()):
        try:
            return read_meta(store.folder / str(step))["meta"]["hardware"]
        except DamagedError:
            continue
    return {}


def hardware_table(facts: dict[str, Any]) -> str:
    return table(("", ""), [(key, html.escape(str(value))) for key, value in facts.items()])
