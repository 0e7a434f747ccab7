"""The cost of a new start for every episode.

  python benchmarks/starts.py [--tasks ballbot,kuka_pick_place] [--worlds 256] [--json out.json]

Alternates rollouts of 256 control steps under random actions: with fresh starts, and with starts
that are reused, so that no new ones are computed. Reports medians.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from jaxrl import cli

STEPS, REPEATS = 256, 7


def main(argv: list[str]) -> int:
    _, flags, _ = cli.parse(argv, {"tasks": True, "worlds": True, "json": True})
    cli.start_jax()
    from jaxrl.runs import hardware, write_json

    names = flags.get("tasks", "ballbot,kuka_pick_place").split(",")
    rows = [measure(name, cli.parse_int(flags, "worlds", 256)) for name in names]
    print(json.dumps(rows, indent=1))
    if flags.get("json"):
        write_json(Path(flags["json"]), {"hardware": hardware(), "results": rows})
    return 0


def measure(name: str, worlds: int) -> dict[str, Any]:
    """Seconds of a rollout with and without fresh starts, and their ratio."""
    import jax
    import jax.numpy as jnp

    from jaxrl.config import make_env
    from jaxrl.envs import Vector

    class Reusing(Vector):
        def _supply(self, state, wanted):
            return state.starts.replace(used=jnp.zeros_like(state.starts.used))

    env = make_env(name)

    def rollout(vector):
        def act(state, key):
            shape = (worlds, *env.action_spec.shape)
            action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
            state, step = vector.step(state, action)
            return state, (step.terminated | step.truncated).sum()

        return jax.jit(lambda state, key: jax.lax.scan(act, state, jax.random.split(key, STEPS)))

    runs = {"fresh": rollout(Vector(env, worlds)), "reused": rollout(Reusing(env, worlds))}
    start = jax.jit(Vector(env, worlds).init)(jax.random.key(0))
    states = {kind: run(start, jax.random.key(1))[0] for kind, run in runs.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    ends = 0
    for i in range(REPEATS):
        for kind, run in runs.items():
            started = time.perf_counter()
            states[kind], ended = jax.block_until_ready(run(states[kind], jax.random.key(2 + i)))
            seconds[kind].append(time.perf_counter() - started)
            ends += int(ended.sum()) if kind == "fresh" else 0
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "task": name,
        "worlds": worlds,
        "seconds": medians,
        "fresh_over_reused": medians["fresh"] / medians["reused"],
        "episodes_per_world_step": ends / (REPEATS * STEPS * worlds),
    }


if __name__ == "__main__":
    cli.run(main)
