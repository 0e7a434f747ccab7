"""Compiled evaluation: whole episodes, and what they say."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import platform
from jaxrl.envs import Env, State, Vector
from jaxrl.envs.vector import MEMBERS_AXIS
from jaxrl.errors import UserError
from jaxrl.logs import readable

MOST_WORLDS = 4096  # episodes that are played side by side
BOOTSTRAPPED = 10_000  # episodes from which on the interval of a mean is the normal one
TELL_EVERY = 10.0  # seconds between lines on how far an evaluation is

# (parameters, worlds with leaves [N, ...], key) -> actions [N, A]
Actor = Callable[[Any, State, jax.Array], jax.Array]


def policy_actor(policy: Callable[[Any, Any], jax.Array]) -> Actor:
    """An actor from an algorithm's deterministic policy."""
    return lambda params, worlds, key: policy(params, worlds.obs)


class Evaluator:
    """Plays `episodes` episodes, one in each world, as one compiled program.

    Args:
      env: the task; its own worlds, never those of training.
      actor: what acts.
      episodes: number of episodes E.
      members: judge so many policies at once; parameters, keys and results begin with an
        axis of this size.
    """

    def __init__(self, env: Env, actor: Actor, episodes: int, *, members: int | None = None):
        self.vector = Vector(env, episodes, members=members or 1)
        self.actor = actor
        self.episodes = episodes
        self._members = () if members is None else (members,)
        play = self._episodes
        if members is not None:
            play = jax.vmap(play, axis_name=MEMBERS_AXIS)
        self._play = jax.jit(play)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns that a call returns."""
        return self.vector.statistics

    def compile(self, params: Any) -> None:
        """Compiles ahead of the first call; safe in a thread.

        Args:
          params: shapes of the parameters.
        """
        keys = jnp.broadcast_to(jax.random.key(0), self._members)
        self._play = self._play.lower(params, keys).compile()

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        """[E, 2 + M] statistics of the episodes."""
        return np.asarray(self._play(params, key))

    def _episodes(self, params: Any, key: jax.Array) -> jax.Array:
        key_start, key_act = jax.random.split(key)
        envs = self.vector.init(key_start, stagger=False)
        table = jnp.zeros((self.episodes, len(self.statistics)))

        def act(carry):
            t, envs, ended, table = carry
            action = self.actor(params, envs.worlds, jax.random.fold_in(key_act, t))
            envs, step = self.vector.step(envs, action)
            first = step.ended & ~ended
            table = jnp.where(first[:, None], step.episode, table)
            return t + 1, envs, ended | step.ended, table

        start = (jnp.zeros((), jnp.int32), envs, jnp.zeros(self.episodes, bool), table)
        return jax.lax.while_loop(lambda carry: ~carry[2].all(), act, start)[3]


def make_evaluator(
    env: Env, actor: Actor, episodes: int, *, members: int | None = None
) -> Evaluator:
    """The evaluator that fits the task; arguments as `Evaluator`."""
    if hasattr(env, "make_evaluator"):
        return env.make_evaluator(actor, episodes)
    need, free = evaluation_bytes(env, episodes) * (members or 1), platform.free_bytes()
    if free is not None and need > free:
        raise UserError(
            f"episodes: {episodes:,} worlds side by side take at least {need / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free on the device; lower the number of episodes"
        )
    return Evaluator(env, actor, episodes, members=members)


def evaluation_bytes(env: Env, episodes: int) -> int:
    """Memory of an evaluation: its worlds before and after a step, and a start for each."""
    world = jax.eval_shape(env.reset, jax.random.key(0))
    return 3 * episodes * platform.tree_bytes(world)


def play(
    env: Env, actor: Actor, params: Any, episodes: int, key: jax.Array, *, most: int = MOST_WORLDS
) -> tuple[tuple[str, ...], np.ndarray]:
    """Plays episodes, as many side by side as `most` and the device's memory allow.

    Args:
      env, actor: as for `Evaluator`.
      params: what the actor takes.
      episodes: number of episodes E.
      key: PRNG key.
      most: of worlds.

    Returns:
      names of the S statistics, and their values [E, S].

    Raises:
      UserError: there is no room for so many episodes' statistics.
    """
    batch = min(episodes, most, _worlds_that_fit(env))
    evaluator = make_evaluator(env, actor, batch)
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


def _worlds_that_fit(env: Env) -> int:
    """Worlds whose states take at most a quarter of the memory that is free."""
    free = platform.free_bytes()
    if free is None or hasattr(env, "make_evaluator"):
        return MOST_WORLDS
    world = jax.eval_shape(lambda key: Vector(env, 1).init(key), jax.random.key(0))
    return max(int(free / 4 / platform.tree_bytes(world)), 1)


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
    """Means under the names that go to the logs (`eval/...`)."""
    names = {"return": "mean_reward", "length": "mean_ep_length", "success": "success_rate"}
    row = {
        f"eval/{names.get(name, name)}": float(mean)
        for name, mean in zip(statistics, table.mean(0), strict=True)
    }
    row["eval/std_reward"] = float(table[:, statistics.index("return")].std())
    return row


def format_summary(summary: dict[str, dict[str, float]], env: Any) -> str:
    """The summary as a table of plain text, and what success means on the task."""
    columns = ("mean", "std", "min", "max")
    width = max(len(name) for name in summary)
    lines = [f"{'':{width}}" + "".join(f"{c:>11}" for c in columns) + f"{'95 % interval':>24}"]
    for name, values in summary.items():
        interval = f"[{readable(values['ci95_low'])}, {readable(values['ci95_high'])}]"
        numbers = "".join(f" {readable(values[c]):>10}" for c in columns)
        lines.append(f"{name:{width}}{numbers}{interval:>24}")
    return "\n".join(lines + success_line(env))


def success_line(env: Any) -> list[str]:
    """A line that tells what success means on the task; none if it has no success."""
    criterion = getattr(env, "success_criterion", None)
    return [f"success: {criterion}"] if criterion else []
