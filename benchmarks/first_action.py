"""Seconds from `import jaxrl` to the first action of a loaded policy, each in a fresh process.

python benchmarks/first_action.py [RUN_OR_CHECKPOINT ...]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import time
started = time.perf_counter()
import sys, numpy as np, jaxrl
policy = jaxrl.load(sys.argv[1])
policy(np.zeros(policy.observation_spec.shape, np.float32))
print(time.perf_counter() - started)
"""
REPEATS = 5


def main(policies: list[str]) -> None:
    for policy in policies or ["checkpoints/ballbot", "checkpoints/kuka_pick_place"]:
        command = [sys.executable, "-c", PROGRAM, policy]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        runs = [
            subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": path},
            )
            for _ in range(REPEATS)
        ]
        seconds = [float(run.stdout) for run in runs]
        bounds = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{policy}: {statistics.median(seconds):.2f} s ({bounds})")


if __name__ == "__main__":
    main(sys.argv[1:])
