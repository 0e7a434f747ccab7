"""One page that compares runs: populations, seeds, sweeps, algorithms."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxrl.logs import readable
from jaxrl.options import nest
from jaxrl.reporting.members import Group, Member, differing, grouped, read_members, shown
from jaxrl.reporting.pages import (
    CURVES,
    SECONDS,
    SOURCES,
    STEPS,
    Panel,
    axes,
    device,
    document,
    hardware_table,
    history_table,
    image,
    percent,
    plots,
    sections,
    table,
)
from jaxrl.reporting.reading import hardware, read_history
from jaxrl.reporting.statistics import aggregate, iqm_interval

# Okabe & Ito's colours for colour-blind readers, without the pale ones
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#4d4d4d")
DASHES = ((), (3, 1), (1, 1), (4, 1, 1, 1))  # in line widths
RETURNS = CURVES[0].columns
X_LABELS = {STEPS: "control steps", SECONDS: "wall-clock seconds"}
NOTHING = "&ndash;"

EXPLANATION = """
<p><small>A thin line is one member; &times; marks where it diverged. The thick line is the
interquartile mean (IQM) of the group's members, thinner where some of them are missing, and
ends where fewer than half are left; the shaded area is its 95 % bootstrap interval over members
(Agarwal et al. 2021).</small></p>
"""
NOTE_GROUPS = """
<p><small>Final evaluations: interquartile mean over the members [95 % interval].</small></p>
"""
NOTE_UNJUDGED = """
<p><small>* from the last evaluation in training; there is no eval/final.json.</small></p>
"""


# -- figures --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Style:
    """How a group is drawn.

    Args:
      colour: colour in HTML notation.
      dashes: lengths of dashes and gaps, in line widths; empty: a solid line.
      line: opacity of a member's line.
      shade: opacity of the interval.
    """

    colour: str
    dashes: tuple[float, ...]
    line: float
    shade: float

    @property
    def pattern(self) -> Any:
        """The dashes as Matplotlib's line style."""
        return (0, self.dashes) if self.dashes else "-"


def styles(groups: Sequence[Group]) -> list[Style]:
    """A style for each group; the more members and groups, the fainter the lines and areas."""
    total = sum(len(group.members) for group in groups)
    line = min(0.5, max(0.06, 8 / total))
    shade = min(0.18, 0.8 / len(groups))
    return [Style(*look, line, shade) for look in _colors_and_dashes(groups)]


