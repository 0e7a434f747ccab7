"""Interquartile means over runs, and their confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import trim_mean

GRID = 200  # largest number of points of an aggregated curve
RESAMPLES = 2000
BLOCK = 100  # resamples that are computed at once


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and the highest quarter of the values.

    Of n values, floor(n / 4) are left out at either end (Agarwal et al. 2021, "Deep
    reinforcement learning at the edge of the statistical precipice", section 4.3).
    """
    return trim_mean(values, 0.25, axis=axis)


def iqm_interval(values: np.ndarray) -> np.ndarray:
    """IQM over members and its 95 % percentile bootstrap interval.

    Args:
      values: [M, ...] finite values of M members.

    Returns:
      [3, ...] IQM, lower and upper end of the interval; the ends are NaN for a single member.
    """
    values = np.asarray(values, float)
    count = len(values)
    middle = iqm(values)
    if count == 1:
        return np.stack([middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan)])
    rng = np.random.default_rng(0)
    blocks = [
        iqm(values[rng.integers(count, size=(BLOCK, count))], axis=1)
        for _ in range(RESAMPLES // BLOCK)
    ]
    return np.stack([middle, *np.percentile(np.concatenate(blocks), [2.5, 97.5], axis=0)])


def aggregate(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aggregates the curves of a group, from where all have begun to where half have ended.

    Args:
      curves: [2, K_m] x values in rising order and y values of each member; none is empty.

    Returns:
      x values [G], number of members with a value there [G], IQM and its interval [3, G].
    """
    begin = max(x[0] for x, _ in curves)
    end = sorted(x[-1] for x, _ in curves)[len(curves) // 2]
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(begin <= grid) & (grid <= end)]
    if len(grid) > GRID:
        grid = np.linspace(grid[0], grid[-1], GRID)
    values = np.stack([np.interp(grid, x, y, right=np.nan) for x, y in curves])
    present = ~np.isnan(values)
    result = np.full((3, len(grid)), np.nan)
    for members in np.unique(present, axis=1).T:  # parts of the grid with the same members
        part = (present == members[:, None]).all(0)
        result[:, part] = iqm_interval(values[members][:, part])
    return grid, present.sum(0), result
