"""What the algorithms learn with their default settings, on tasks without presets.

  python benchmarks/defaults.py --out runs --json defaults.json [--tasks a,b] [--algos ppo,sac]

Every run is `python -m jaxrl.train` with a task, an algorithm, a seed and no training settings;
all other settings concern evaluation and logging. For every seed: control steps until an
evaluation of 20 episodes first reaches the task's goal, and the result of the best model in 100
fresh episodes. Seconds include compilation and all evaluations. Runs that already exist are read
and not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import swingup
from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import write_text
from jaxrl.reporting.pages import SECONDS, STEPS
from jaxrl.reporting.reading import read_rows

# Control steps between evaluations: the resolution of "steps to the goal".
EVERY = {"ppo": 100_000, "sac": 5_000, "td3": 5_000}
FLAGS = {"tasks": True, "algos": True, "seeds": True, "out": True, "json": True}


@dataclass(frozen=True)
class Goal:
    """The goal at which a task counts as learned.

    Attributes:
      least: smallest mean of `measure` over the episodes.
      source: source of this number.
      measure: "return" or "success".
      settings: settings of the task, as arguments.
    """

    least: float
    source: str
    measure: str = "return"
    settings: tuple[str, ...] = ()


SOLVED = "Gymnasium's reward threshold of InvertedDoublePendulum-v5"
PUBLISHED = "Sample Factory's published policy mujoco_reacher_1111: -6.10"
GOALS = {
    swingup.NAME: Goal(0.95, "the task's own criterion: nothing is published", "success"),
    "brax:inverted_double_pendulum": Goal(9100, SOLVED),
    "brax:reacher": Goal(-6.2, PUBLISHED, settings=("--env.episode_length=50",)),
    "gym:InvertedDoublePendulum-v5": Goal(9100, SOLVED),
    "gym:Reacher-v5": Goal(-6.2, PUBLISHED),
    "gym:Pendulum-v1": Goal(-200, "the zoo of Stable-Baselines3: -157 (SAC) to -172 (PPO)"),
}
COLUMNS = {
    "return": ("return", "eval/mean_reward"),
    "success": ("success", "eval/success_rate"),
}


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if settings:
        raise UserError(
            f"--{next(iter(settings))}: remove it; this benchmark measures the default settings"
        )
    out, results = Path(flags.get("out", "runs")), []
    for task in str(flags.get("tasks", ",".join(GOALS))).split(","):
        if task not in GOALS:
            raise UserError(f"--tasks: no goal for {task!r} (known: {', '.join(GOALS)})")
        for algo in str(flags.get("algos", "ppo,sac,td3")).split(","):
            runs = train(out, task, algo, cli.parse_int(flags, "seeds", 3))
            results.append({"task": task, "algo": algo} | measure(runs, GOALS[task]))
            print(json.dumps(results[-1]), flush=True)
    show(results)
    if flags.get("json"):
        from jaxrl.runs import hardware, write_json

        goals = {task: asdict(goal) for task, goal in GOALS.items()}
        write_json(
            Path(flags["json"]), {"hardware": hardware(), "goals": goals, "results": results}
        )
    return 0


def train(out: Path, task: str, algo: str, seeds: int) -> list[Path]:
    """The folders of finished runs, one for each seed."""
    runs = [out / f"{task.replace(':', '-')}-{algo}-{seed}" for seed in range(seeds)]
    for seed, run in enumerate(runs):
        command(run, task, algo, seed)
    return runs


def command(run: Path, task: str, algo: str, seed: int) -> None:
    """Runs the training command that a user would type, unless the run is already finished."""
    if (run / "seconds").exists():
        return
    program = [swingup.__file__] if task == swingup.NAME else ["-m", "jaxrl.train"]
    measured = [f"--eval.every={EVERY[algo]}", "--eval.episodes=20", "--log.tensorboard=false"]
    started = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, *program, f"--env.name={task}", f"--algo={algo}"),
            *(f"--seed={seed}", *GOALS[task].settings, *measured, f"--out={run}"),
        ],
        check=True,
    )
    write_text(run / "seconds", f"{time.monotonic() - started:.1f}\n")


def measure(runs: list[Path], goal: Goal) -> dict[str, Any]:
    """Results of finished runs, with one value for each seed."""
    name, column = COLUMNS[goal.measure]
    tables = [read_rows(run / "progress.csv") for run in runs]
    finals = [json.loads((run / "eval" / "final.json").read_text())["summary"] for run in runs]

    def reached(rows: list[dict[str, float]]) -> float | None:
        steps = (row[STEPS] for row in rows if row.get(column, goal.least - 1) >= goal.least)
        return next(steps, None)

    return {
        "steps": tables[0][-1][STEPS],
        "steps_to_goal": [reached(rows) for rows in tables],
        "final": [final[name]["mean"] for final in finals],
        "final_return": [final["return"]["mean"] for final in finals],
        "training_seconds": [rows[-1][SECONDS] for rows in tables],
        "seconds": [float((run / "seconds").read_text()) for run in runs],
    }


def show(results: list[dict[str, Any]]) -> None:
    """Prints the results as a Markdown table."""
    print("\n| task | goal | algorithm | steps | steps to the goal | final | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results:
        goal = GOALS[row["task"]]
        share = goal.measure == "success"
        steps = ", ".join("-" if s is None else f"{s / 1000:,.0f} k" for s in row["steps_to_goal"])
        final = ", ".join(f"{value:.0%}" if share else f"{value:,.4g}" for value in row["final"])
        seconds = ", ".join(f"{value:.0f}" for value in row["seconds"])
        least = f"{goal.least:.0%} success" if share else f"{goal.least:g}"
        print(
            f"| {row['task']} | {least} | {row['algo'].upper()} | {row['steps'] / 1000:,.0f} k | "
            f"{steps} | {final} | {seconds} |"
        )


if __name__ == "__main__":
    cli.run(main)
