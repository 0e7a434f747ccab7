"""Training on one and on all cores: control steps per second by task and engine.

  python benchmarks/scaling.py [--tasks a,b] [--engines c,mjx] [--cores 1,2] [--json scaling.json]

Each number of cores has processes of its own, bound to so many cores; they take turns, and every
row is the median over the turns. With the engine "mjx" each core is a device that has its share of
the worlds; with "c" the simulator's threads use the cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxrl import cli

TASKS = "ballbot,franka_reach,kuka_pick_place,aloha_insertion"
FLAGS = dict.fromkeys(("tasks", "engines", "cores", "turns", "json", "worker"), True)


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if "worker" in flags:
        print(json.dumps(measure(settings)))
        return 0
    from jaxrl.runs import hardware, write_json

    cores = [int(n) for n in flags.get("cores", "1,2").split(",")]
    report: dict[str, Any] = {"hardware": hardware(), "results": []}
    for task in flags.get("tasks", TASKS).split(","):
        for engine in flags.get("engines", "c,mjx").split(","):
            rows: dict[int, list[dict[str, Any]]] = {count: [] for count in cores}
            for _ in range(int(flags.get("turns", 3))):
                for count, row in rows.items():
                    row.append(run(task, engine, count))
            speed = {
                count: statistics.median(x["steps_per_second"] for x in row)
                for count, row in rows.items()
            }
            devices = {count: row[0]["devices"] for count, row in rows.items()}
            result = {"task": task, "engine": engine, "steps_per_second": speed, "devices": devices}
            report["results"].append(result)
            print(json.dumps(result), flush=True)
    if "json" in flags:
        write_json(Path(flags["json"]), report)
    return 0


def run(task: str, engine: str, count: int) -> dict[str, Any]:
    """The row of a worker that is bound to `count` cores."""
    chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:count]))
    command = ["taskset", "-c", chosen, sys.executable, __file__, "--worker", "train"]
    command += [f"--env.name={task}", f"--env.engine={engine}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Training with the task's preset, for some seconds after compilation."""
    platform = cli.start_jax()
    import jax

    from jaxrl.config import resolve
    from jaxrl.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(resolve(settings, platform=platform), Path(folder) / "run")
        state, out = trainer.training.run(trainer.state, 1)
        jax.block_until_ready(out)
        steps, begun = 0, time.perf_counter()
        while (seconds := time.perf_counter() - begun) < 6:
            state, out = trainer.training.run(state, 1)
            jax.block_until_ready(out)
            steps += trainer.algo.batch_size
        trainer.close()
    return {"steps_per_second": steps / seconds, "devices": trainer.algo.devices}


if __name__ == "__main__":
    cli.run(main)
