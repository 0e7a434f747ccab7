"""Rows of numbers for the log, computed from the results of a chunk of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrl.logs import columns


def episode_row(statistics: tuple[str, ...], episodes: Any) -> dict[str, float]:
    """The logged numbers of the episodes that ended in a chunk.

    Args:
      statistics: names of the columns of `episodes.sums`.
      episodes: an `EpisodeSums`.
    """
    count = int(episodes.count)
    means = episodes.sums / count if count else np.full(episodes.sums.shape, np.nan)
    row = {columns.rollout(name): float(mean) for name, mean in zip(statistics, means, strict=True)}
    return row | {
        columns.EPISODES: count,
        columns.NAN_RESETS: int(episodes.nonfinite),
        columns.OUT_OF_RANGE: int(episodes.out_of_range),
    }


def mean_and_std(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means and standard deviations (`NAME_std`) over the finite numbers of the members' rows.

    Numbers that are the same for all members (`time/`) are taken from the first row.
    """
    out: dict[str, float] = {}
    for name in rows[0]:
        if name.startswith(columns.TIME):
            out[name] = rows[0][name]
            continue
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        out[name] = float(values.mean()) if values.size else float("nan")
        out[columns.std(name)] = float(values.std()) if values.size else float("nan")
    return out
