"""What Gymnasium environments cost beside their own simulation: microseconds a step of one world.

    python benchmarks/bridge.py --json bridge.json

For each environment and number of worlds, in turns: the bare environment in a loop of its own, the
worlds as training steps them with actions made beforehand, and the whole of collecting, policy
included. What a simulator needs at least is its bare step over the processes that work at once;
the share outside it is the rest of the whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.bridge.gym_in import HostState
from jaxrl.bridge.worker import make
from jaxrl.config import resolve
from jaxrl.runs import hardware, make_algorithm


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--envs", nargs="+", default=["Pendulum-v1", "envs_legacy:KukaPickPlace-v0"])
    add("--worlds", type=int, nargs="+", default=[1, 8, 64])
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="of one measurement")
    add("--processes", type=int, nargs="+", default=[], help="try these too, beside the default")
    add("--json", type=Path, help="write the results here")
    return parser.parse_args()


class Bare:
    """The environment alone, under random actions."""

    def __init__(self, name: str):
        self.env = make(name, {})
        self.env.action_space.seed(0)
        self.actions = itertools.cycle([self.env.action_space.sample() for _ in range(100)])
        self.env.reset(seed=0)

    def __call__(self) -> int:
        _, _, terminated, truncated, _ = self.env.step(next(self.actions))
        if terminated or truncated:
            self.env.reset()
        return 1


class Worlds:
    """Worlds as training steps them.

    Args:
      name: of the environment.
      count: number of worlds.
      processes: as the setting `env.processes`.
    """

    def __init__(self, name: str, count: int, processes: int | None):
        config = resolve(
            {"env": {"gym": name, "processes": processes}, "num_envs": count}, platform="cpu"
        )
        self.algo = make_algorithm(config)
        self.vector = self.algo.vector
        self.state = self.algo.init(jax.random.key(0))
        self._act = jax.jit(
            lambda state, obs, key, t: self.algo.act(
                state.replace(envs=HostState(obs=obs)), jax.random.fold_in(key, t)
            )
        )
        self.obs = self.vector.start(0)
        self.actions = np.asarray(self._act(self.state, self.obs, self.state.key, 0)[0])

    def step(self) -> int:
        """Under an action made beforehand."""
        self.vector.send(self.actions)
        self.vector.receive()
        return self.vector.num_envs

    def collect(self) -> int:
        """With the policy."""
        action, _ = self._act(self.state, self.obs, self.state.key, 1)
        self.vector.send(np.asarray(action))
        self.obs, _ = self.vector.receive()
        return self.vector.num_envs


def microseconds(step: Any, seconds: float) -> float:
    """Of one step of one world."""
    for _ in range(3):
        step()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        steps += step()
    return 1e6 * (time.perf_counter() - begun) / steps


def main() -> None:
    args, rows = arguments(), []
    print(
        f"{'environment':32}{'worlds':>7}{'processes':>10}{'bare':>8}{'worlds':>8}{'whole':>8}"
        f"{'outside':>9}"
    )
    for name, count, processes in itertools.product(
        args.envs, args.worlds, [None, *args.processes]
    ):
        bare, worlds = Bare(name), Worlds(name, count, processes)
        measured: dict[str, list[float]] = {"bare": [], "worlds": [], "whole": []}
        for _ in range(args.rounds):
            for what, step in zip(measured, (bare, worlds.step, worlds.collect)):
                measured[what].append(microseconds(step, args.seconds))
        worlds.vector.close()
        bare.env.close()
        row = {what: statistics.median(values) for what, values in measured.items()}
        at_once = min(worlds.vector.processes, os.cpu_count() or 1)
        outside = 1 - row["bare"] / at_once / row["whole"]
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


if __name__ == "__main__":
    main()
