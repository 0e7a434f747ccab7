"""The measurements that need a GPU: speed, compile time and memory by task, engine and number of
worlds, and the time in which the four robots learn.

  python benchmarks/gpu_suite.py --json gpu.json --markdown gpu.md [--seconds 500]

* sim: control steps per second under random actions.
* train: those of training with the task's preset, and the seconds from the start of Python to the
  first update.
* learning: the training command with the task's preset, until evaluations show success, with the
  first of the engines, whose programs are in the compile cache by then.

One engine is measured after the other. Programs are compiled in several processes at once, since
compilation needs the CPU; a lock lets only one of them measure on the GPU at a time. The engine
"c" needs the CPU itself, so its processes run one at a time, and only with the first of the
numbers of worlds, on which its speed hardly depends. What no time is left for is missing, and its
row says so.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import process_age

from jaxrl import cli
from jaxrl.files import write_text

# Share of successful episodes that ends training: what a task's page calls learned.
BARS = {"ballbot": 0.95, "franka_reach": 0.95, "kuka_pick_place": 0.95, "aloha_insertion": 0.8}
CURVE = {
    "steps": "time/total_timesteps",
    "seconds": "time/time_elapsed",
    "steps_per_second": "time/fps",
    "success": "eval/success_rate",
}
FLAGS = dict.fromkeys(
    ("tasks", "engines", "worlds", "seconds", "json", "markdown", "runs", "worker"), True
)
LOCK = "JAXRL_BENCHMARK_LOCK"


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if "worker" in flags:
        print(json.dumps(WORKERS[flags["worker"]](settings)))
        return 0
    tasks = flags.get("tasks", ",".join(BARS)).split(",")
    engines = flags.get("engines", "warp,mjx,c").split(",")
    worlds = flags.get("worlds", "1024,4096,8192").split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[LOCK] = str(Path(folder) / "lock")
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the GPU
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "cache")
        suite = Suite(flags, folder)
        for engine in engines:
            counts, at_once = (worlds[:1], 1) if engine == "c" else (worlds, os.cpu_count())
            sizes = [("train", None), *(("sim", count) for count in counts)]
            jobs = [(what, task, engine, count) for what, count in sizes for task in tasks]
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda job: suite.measure(*job), jobs))
            if engine == engines[0]:
                for task in tasks:
                    suite.learn(task, engine)
    return 0


class Suite:
    """Runs the workers, and writes the report after each of them."""

    def __init__(self, flags: dict[str, str], folder: str):
        self.flags, self.folder = flags, Path(flags.get("runs", folder))
        self.deadline = time.monotonic() + float(flags.get("seconds", 500))
        self.report: dict[str, Any] = {"hardware": None, "speed": [], "learning": []}
        self._writing = threading.Lock()

    def measure(self, what: str, task: str, engine: str, count: str | None) -> None:
        """Adds the row of a worker, which has a process of its own."""
        row = {"task": task, "engine": engine, "what": what, "num_envs": count}
        command = [sys.executable, __file__, "--worker", what]
        command += [f"--env.name={task}", f"--env.engine={engine}"]
        done, row["error"] = self._run(command + ([f"--num_envs={count}"] if count else []))
        if row["error"] is None:
            row |= json.loads(done.splitlines()[-1])
        self._add("speed", row)

    def learn(self, task: str, engine: str) -> None:
        """Trains a task with its preset until it is learned."""
        run, bar = self.folder / task, BARS[task]
        command = [sys.executable, "-m", "jaxrl.train", "--env", task, "--out", str(run)]
        command += [f"--env.engine={engine}"]
        command += ["--eval.every=1000000", f"--eval.stop_at={bar}", "--eval.final_episodes=0"]
        begun = time.monotonic()
        _, error = self._run([*command, "--log.tensorboard=false"])
        seconds = time.monotonic() - begun
        row = {"task": task, "engine": engine, "bar": bar, "command_seconds": seconds}
        with contextlib.suppress(OSError):
            rows = list(csv.DictReader((run / "progress.csv").open()))
            row["curve"] = [
                {key: float(r[name]) for key, name in CURVE.items() if r.get(name)} for r in rows
            ]
        self._add("learning", row | {"error": error})

    def _run(self, command: list[str]) -> tuple[str, str | None]:
        """Standard output of a command, and its error or None."""
        left = max(self.deadline - time.monotonic(), 0.1)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            return "", "no time was left"
        failed = (done.stderr.strip().splitlines() or ["?"])[-1][:500]
        return done.stdout.strip(), failed if done.returncode else None

    def _add(self, part: str, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        with self._writing:
            self.report["hardware"] = row.pop("hardware", None) or self.report["hardware"]
            self.report[part].append(row)
            if "json" in self.flags:
                write_text(Path(self.flags["json"]), json.dumps(self.report, indent=1))
            if "markdown" in self.flags:
                write_text(Path(self.flags["markdown"]), markdown(self.report))


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [
        str(report["hardware"]),
        "",
        "| task | engine | | worlds | control steps/s | seconds to compile | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["speed"]:
        speed = row["error"] or f"{row['steps_per_second']:,.0f}"
        cells = (row["task"], row["engine"], row["what"], row["num_envs"], speed)
        numbers = (row.get("compile_seconds"), row.get("peak_memory_mb"))
        shown = ["" if x is None else f"{x:,.0f}" for x in numbers]
        lines.append("| " + " | ".join([*map(str, cells), *shown]) + " |")
    lines += ["", "| task | engine | success | steps | seconds | whole command |"]
    lines += ["|" + " --- |" * 6]
    for row in report["learning"]:
        last = (row.get("curve") or [{"steps": 0, "seconds": 0}])[-1]
        success = row["error"] or last.get("success")
        seconds = f"{last['seconds']:.1f} | {row['command_seconds']:.1f}"
        cells = (row["task"], row["engine"], success, f"{last['steps']:,.0f}", seconds)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


# -- workers --------------------------------------------------------------------------------


def measure_train(settings: dict[str, Any]) -> dict[str, Any]:
    """Training with the task's preset; also compiles the evaluation, for `Suite.learn`."""
    started = time.time() - process_age()
    platform = cli.start_jax()
    import jax

    from jaxrl.config import resolve
    from jaxrl.runs import hardware
    from jaxrl.trainer import Trainer

    config = resolve(settings, platform=platform)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run")
        evaluator = trainer.population.evaluator(config)
        shapes = jax.eval_shape(lambda x: x, trainer.state.policy)
        compiling = threading.Thread(target=evaluator.compile, args=(shapes,))
        compiling.start()
        state, out = trainer.training.run(trainer.state, 1)
        jax.block_until_ready(out)
        first = time.time() - started
        compiling.join()

        def iteration() -> None:
            nonlocal state
            state, out = trainer.training.run(state, 1)
            jax.block_until_ready(out)

        seconds = _median_seconds(iteration)
        trainer.close()
    return {
        "num_envs": config.train.num_envs,
        "steps_per_second": trainer.algo.batch_size / seconds,
        "compile_seconds": first,
        "peak_memory_mb": _peak_memory_mb(),
        "hardware": hardware(),
    }


