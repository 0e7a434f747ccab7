"""What sight costs: the same task blind, with the code of its images, and with the images.

  python benchmarks/sight.py --json sight.json [--rows ballbot] [--worlds 256] [--repeats 3]

For each row (or those with --rows in their names): control steps per second of the simulation with
its cameras, and of training; the seconds that compiling takes without a cache; and for 4096 worlds
the least memory of training (from shapes), and what the compiled program asks for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
from throughput import measure

from jaxrl import cli, planning
from jaxrl.config import read_yaml, resolve
from jaxrl.options import merge
from jaxrl.runs import hardware, write_json

MANY = 4096
PIXELS = {"env": {"encoder": None}, "ppo": {"network": {"image_channels": [8, 16, 32]}}}
ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "ballbot, blind": ("ballbot_terrain.yaml", {}),
    "ballbot, code of depth images, 5 Hz": ("ballbot_terrain_depth.yaml", {}),
    "ballbot, code of depth images, 25 Hz": (
        "ballbot_terrain_depth.yaml",
        {"env": {"camera_rate": 25.0}},
    ),
    "ballbot, depth images through a CNN, 5 Hz": ("ballbot_terrain_depth.yaml", PIXELS),
    "reach, numbers": (None, {"env": {"name": "franka_reach"}}),
    "reach, pictures, 10 Hz": ("franka_reach_pixels.yaml", {}),
    "insertion, numbers": ("aloha_insertion.yaml", {}),
    "insertion, pictures, 10 Hz": ("aloha_insertion_pixels.yaml", {}),
}
FLAGS = {"rows": True, "worlds": True, "repeats": True, "json": True}


def main(argv: list[str]) -> int:
    _, flags, _ = cli.parse(argv, FLAGS)
    platform = cli.start_jax()
    jax.config.update("jax_enable_compilation_cache", False)
    count, repeats = int(flags.get("worlds", 256)), int(flags.get("repeats", 3))
    report: dict[str, Any] = {"hardware": hardware(), "worlds": count, "results": []}
    for name, (file, changed) in ROWS.items():
        if flags.get("rows", "") not in name:
            continue
        settings = merge(read_yaml(file) if file else {}, changed)
        timed = measure(merge(settings, {"num_envs": count}), platform, repeats)
        plan = planning.plan(resolve(merge(settings, {"num_envs": MANY}), platform=platform))
        row = {
            "row": name,
            "sim_steps_per_second": timed["sim_steps_per_second"],
            "train_steps_per_second": timed["train_steps_per_second"],
            "compile_seconds": plan["compile_seconds"],
            f"bytes_{MANY}_worlds": sum(plan["bytes"].values()),
            f"program_bytes_{MANY}_worlds": plan["program_bytes"],
        }
        print(json.dumps(row), flush=True)
        report["results"].append(row)
    if flags.get("json"):
        write_json(Path(flags["json"]), report)
    return 0


if __name__ == "__main__":
    cli.run(main)