def _colors_and_dashes(groups: Sequence[Group]) -> list[tuple[str, tuple[float, ...]]]:
    """Colour and dashes of each group.

    A few groups differ in colour only. In a larger grid of two settings one sets the colour and
    the other the dashes; other groups take their colours from a continuous scale.
    """
    count = len(groups)
    if count <= len(COLOURS):
        return [(colour, ()) for colour in COLOURS[:count]]
    indices = []
    for name in differing([group.settings for group in groups]):
        values = [shown(group.settings.get(name)) for group in groups]
        distinct = list(dict.fromkeys(values))
        indices.append([distinct.index(value) for value in values])
    indices.sort(key=max)
    if len(indices) == 2 and max(indices[0]) < len(DASHES) and max(indices[1]) < len(COLOURS):
        return [(COLOURS[j], DASHES[i]) for i, j in zip(*indices)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    hues = colormaps["viridis"](np.linspace(0, 0.9, count))
    return [(to_hex(hue), DASHES[i % len(DASHES)]) for i, hue in enumerate(hues)]


def curves(groups: Sequence[Group]) -> list[str]:
    """Figures of all columns that hold numbers, by heading; returns also against time."""
    panels_by_heading = sections(finite_columns(groups))
    if not any(panels_by_heading.values()):
        return ["<p>No member has a finite number to draw.</p>"]
    last_heading = list(panels_by_heading)[-1]
    return [
        plots(heading, _figures(groups, panels), folded=heading == last_heading)
        for heading, panels in panels_by_heading.items()
    ]


def finite_columns(groups: Sequence[Group]) -> list[str]:
    """Columns of progress.csv in which a member has a finite number."""
    members = [member for group in groups for member in group.members]
    names = dict.fromkeys(name for m in members for row in m.rows[:1] for name in row)
    return [name for name in names if any(m.curve(name).size for m in members)]


def _figures(groups: Sequence[Group], panels: Sequence[Panel]) -> list[str]:
    return [
        _figure(groups, panel, name, x)
        for panel in panels
        for name in panel.columns
        for x in ((STEPS, SECONDS) if name in RETURNS else (STEPS,))
    ]


def _figure(groups: Sequence[Group], panel: Panel, name: str, x: str) -> str:
    """One column of all groups, against control steps or seconds."""
    drawing, axis = axes(title(panel, name), panel.y, X_LABELS[x])
    compare(axis, groups, name, x)
    return image(drawing, f"{title(panel, name)} ({name})")


def title(panel: Panel, name: str) -> str:
    """The title of one of a panel's columns."""
    source = SOURCES.get(name.partition("/")[0]) if name != panel.title else None
    return f"{panel.title}: {source}" if source else panel.title


def compare(axis: Any, groups: Sequence[Group], name: str, x: str) -> None:
    """Draws one column of all groups, against control steps or seconds."""
    for group, style in zip(groups, styles(groups)):
        draw(axis, group, style, name, x)
    if cut := limit(axis, [m.curve(name)[1] for group in groups for m in group.members]):
        axis.set_title(cut, fontsize=8, loc="right", color="#777")
    axis.set_xlim(left=0)
    if x == SECONDS:
        axis.xaxis.set_major_formatter("{x:,.0f}")


def draw(axis: Any, group: Group, style: Style, name: str, x: str) -> None:
    """Draws a group's members, their IQM and its interval."""
    curves = []
    for member in group.members:
        curve = member.curve(name, x)
        if curve.size:
            curves.append(curve)
            single = {"marker": ".", "ms": 6} if curve.shape[1] == 1 else {}
            axis.plot(*curve, color=style.colour, lw=0.8, alpha=style.line, zorder=1, **single)
            if member.diverged is not None:
                axis.plot(*curve[:, -1], "x", color=style.colour, ms=7, mew=2, zorder=4)
    if not curves:
        return
    grid, count, (middle, low, high) = aggregate(curves)
    line = {"color": style.colour, "ls": style.pattern, "zorder": 3}
    if len(grid) == 1:  # lines and areas of one point are invisible
        spread = [middle - low, high - middle] if len(curves) > 1 else None
        axis.errorbar(grid, middle, spread, fmt="o", ms=5, color=style.colour, capsize=4, zorder=3)
    axis.fill_between(grid, low, high, color=style.colour, alpha=style.shade, lw=0, zorder=2)
    axis.plot(grid, middle, lw=1.2, **line)
    axis.plot(grid, np.where(count == len(curves), middle, np.nan), lw=2.4, **line)


def limit(axis: Any, values: Sequence[np.ndarray]) -> str:
    """Cuts off extreme values that would flatten all curves; returns a note about it, or ""."""
    finite = np.concatenate(values)
    low, high = np.percentile(finite, [2, 98])
    if np.ptp(finite) <= 10 * (high - low) or low == high:
        return ""
    margin = 0.15 * (high - low)
    axis.set_ylim(low - margin, high + margin)
    return "extremes cut off"


# -- the page -------------------------------------------------------------------------


def page(runs: Sequence[Path]) -> str:
    """The page of a population, or of several runs.

    Raises:
      UserError: a folder holds no run, or no run has rows.
    """
    members = read_members(runs)
    groups = grouped(members)
    title = runs[0].resolve().name if len(runs) == 1 else f"{len(runs)} runs compared"
    width = max(len(group.label) for group in groups) + 6
    return document(
        title,
        [
            f"<h1>{html.escape(title)}</h1>",
            f"<p class='headline'>{html.escape(headline(runs, groups))}</p>",
            group_table(groups) if len(groups) < len(members) else "",
            EXPLANATION,
            f"<div class='legend' style='columns:{width}ch'>{''.join(names(groups))}</div>",
            *curves(groups),
            "<h2>Members</h2>",
            member_table(groups),
            *_histories(runs),
            _hardware(runs),
            configuration(groups),
        ],
    )


def headline(runs: Sequence[Path], groups: Sequence[Group]) -> str:
    """The result in one sentence: that of the only group, or of the best one."""
    count = sum(len(group.members) for group in groups)
    size = counted(count, "member")
    if len(groups) > 1:
        size += f" in {counted(len(groups), 'group')}"
    task, algo = (_common(groups, name) for name in ("env.name", "algo"))
    setup = " on ".join(part for part in (algo.upper(), task) if part)
    text = f"{setup}, {size}" if setup else size
    score, form = ("success", percent) if "success" in _scores(groups) else ("return", readable)
    rated = [(g, v) for g in groups if (v := _middle(g, score)) is not None]
    best, value = max(rated, key=lambda pair: pair[1][0], default=(groups[0], None))
    if value is not None and task:  # other tasks' returns are on other scales
        middle, low, high = map(form, value)
        subject = "they have" if len(groups) == 1 else f"the best group, {best.label}, has"
        several = len(best.members) > 1
        text += f": {subject} {'an interquartile mean ' if several else 'a '}{score} of {middle}"
        text += f" (95 % interval {low} to {high})" if several else ""
    if task:
        minutes = max((m.minutes for m in best.members if m.rows), default=math.nan)
        text += f", after {readable(best.steps)} control steps in {readable(minutes, 2)} minutes"
    machines = ", ".join(filter(None, dict.fromkeys(device(hardware(run)) for run in runs)))
    return f"{text} on {machines}." if machines else f"{text}."


def _common(groups: Sequence[Group], name: str) -> str:
    """A setting that all groups share; empty if they do not."""
    values = {str(group.settings.get(name, "")) for group in groups}
    return values.pop() if len(values) == 1 else ""


def _middle(group: Group, score: str) -> np.ndarray | None:
    """[3] IQM of a group's final scores, and its interval; None if there are no scores."""
    finite = [v for m in group.members if math.isfinite(v := m.final[score])]
    return iqm_interval(np.array(finite)) if finite else None


def _histories(runs: Sequence[Path]) -> list[str]:
    """Tables of how the runs were started and resumed."""
    tables = {run: history_table(read_history(run)) for run in runs}
    return [
        (f"<p>{html.escape(run.resolve().name)}</p>" if len(runs) > 1 else "") + text
        for run, text in tables.items()
        if text
    ]


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def names(groups: Sequence[Group]) -> list[str]:
    """Each group's line and label, as HTML."""
    width = min(24, max(len(group.label) for group in groups))
    entries = []
    for group, style in zip(groups, styles(groups)):
        dashes = " ".join(f"{4 * part:g}" for part in style.dashes)
        entries.append(
            f"<div class='group'><svg width='32' height='10'><path d='M0 4h32' "
            f"stroke='{style.colour}' stroke-width='4' stroke-dasharray='{dashes}'/></svg>"
            f"<span style='min-width:{width}ch'>{html.escape(group.label)}</span></div>"
        )
    return entries


def group_table(groups: Sequence[Group]) -> str:
    """Table of each group's scores, size and best member."""
    scores = _scores(groups)
    rows = []
    for group, name in zip(groups, names(groups)):
        numbers = [_interval([m.final[score] for m in group.members]) for score in scores]
        minutes = max((m.minutes for m in group.members if m.rows), default=math.nan)
        size = [_count(group), readable(group.steps), readable(minutes, 2)]
        rows.append([name, *numbers, *size, _best(group)])
    head = ["group", *scores, "members", "steps each", "minutes", "best member"]
    return table(head, rows) + NOTE_GROUPS


def _scores(groups: Sequence[Group]) -> list[str]:
    """Those of "return" and "success" that at least one member has."""
    members = [member for group in groups for member in group.members]
    return [
        score
        for score in ("return", "success")
        if any(math.isfinite(member.final[score]) for member in members)
    ]


def _count(group: Group) -> str:
    """Number of members, and how many of them diverged or ended early."""
    diverged = sum(m.diverged is not None for m in group.members)
    short = sum(bool(group.status(m)) for m in group.members) - diverged
    notes = [f"{n} {text}" for n, text in ((diverged, "diverged"), (short, "ended early")) if n]
    return f"{len(group.members)}" + (f" ({', '.join(notes)})" if notes else "")


def _interval(values: Sequence[float]) -> str:
    finite = np.array([v for v in values if math.isfinite(v)])
    if not len(finite):
        return NOTHING
    middle, low, high = iqm_interval(finite)
    text = readable(middle)
    if len(finite) > 1:
        text += f" [{readable(low)}, {readable(high)}]"
    return text + (f" of {len(finite)}" if len(finite) < len(values) else "")


def _best(group: Group) -> str:
    scored = [m for m in group.members if math.isfinite(m.final["return"])]
    best = max(scored, key=lambda m: m.final["return"], default=None)
    return html.escape(best.folder.resolve().name) if best else NOTHING


def member_table(groups: Sequence[Group]) -> str:
    """Table of each member's final evaluation, length and status."""
    scores = _scores(groups)
    rows: list[list[str]] = []
    for group, label in zip(groups, names(groups)):
        for member in group.members:
            end = member.rows[-1][STEPS] if member.rows else math.nan
            numbers = [_number(member, score) for score in scores]
            numbers += [readable(end), readable(member.minutes, 2), group.status(member)]
            group_cell = [label] if len(groups) > 1 else []
            seed = html.escape(str(member.seed))
            rows.append([html.escape(member.name), *group_cell, seed, *numbers])
    head = ["member", *["group"] * (len(groups) > 1), "seed", *scores, "steps", "minutes", ""]
    unjudged = any("*" in cell for row in rows for cell in row[-3 - len(scores) : -3])
    return table(head, rows) + (NOTE_UNJUDGED if unjudged else "")


def _number(member: Member, score: str) -> str:
    value = member.final[score]
    return readable(value) + "*" * (not member.judged) if math.isfinite(value) else NOTHING


def _hardware(runs: Sequence[Path]) -> str:
    """The machines that the runs used, each listed once."""
    machines: dict[str, list[str]] = {}
    for run in runs:
        if facts := hardware(run):
            machines.setdefault(hardware_table(facts), []).append(run.resolve().name)
    return "".join(
        f"<h2>Hardware and versions</h2><p>{html.escape(', '.join(run_names))}</p>{facts}"
        for facts, run_names in machines.items()
    )


def configuration(groups: Sequence[Group]) -> str:
    """The settings that differ, one column per group, and those that all groups share."""
    settings = [group.settings for group in groups]
    differ = differing(settings)
    rows = [[html.escape(name), *(_setting(s, name) for s in settings)] for name in differ]
    common = nest({k: v for k, v in settings[0].items() if k not in differ})
    text = yaml.safe_dump(common, sort_keys=False)
    differences = (
        f"<h2>Settings that differ</h2>{table(['', *names(groups)], rows)}" if differ else ""
    )
    return f"{differences}<h2>Settings in common</h2><pre>{html.escape(text)}</pre>"


def _setting(settings: dict[str, Any], name: str) -> str:
    return html.escape(shown(settings[name])) if name in settings else NOTHING
