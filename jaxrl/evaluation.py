"""Evaluation: what plays whole episodes, and what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrl import platform
from jaxrl.envs import State, Task
from jaxrl.errors import UserError
from jaxrl.logs import columns, readable
from jaxrl.policy import Policy

BOOTSTRAPPED = 10_000  # episodes from which on the interval of a mean is the normal one
TELL_EVERY = 10.0  # seconds between lines on how far an evaluation is


def _nothing(count: int) -> Any:
    return ()


@dataclasses.dataclass(frozen=True)
class Actor:
    """What plays episodes.

    Attributes:
      act: (parameters, worlds with leaves [N, ...], memory [N, ...], key) -> actions [N, A], and
        the memory after them.
      memory: (N) -> memory before the first step.
    """

    act: Callable[[Any, State, Any, jax.Array], tuple[jax.Array, Any]]
    memory: Callable[[int], Any] = _nothing

    @classmethod
    def of_policy(cls, policy: Policy) -> Actor:
        """Acts by a policy, deterministically; its parameters are a `PolicyState`."""
        return cls(
            lambda params, worlds, memory, key: policy(params, worlds.obs, memory), policy.memory
        )

    @classmethod
    def of_function(cls, act: Callable[[State, jax.Array], jax.Array]) -> Actor:
        """Acts by a function (worlds, key) -> actions, without parameters or memory."""
        return cls(lambda params, worlds, memory, key: (act(worlds, key), memory))


def play(
    env: Task,
    actor: Actor,
    params: Any,
    episodes: int,
    key: jax.Array,
    *,
    most: int | None = None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Plays episodes, as many side by side as `most` and the device's memory allow.

    Args:
      env: the task.
      actor: what acts.
      params: what the actor takes.
      episodes: number of episodes E.
      key: PRNG key.
      most: worlds side by side at the most, where the memory would allow more.

    Returns:
      names of the S statistics, and their values [E, S].

    Raises:
      UserError: there is no room for so many episodes' statistics.
    """
    runtime = env.runtime()
    batch = min(episodes, most or episodes, runtime.most_side_by_side())
    evaluator = runtime.evaluator(actor, batch)
    names = evaluator.statistics
    _check_memory(episodes, len(names))
    table = np.empty((episodes, len(names)), np.float32)
    begun = told = time.monotonic()
    for number, start in enumerate(range(0, episodes, batch)):
        rows = evaluator(params, jax.random.fold_in(key, number) if number else key)
        table[start : start + batch] = rows[: episodes - start]
        if time.monotonic() - told > TELL_EVERY and (done := start + batch) < episodes:
            told = time.monotonic()
            left = (told - begun) * (episodes - done) / done / 60
            with contextlib.suppress(OSError, ValueError):  # nobody listens
                line = f"{done:,} of {episodes:,} episodes; {readable(left, 2)} minutes left"
                print(line, file=sys.stderr, flush=True)
    return names, table


def _check_memory(episodes: int, columns: int) -> None:
    free, need = platform.free_bytes(), 3 * 4 * episodes * columns  # the table, and copies of it
    if free is not None and need > free:
        raise UserError(
            f"--episodes: the numbers of {episodes:,} episodes take {need / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free; about {int(episodes * free / need):,} fit"
        )


def summarize(
    statistics: tuple[str, ...], table: np.ndarray, *, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """Mean, std, min, max and 95 % interval of the mean, a statistic each.

    The interval is the percentile bootstrap's (Efron & Tibshirani 1993), and of many
    episodes the normal one, to which that tends.

    Args:
      statistics: names of the columns.
      table: [E, S].
      resamples: bootstrap resamples.
    """
    rng = np.random.default_rng(0)
    count = len(table)
    mean, std = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
    if count < BOOTSTRAPPED:
        means = [table[rng.integers(count, size=count)].mean(0) for _ in range(resamples)]
        low, high = np.percentile(np.stack(means), [2.5, 97.5], axis=0)
    else:
        low, high = mean - 1.96 * std / count**0.5, mean + 1.96 * std / count**0.5
    return {
        name: {
            "mean": float(mean[i]),
            "std": float(std[i]),
            "min": float(table[:, i].min()),
            "max": float(table[:, i].max()),
            "ci95_low": float(low[i]),
            "ci95_high": float(high[i]),
        }
        for i, name in enumerate(statistics)
    }


def scalars(statistics: tuple[str, ...], table: np.ndarray) -> dict[str, float]:
    """Means under the names that go to the logs."""
    row = {
        columns.evaluation(name): float(mean)
        for name, mean in zip(statistics, table.mean(0), strict=True)
    }
    row[columns.EVAL_RETURN_STD] = float(table[:, statistics.index("return")].std())
    return row


def format_summary(summary: dict[str, dict[str, float]], env: Task) -> str:
    """The summary as a table of plain text, and what success means on the task."""
    columns = ("mean", "std", "min", "max")
    width = max(len(name) for name in summary)
    lines = [f"{'':{width}}" + "".join(f"{c:>11}" for c in columns) + f"{'95 % interval':>24}"]
    for name, values in summary.items():
        interval = f"[{readable(values['ci95_low'])}, {readable(values['ci95_high'])}]"
        numbers = "".join(f" {readable(values[c]):>10}" for c in columns)
        lines.append(f"{name:{width}}{numbers}{interval:>24}")
    return "\n".join(lines + success_line(env))


def success_line(env: Task) -> list[str]:
    """A line that tells what success means on the task; none if it has no success."""
    return [f"success: {env.success_criterion}"] if env.success_criterion else []
