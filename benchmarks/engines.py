"""Physics engines behind the same tasks: speed, compile time, agreement, success of a policy.

  python benchmarks/engines.py [--tasks a,b] [--worlds 256] [--repeats 5] [--json out.json]

For each task and engine:
* sim: control steps per second under random actions, measured in turn (medians);
* compile: seconds to compile 50 control steps of all worlds;
* deviation: largest difference from the engine "c" in `qpos` after 1 and 50 control steps with
  small actions, over the worlds (median and maximum);
* success: share of 100 episodes in which the policy in checkpoints/ succeeds.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import cli, evaluation
from jaxrl.config import resolve
from jaxrl.runs import hardware, load_policy, write_json

TASKS = "ballbot,franka_reach,kuka_pick_place,aloha_insertion"
FLAGS = {"tasks": True, "engines": True, "worlds": True, "repeats": True, "json": True}
STEPS, SMALL = 50, 0.05


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    cli.start_jax()
    names = flags.get("engines", "mjx,c").split(",")
    report: dict[str, Any] = {"hardware": hardware(), "results": []}
    for name in flags.get("tasks", TASKS).split(","):
        task = resolve({"env": {"name": name}}, settings, platform="none").env
        tasks = {engine: dataclasses.replace(task, engine=engine) for engine in names}
        rows = measure(tasks, int(flags.get("worlds", 256)), int(flags.get("repeats", 5)))
        for engine, row in rows.items():
            row = {"task": name, "engine": engine, **row, **success(name, tasks[engine])}
            report["results"].append(row)
            print(json.dumps(row), flush=True)
    if flags.get("json"):
        write_json(Path(flags["json"]), report)
    return 0


def measure(tasks: dict[str, Any], worlds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Speed, compile time and agreement of one task with each engine."""
    keys = jax.random.split(jax.random.key(0), worlds)
    starts, programs, rows = {}, {}, {}
    for engine, task in tasks.items():
        starts[engine] = jax.block_until_ready(jax.jit(jax.vmap(task.reset))(keys))
        begun = time.perf_counter()
        programs[engine] = jax.jit(rollout(task, worlds)).lower(starts[engine], 1.0).compile()
        rows[engine] = {"compile_seconds": time.perf_counter() - begun}
    seconds: dict[str, list[float]] = {engine: [] for engine in tasks}
    for _ in range(repeats + 1):
        for engine, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(starts[engine], 1.0))
            seconds[engine].append(time.perf_counter() - begun)
    paths = {
        engine: np.asarray(program(starts[engine], SMALL)) for engine, program in programs.items()
    }
    for engine, row in rows.items():
        row["steps_per_second"] = STEPS * worlds / statistics.median(seconds[engine][1:])
        difference = np.abs(paths[engine] - paths["c"]).max(2)
        for step in (1, STEPS):
            row[f"deviation_after_{step}"] = float(np.median(difference[step - 1]))
            row[f"largest_deviation_after_{step}"] = float(difference[step - 1].max())
    return rows


def rollout(task: Any, worlds: int) -> Any:
    """(starts, scale of the actions) -> [T, N, nq] positions of worlds under random actions."""
    shape = (STEPS, worlds, *task.action_spec.shape)

    def run(state, scale):
        actions = scale * jax.random.uniform(jax.random.key(1), shape, minval=-1.0)

        def step(state, action):
            state = jax.vmap(task.step)(state, action)
            return state, state.physics.qpos

        return jax.lax.scan(step, state, actions)[1]

    return run


def success(name: str, task: Any) -> dict[str, float]:
    """The share of successful episodes of the policy that the project ships."""
    trained = load_policy(f"checkpoints/{name}")
    settings = trained.config.eval_env
    task = dataclasses.replace(settings, engine=task.engine)
    statistics_, table = evaluation.play(
        task, trained.actor, trained.params, 100, jax.random.key(0)
    )
    return {"success": float(table[:, statistics_.index("success")].mean())}


if __name__ == "__main__":
    cli.run(main)
