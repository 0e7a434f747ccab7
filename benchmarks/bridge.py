"""The cost of Gymnasium environments besides their own simulation: microseconds per world step.

    python benchmarks/bridge.py --json bridge.json

For each environment and number of worlds, three measurements alternate. "bare": the environment
alone in a loop, in as many parallel loops as there are processes. "worlds": the worlds as training
steps them, with precomputed actions. "whole": all of the collection of samples, including the
policy. All actions are random. "outside" is the share of the whole that the bare loops do not need.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl import cli
from jaxrl.bridge.worker import make
from jaxrl.config import resolve
from jaxrl.population import Population
from jaxrl.runs import hardware


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--envs", nargs="+", default=["Pendulum-v1", "envs_legacy:KukaPickPlace-v0"])
    add("--worlds", type=int, nargs="+", default=[1, 8, 64])
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="length of a measurement (s)")
    add(
        "--processes",
        type=int,
        nargs="+",
        default=[],
        help="numbers of processes to measure in addition to the default",
    )
    add("--json", type=Path, help="file for the results")
    return parser.parse_args(argv)


def bare(name: str, seconds: float) -> float:
    """Steps per second of the environment alone, under random actions."""
    if name not in _environments:
        env = make(name, {})
        env.action_space.seed(0)
        env.reset(seed=0)
        _environments[name] = env, [env.action_space.sample() for _ in range(100)]
    (env, actions), steps, started = _environments[name], 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        _, _, terminated, truncated, _ = env.step(actions[steps % 100])
        if terminated or truncated:
            env.reset()
        steps += 1
    return steps / (time.perf_counter() - started)


_environments: dict[str, tuple[Any, list]] = {}  # this process's environments, and their actions


class Worlds:
    """Worlds as training steps them.

    Args:
      name: name of the environment.
      count: number of worlds.
      processes: value of the setting `env.processes`.
    """

    def __init__(self, name: str, count: int, processes: int | None):
        config = resolve(
            {"env": {"gym": name, "processes": processes}, "num_envs": count}, platform="cpu"
        )
        population = Population(config)
        self.vector = population.algo.worlds
        self.state = population.init()
        self._act = population.runtime.training(population)._act
        self._none = np.zeros(self.vector.num_envs, bool)
        self.obs = self.vector.start(0)
        self.t = 0
        shape = np.asarray(self._action()).shape
        self.random = itertools.cycle(np.random.default_rng(0).uniform(-1, 1, (100, *shape)))

    def _action(self) -> Any:
        self.t += 1
        acted = self._act(self.state, self.obs, (), self._none, self.state.key, self.t)
        return acted[0]

    def step(self) -> int:
        """Steps all worlds once with precomputed actions; returns their number."""
        self.vector.send(next(self.random))
        self.vector.receive()
        return self.vector.num_envs

    def collect(self) -> int:
        """Steps all worlds once with the untrained policy; returns their number."""
        self.vector.send(np.asarray(self._action()))
        self.obs, _ = self.vector.receive()
        return self.vector.num_envs


def microseconds(step: Any, seconds: float) -> float:
    """Microseconds for one step of one world."""
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        steps += step()
    return 1e6 * (time.perf_counter() - started) / steps


def main(argv: list[str]) -> int:
    args, rows = arguments(argv), []
    for name in args.envs:  # reports errors before any measurement
        resolve({"env": {"gym": name}}, platform="cpu")
    print(
        f"{'environment':32}{'worlds':>7}{'processes':>10}{'bare':>8}{'worlds':>8}{'whole':>8}"
        f"{'outside':>9}"
    )
    for name, count, processes in itertools.product(
        args.envs, args.worlds, [None, *args.processes]
    ):
        worlds = Worlds(name, count, processes)
        at_once = worlds.vector.processes
        measured: dict[str, list[float]] = {"bare": [], "worlds": [], "whole": []}
        with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
            for _ in range(args.rounds + 1):
                rates = pool.map(bare, [name] * at_once, [args.seconds] * at_once)
                measured["bare"].append(1e6 / sum(rates))
                measured["worlds"].append(microseconds(worlds.step, args.seconds))
                measured["whole"].append(microseconds(worlds.collect, args.seconds))
        worlds.vector.close()
        # The first round warms up.
        row = {part: statistics.median(values[1:]) for part, values in measured.items()}
        outside = 1 - row["bare"] / row["whole"]
        layout = "0" if worlds.vector.here else str(worlds.vector.processes)
        rows.append(
            {"env": name, "worlds": count, "processes": layout, **row, "share_outside": outside}
        )
        print(
            f"{name:32}{count:7}{layout:>10}{row['bare']:8.1f}{row['worlds']:8.1f}"
            f"{row['whole']:8.1f}{outside:9.2f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    cli.run(main)
