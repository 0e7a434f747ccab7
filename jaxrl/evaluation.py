"""Evaluation: plays full episodes, and summarises their statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxrl import platform
from jaxrl.envs import State, Task
from jaxrl.errors import UserError, tell
from jaxrl.logs import columns, readable
from jaxrl.policy import Policy

if TYPE_CHECKING:
    from jaxrl.config import RunConfig

BOOTSTRAPPED = 10_000  # with fewer episodes, the interval of a mean is bootstrapped
METRICS = {"success_rate": "success", "mean_reward": "return"}  # other names of statistics
PRINT_EVERY = 10.0  # seconds between progress lines


def _no_memory(count: int) -> Any:
    return ()


@dataclasses.dataclass(frozen=True)
class Actor:
    """Chooses the actions in an evaluation.

    Attributes:
      act: function (parameters, worlds with leaves [N, ...], memory [N, ...], key) -> actions
        [N, A], and the memory after them.
      memory: function (N) -> memory of N worlds before the first step.
    """

    act: Callable[[Any, State, Any, jax.Array], tuple[jax.Array, Any]]
    memory: Callable[[int], Any] = _no_memory

    @classmethod
    def of_policy(cls, policy: Policy) -> Actor:
        """Returns an actor with a policy's deterministic actions; parameters: a `PolicyState`."""
        return cls(
            lambda params, worlds, memory, key: policy(params, worlds.obs, memory), policy.memory
        )

    @classmethod
    def of_function(cls, act: Callable[[State, jax.Array], jax.Array]) -> Actor:
        """Returns an actor from a function (worlds, key) -> actions; no parameters, no memory."""
        return cls(lambda params, worlds, memory, key: (act(worlds, key), memory))


def play(
    env: Task,
    actor: Actor,
    params: Any,
    episodes: int,
    key: jax.Array,
    *,
    max_worlds: int | None = None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Plays episodes, in parallel as far as `max_worlds` and the device's memory allow.

    Args:
      env: the task.
      actor: the actor that chooses actions.
      params: the actor's parameters.
      episodes: number of episodes E.
      key: PRNG key.
      max_worlds: largest number of parallel worlds; None: as many as the memory allows.

    Returns:
      names of the S statistics, and their values [E, S].

    Raises:
      UserError: the memory cannot hold the statistics of all episodes.
    """
    runtime = env.runtime()
    batch = min(episodes, max_worlds or episodes, runtime.max_worlds())
    evaluator = runtime.evaluator(actor, batch)
    names = evaluator.statistics
    _check_memory(episodes, len(names))
    table = np.empty((episodes, len(names)), np.float32)
    start_time = printed_at = time.monotonic()
    for number, start in enumerate(range(0, episodes, batch)):
        rows = evaluator(params, jax.random.fold_in(key, number) if number else key)
        table[start : start + batch] = rows[: episodes - start]
        if time.monotonic() - printed_at > PRINT_EVERY and (done := start + batch) < episodes:
            printed_at = time.monotonic()
            minutes = (printed_at - start_time) * (episodes - done) / done / 60
            with contextlib.suppress(OSError, ValueError):  # stderr is closed
                tell(f"{done:,} of {episodes:,} episodes; {readable(minutes, 2)} minutes left")
    return names, table


def _check_memory(episodes: int, columns: int) -> None:
    free, need = platform.free_bytes(), 3 * 4 * episodes * columns  # the table, and copies of it
    if free is not None and need > free:
        raise UserError(
            f"--episodes: the statistics of {episodes:,} episodes take {need / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free; about {int(episodes * free / need):,} episodes fit"
        )


def summarize(
    statistics: tuple[str, ...], table: np.ndarray, *, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """Returns mean, std, min, max and 95 % interval of the mean for each statistic.

    The interval is a percentile bootstrap interval (Efron & Tibshirani 1993). From
    `BOOTSTRAPPED` episodes on it is the normal interval, to which the bootstrap converges.

    Args:
      statistics: names of the columns.
      table: [E, S] values.
      resamples: number of bootstrap resamples.
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


def statistic(config: RunConfig, metric: str) -> str:
    """The statistic that a metric is the mean of: "success" for "success_rate", "return" for
    "mean_reward", or the statistic of that name.

    Raises:
      UserError: the task's evaluations have no such statistic.
    """
    actor = Actor.of_function(lambda worlds, key: key)  # never acts
    known = config.eval_env.runtime().evaluator(actor, 1).statistics
    name = METRICS.get(metric, metric)
    if name not in known:
        names = [*(other for other, name in METRICS.items() if name in known), *known]
        raise UserError(
            f"the evaluations of {config.task} have no metric {metric!r} (they have: "
            f"{', '.join(names)})"
        )
    return name


def scalars(statistics: tuple[str, ...], table: np.ndarray) -> dict[str, float]:
    """Returns the means, and the std of the return, under their names in the logs."""
    row = {
        columns.evaluation(name): float(mean)
        for name, mean in zip(statistics, table.mean(0), strict=True)
    }
    row[columns.EVAL_RETURN_STD] = float(table[:, statistics.index("return")].std())
    return row


def failures(statistics: tuple[str, ...], table: np.ndarray, env: Task) -> float:
    """Returns the share of episodes that the task ended before their time limit, without success.

    Args:
      statistics: names of the columns.
      table: [E, S] values.
      env: the task.
    """
    failed = table[:, statistics.index("length")] < (env.episode_length or np.inf)
    if "success" in statistics:
        failed &= table[:, statistics.index("success")] < 0.5
    return float(failed.mean())


def format_summary(summary: dict[str, dict[str, float]], env: Task) -> str:
    """Returns the summary as a plain-text table, with the task's success criterion below."""
    columns = ("mean", "std", "min", "max")
    width = max(len(name) for name in summary)
    lines = [f"{'':{width}}" + "".join(f"{c:>11}" for c in columns) + f"{'95 % interval':>24}"]
    for name, values in summary.items():
        interval = f"[{readable(values['ci95_low'])}, {readable(values['ci95_high'])}]"
        numbers = "".join(f" {readable(values[c]):>10}" for c in columns)
        lines.append(f"{name:{width}}{numbers}{interval:>24}")
    return "\n".join(lines + success_line(env))


def success_line(env: Task) -> list[str]:
    """Returns a line with the task's success criterion; an empty list if there is none."""
    return [f"success: {env.success_criterion}"] if env.success_criterion else []
