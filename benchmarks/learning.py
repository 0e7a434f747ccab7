"""What each algorithm learns on each task with its preset, with three seeds at once.

  python benchmarks/learning.py --tasks pendulum,brax:inverted_pendulum,ballbot \
      --out runs --json learning.json

A population of seeds is one command, `python -m jaxrl.train --num_seeds 3`. For every seed:
control steps until an evaluation first reaches each threshold, and the return of the best
model over 100 fresh episodes. Seconds are those of the whole population, including compilation.
Runs that already exist are read and not run again. Other arguments are passed to every run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.options import flatten
from jaxrl.reporting.pages import SECONDS, STEPS
from jaxrl.reporting.reading import read_rows

THRESHOLDS = {"pendulum": (-200,), "brax:inverted_pendulum": (950,), "ballbot": (300, 375)}
# Control steps between evaluations: the resolution of "steps until".
EVERY = {"ppo": 8192, "sac": 1000, "td3": 1000}
FLAGS = {"tasks": True, "algos": True, "seeds": True, "out": True, "json": True}


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    out, results = Path(flags.get("out", "runs")), []
    seeds = cli.parse_int(flags, "seeds", 3)
    for task in str(flags.get("tasks", ",".join(THRESHOLDS))).split(","):
        for algo in str(flags.get("algos", "ppo,sac,td3")).split(","):
            run = out / f"{task.replace(':', '-')}-{algo}"
            if not run.exists():
                train(run, task, algo, seeds, settings)
            results.append({"task": task, "algo": algo} | measure(run, THRESHOLDS[task]))
            print(json.dumps(results[-1]), flush=True)
    show(results)
    if flags.get("json"):
        from jaxrl.runs import hardware, write_json

        write_json(Path(flags["json"]), {"hardware": hardware(), "results": results})
    return 0


def train(run: Path, task: str, algo: str, seeds: int, settings: dict[str, Any]) -> None:
    """Trains one population by the command that a user would type."""
    every = EVERY[algo] * (8 if task == "ballbot" and algo != "ppo" else 1)
    base = {
        "env.name": task,
        "algo": algo,
        "num_seeds": seeds,
        "out": run,
        "eval.every": every,
        "eval.episodes": 64,
        "chunk": 4,
        "log.tensorboard": False,
    }
    arguments = [f"--{key}={value}" for key, value in (base | flatten(settings)).items()]
    subprocess.run([sys.executable, "-m", "jaxrl.train", *arguments], check=True)


def measure(run: Path, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Results of a finished population, with one value for each seed."""
    members = sorted((run / "members").iterdir())
    tables = [read_rows(member / "progress.csv") for member in members]
    finals = [json.loads((m / "eval" / "final.json").read_text())["summary"] for m in members]

    def reached(rows: list[dict[str, float]], threshold: float) -> float | None:
        steps = (r[STEPS] for r in rows if r.get("eval/mean_reward", -1e9) >= threshold)
        return next(steps, None)

    return {
        "steps_to": {str(t): [reached(rows, t) for rows in tables] for t in thresholds},
        "final_return": [final["return"]["mean"] for final in finals],
        "final_success": [final.get("success", {}).get("mean") for final in finals],
        "timesteps": tables[0][-1][STEPS],
        "seconds": tables[0][-1][SECONDS],
    }


def show(results: list[dict[str, Any]]) -> None:
    """Prints the results as a Markdown table."""
    print("\n| task | algorithm | steps to | final return | steps | seconds for all seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in results:
        steps = "; ".join(
            f"{threshold}: " + ", ".join("-" if s is None else f"{s / 1000:,.0f} k" for s in seeds)
            for threshold, seeds in row["steps_to"].items()
        )
        final = ", ".join(f"{value:,.4g}" for value in row["final_return"])
        print(
            f"| {row['task']} | {row['algo'].upper()} | {steps} | {final} | "
            f"{row['timesteps']:,.0f} | {row['seconds']:,.0f} |"
        )


if __name__ == "__main__":
    cli.run(main)
