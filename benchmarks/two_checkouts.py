"""Compares two versions of jaxrl: speed, and seconds to the first update.

  python benchmarks/two_checkouts.py BEFORE AFTER ROUNDS --SETTING VALUE ...

BEFORE and AFTER are folders of two checkouts, which train in turns for ROUNDS rounds. In a round
each of them trains twice with the same settings: with an empty compile cache ("cold"), then with
the cache that the cold run has filled ("warm"). Printed for each checkout, as medians:
* cold, warm: seconds from the start of Python to the first row in progress.csv;
* compile: the difference between the two;
* speed: environment steps per second of the later rows, from the warm run.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    checkouts = dict(zip(("before", "after"), arguments[:2], strict=True))
    rounds, settings = int(arguments[2]), arguments[3:]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            measured[name].append(measure(Path(checkout).resolve(), settings))
            print(name, {k: round(v, 2) for k, v in measured[name][-1].items()}, flush=True)
    for key in measured["before"][0]:
        before, after = (
            statistics.median(m[key] for m in measured[name]) for name in ("before", "after")
        )
        print(f"{key}: before {before:.6g}, after {after:.6g}, ratio {after / before:.3f}")


def measure(checkout: Path, settings: list[str]) -> dict[str, float]:
    """Measures one cold and one warm training of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        cold, _ = train(checkout, settings, Path(folder), "cold")
        warm, speed = train(checkout, settings, Path(folder), "warm")
    return {"cold": cold, "warm": warm, "compile": cold - warm, "speed": speed}


def train(checkout: Path, settings: list[str], folder: Path, name: str) -> tuple[float, float]:
    """Seconds to the first row of progress.csv, and environment steps per second after it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "jaxrl.train", *settings, "--out", str(folder / name)]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        while len(rows(folder / name)) == 0 and process.poll() is None:
            time.sleep(0.02)
        first = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} in {checkout} failed")
    speeds = [float(row["time/fps"]) for row in rows(folder / name)[1:]]
    if not speeds:
        raise SystemExit("the log has one row only; raise --total_timesteps")
    return first, statistics.median(speeds)


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of the run's progress.csv; empty while there is no file."""
    path = run / "progress.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


if __name__ == "__main__":
    main(sys.argv[1:])