def measure_sim(settings: dict[str, Any]) -> dict[str, Any]:
    """Control steps of the task under random actions."""
    platform = cli.start_jax()
    import jax
    from engines import STEPS, rollout

    from jaxrl.config import resolve

    config = resolve(settings, platform=platform)
    count = config.train.num_envs
    keys = jax.random.split(jax.random.key(0), count)
    state = jax.block_until_ready(jax.jit(jax.vmap(config.env.reset))(keys))
    begun = time.perf_counter()
    program = jax.jit(rollout(config.env, count)).lower(state, 1.0).compile()
    jax.block_until_ready(program(state, 1.0))
    compiled = time.perf_counter() - begun
    seconds = _median_seconds(lambda: jax.block_until_ready(program(state, 1.0)))
    return {
        "num_envs": count,
        "steps_per_second": STEPS * count / seconds,
        "compile_seconds": compiled,
        "peak_memory_mb": _peak_memory_mb(),
    }


WORKERS = {"train": measure_train, "sim": measure_sim}


def _median_seconds(work: Callable[[], Any]) -> float:
    """Median of up to five runs within four seconds, while no other worker measures."""
    seconds: list[float] = []
    with _alone():
        end = time.perf_counter() + 4
        while len(seconds) < 5 and (not seconds or time.perf_counter() < end):
            begun = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds the lock of the GPU, if the main process gave one."""
    with open(os.environ.get(LOCK, os.devnull), "w") as file:
        if LOCK in os.environ:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _peak_memory_mb() -> float | None:
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peak and peak / 2**20


if __name__ == "__main__":
    cli.run(main)
