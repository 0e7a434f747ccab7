"""The speed of each task, and whether its physics is stable under random actions.

  python benchmarks/tasks.py [--tasks a,b] [--json out.json] [--SETTING VALUE]

For each task, with the settings of its preset: control and physics steps per second under
random actions, control steps per second of training, contacts and constraints of its model,
seconds to compile these, and how often one of 256 worlds diverges in 1000 random steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import Pieces, alternate
from jaxrl import cli
from jaxrl.options import merge

TASKS = "pendulum,ballbot,franka_reach,kuka_pick_place,aloha_insertion"
FLAGS = {"tasks": True, "json": True, "repeats": True}
RANDOM_STEPS, RANDOM_WORLDS = 1000, 256


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    platform = cli.start_jax()
    from jaxrl.runs import hardware, write_json

    report: dict[str, Any] = {"hardware": hardware(), "results": []}
    for task in str(flags.get("tasks", TASKS)).split(","):
        layer = merge(settings, {"env": {"name": task}})
        report["results"].append(measure(layer, platform, int(flags.get("repeats", 3))))
        print(json.dumps(report["results"][-1], indent=1), flush=True)
    if flags.get("json"):
        write_json(Path(flags["json"]), report)
    return 0


def measure(settings: dict[str, Any], platform: str, repeats: int) -> dict[str, Any]:
    """The results of one task."""
    import jax

    from jaxrl.config import resolve
    from jaxrl.runs import make_algorithm

    config = resolve(settings, platform=platform)
    algo = make_algorithm(config)
    state = jax.jit(algo.init)(jax.random.key(0))
    functions, parts, compile_seconds = Pieces(algo).functions(), {}, {}
    for name in ("sim", "train"):
        started = time.perf_counter()
        parts[name] = jax.jit(functions[name]).lower(state).compile()
        compile_seconds[name] = time.perf_counter() - started
    run = {
        name: lambda part=part: jax.block_until_ready(part(state)) for name, part in parts.items()
    }
    for work in run.values():
        work()
    seconds = alternate(run, repeats)
    sim = algo.batch_size / seconds["sim"]
    return {
        "task": config.task,
        "num_envs": algo.num_envs,
        "control_dt": config.env.control_dt,
        "control_steps_per_second": sim,
        "physics_steps_per_second": sim * getattr(config.env, "substeps", 1),
        "training_steps_per_second": algo.batch_size / seconds["train"],
        "compile_seconds": compile_seconds,
        **getattr(getattr(config.env, "physics", None), "sizes", {}),
        "diverged_in_random_play": _diverged(config.env),
    }


def _diverged(env: Any) -> int:
    """How often one of RANDOM_WORLDS worlds became non-finite in RANDOM_STEPS random steps."""
    import jax

    from jaxrl.envs import Vector

    vector = Vector(env, RANDOM_WORLDS, training=True)
    shape = (RANDOM_WORLDS, env.action_spec.shape[0])

    @jax.jit
    def play(key):
        def step(envs, key):
            action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
            envs, step = vector.step(envs, action)
            return envs, step.nonfinite.sum()

        return jax.lax.scan(step, vector.init(key), jax.random.split(key, RANDOM_STEPS))[1].sum()

    return int(play(jax.random.key(0)))


if __name__ == "__main__":
    cli.run(main)
