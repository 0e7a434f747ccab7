"""One picture of learning curves: populations, seeds, several runs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError
from jaxrl.files import check_writable, first_free, replacing
from jaxrl.logs import columns
from jaxrl.reporting import overlay
from jaxrl.reporting.members import Group, grouped, read_members
from jaxrl.reporting.pages import PANEL, need_matplotlib, prepare, sections, shorten
from jaxrl.reporting.reading import distinct, unreadable_is_said

FORMATS = (".png", ".svg", ".pdf")
KEYS = ("return", "success")
IN_A_ROW = 3  # panels
FIRST_LINE = "the first line of progress.csv"


def write(
    runs: Sequence[Path],
    keys: Sequence[str] = KEYS,
    *,
    x: str = columns.STEPS,
    out: Path | None = None,
) -> Path:
    """Draws columns of progress.csv of one or more runs, a panel for each, and returns the path.

    Args:
      runs: folders of runs and populations; those with the same settings, except for the seed, are
        one group.
      keys: columns ("eval/mean_reward"), or the part after the slash, or "return", "success" and
        "length", for the columns of training and of evaluations. Those of `KEYS` may be missing.
      x: column of the horizontal axis, `columns.STEPS` or `columns.ELAPSED`.
      out: the file, whose ending is one of `FORMATS`; None: the first free name of ./plot.png,
        ./plot-2.png, ...

    Raises:
      UserError: Matplotlib is missing, a folder holds no run, a key is in none of the runs, or the
        file cannot be written.
    """
    need_matplotlib()
    if out and out.suffix.lower() not in FORMATS:
        raise UserError(f"{out}: unknown kind of picture (known: {', '.join(FORMATS)})")
    if out:
        check_writable(out)
    with unreadable_is_said(runs[0]):
        groups = grouped(read_members(distinct(runs)))
    out = out or first_free(Path("plot.png"))
    figure = _figure(groups, _selected(groups, keys), x)
    with replacing(out) as part:
        figure.savefig(part, dpi=150)
    return out


def _selected(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """The columns that keys name, in the order of the keys."""
    known = overlay.finite_columns(groups)
    selected: dict[str, None] = {}
    for key in keys:
        meant = (key, columns.rollout(key), columns.evaluation(key))
        found = [n for n in known if n in meant or n.partition("/")[2] == key]
        if not found and key not in KEYS:
            short = [name.partition("/")[2] for name in known]
            close = difflib.get_close_matches(key, [*known, *short, *KEYS], 1)
            hint = f"did you mean {close[0]}?" if close else f"names: {FIRST_LINE}"
            raise UserError(f"--keys: no run has finite numbers of {key!r} ({hint})")
        selected |= dict.fromkeys(found)
    if not selected:
        raise UserError(
            f"no run has finite numbers of {' or '.join(keys)}; choose others with --keys "
            f"(names: {FIRST_LINE})"
        )
    return list(selected)


def _figure(groups: Sequence[Group], names: Sequence[str], x: str) -> Any:
    """The picture: a panel for each column, and the groups' names if there are several."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = {name: p for ps in sections(names).values() for p in ps for name in p.columns}
    wide = len(names) if len(names) <= IN_A_ROW else min(IN_A_ROW, -(-len(names) // 2))
    high = -(-len(names) // wide)
    several = len(groups) > 1
    legend = 0.25 * (1 + len(groups)) if several else 0.0  # inches
    size = PANEL[0] * wide, PANEL[1] * high + legend
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False).ravel()
    for axis in grid[len(names) :]:
        axis.remove()
    for axis, name in zip(grid, names):
        panel = panels[name]
        prepare(axis, overlay.title(panel, name), panel.y, overlay.X_LABELS[x])
        overlay.compare(axis, groups, name, x)
    if several:
        lines = [
            Line2D([], [], color=s.colour, ls=s.pattern, label=g.label)
            for g, s in zip(groups, overlay.styles(groups))
        ]
        figure.legend(handles=lines, loc="outside lower left", fontsize=9, frameon=False)
    shorten(figure)
    return figure
