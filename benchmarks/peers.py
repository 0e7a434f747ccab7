"""Compares jaxrl's PPO with other libraries: the same task, networks, batches and physics.

    python benchmarks/peers.py --json peers.json

jaxrl, Brax's PPO and a PPO in the style of PureJaxRL train the ballbot. Every trainer has its own
process; the processes take turns, a chunk of iterations each (A B C A B C ...), so that a change
in the machine's load affects all of them. After every chunk the deterministic policy is
evaluated, for all trainers in the same way; this time is not counted.

Brax needs its own virtual environment; the first run makes one in `--venv`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BRAX = "brax==0.14.2"
MARK = "@report "  # prefix of a worker's lines that are read as reports
TRAINERS = ("jaxrl", "brax", "purejaxrl")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--num-envs", type=int, default=256, help="number of worlds")
    add("--steps", type=int, default=32, help="control steps per world in an iteration")
    add("--minibatches", type=int, default=4)
    add("--epochs", type=int, default=4)
    add("--hidden", type=int, nargs="+", default=[64, 64], help="widths of both networks")
    add("--learning-rate", type=float, default=1e-3)
    add("--timesteps", type=int, default=1_000_000, help="control steps of each trainer")
    add("--chunks", type=int, default=12, help="number of turns of each trainer")
    add("--threshold", type=float, default=300.0, help="mean return to reach")
    add("--episodes", type=int, default=64, help="episodes of an evaluation; 0: no evaluation")
    add("--drive", default="no_slip", help="physics of the ballbot's wheels")
    # The task's own weight needs a small initial std, which Brax's PPO does not support.
    add("--smooth-weight", type=float, default=0.1, help="the ballbot's penalty on jerky torque")
    add("--seed", type=int, default=0)
    add("--trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    add("--stock", action="store_true", help="also run Brax as it is installed, with untuned MJX")
    add("--json", type=Path, help="file for the results")
    add("--venv", type=Path, default=Path.home() / ".cache" / "jaxrl" / "peers")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# -- the main process --------------------------------------------------------------------


def peer_python(folder: Path, module: str, *packages: str) -> str:
    """Path of a Python interpreter that has the other libraries and jaxrl.

    Args:
      folder: folder of the virtual environment that is made if this interpreter lacks `module`.
      module: module whose presence means that this interpreter can be used.
      packages: packages to install in the virtual environment, besides jaxrl and its JAX.
    """
    if util.find_spec(module):
        return sys.executable
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making a virtual environment with {', '.join(packages)} in {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        plugins = [d.name for d in metadata.distributions() if d.name == "jax-cuda12-plugin"]
        jax = f"jax{'[cuda12]' if plugins else ''}=={metadata.version('jax')}"
        install = [python, "-m", "pip", "install", "-q", jax, *packages, "-e", REPOSITORY]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return str(python)


def worker_environment() -> dict[str, str]:
    """The environment variables of the trainers' processes."""
    # On two cores, XLA's batched library calls for Cholesky factors can deadlock.
    return {"PJRT_NPROC": "8", **os.environ, "PYTHONPATH": str(REPOSITORY)}


def process_age() -> float:
    """Seconds since this process began."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


class Worker:
    """A trainer in its own process, which trains one chunk each time that `turn` is called.

    Args:
      python: interpreter; it runs this process's script with this process's arguments.
      name: name of the trainer.
      arguments: additional arguments.
    """

    def __init__(self, python: str, name: str, *arguments: str):
        self.name = name
        self._process = subprocess.Popen(
            [python, *sys.argv, *arguments, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=worker_environment(),
        )

    def report(self) -> dict[str, Any]:
        """Waits for the next report and returns it.

        Raises:
          RuntimeError: the process ended.
        """
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")

    def turn(self) -> dict[str, Any]:
        """Trains one chunk and returns its report."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.report()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all trainers in turns; returns their `summary`."""
    names = [*args.trainers, *(["brax-stock"] if args.stock else [])]
    python = peer_python(args.venv, "brax", BRAX)
    workers, reports = [], {name: [] for name in names}
    try:
        for name in names:
            print(f"{name}: starting", flush=True)
            workers.append(Worker(python, name))
            reports[name].append(workers[-1].report())
        for chunk in range(args.chunks):
            for worker in workers:
                report = worker.turn()
                reports[worker.name].append(report)
                print(
                    f"{chunk + 1:3}/{args.chunks} {worker.name:11} {report['timesteps']:>9} steps "
                    f"{report['seconds']:7.2f} s   return {report['return']:8.2f}",
                    flush=True,
                )
    finally:
        for worker in workers:
            worker.close()
    return summary(reports, args.threshold)


def summary(reports: dict[str, list[dict[str, Any]]], threshold: float) -> dict[str, Any]:
    """Throughput, ratios of the first trainer to the others, time to the threshold.

    The first chunk contains the compilation and does not count for the throughput. Ratios are
    medians over the rounds; in a round, all trainers run one after the other.
    """
    out = {name: _trainer_summary(rows, threshold) for name, rows in reports.items()}
    first = next(iter(out))
    for name in out:
        out[name]["ratio"] = {
            f"{first}/{name}, {key}": statistics.median(
                a / b for a, b in zip(out[first]["rounds"][key], out[name]["rounds"][key])
            )
            for key in ("steps_per_second", "steps_per_cpu_second")
        }
    return out


def _trainer_summary(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    setup, *chunks = rows
    steps = [b["timesteps"] - a["timesteps"] for a, b in zip(rows, chunks)]
    steady = statistics.median(row["seconds"] for row in chunks[1:])
    compile_seconds = setup["seconds"] + chunks[0]["seconds"] - steady
    rounds = {
        f"steps_per_{unit}": [n / row[key] for n, row in zip(steps[1:], chunks[1:])]
        for unit, key in (("second", "seconds"), ("cpu_second", "cpu_seconds"))
    }
    reached = next((i for i, row in enumerate(chunks) if row["return"] >= threshold), None)
    out: dict[str, Any] = {name: statistics.median(rates) for name, rates in rounds.items()}
    out |= {"compile_seconds": compile_seconds, "to_threshold": None}
    if reached is not None:
        total = setup["seconds"] + sum(row["seconds"] for row in chunks[: reached + 1])
        out["to_threshold"] = {
            "timesteps": chunks[reached]["timesteps"],
            "seconds_with_compile": total,
            "seconds_without_compile": total - compile_seconds,
        }
    return out | {"returns": [row["return"] for row in chunks], "rounds": rounds}


def show(results: dict[str, Any]) -> None:
    print(f"\n{'':12}{'steps/s':>10}{'/cpu-s':>10}{'ratio':>8}{'compile s':>11}", end="")
    print(f"{'threshold: steps':>18}{'s with':>9}{'without':>9}")
    for name, row in results.items():
        ratio = next(iter(row["ratio"].values()))
        print(
            f"{name:12}{row['steps_per_second']:10.0f}{row['steps_per_cpu_second']:10.0f}"
            f"{ratio:8.2f}{row['compile_seconds']:11.1f}",
            end="",
        )
        reached = row["to_threshold"] or {}
        columns = zip(("timesteps", "seconds_with_compile", "seconds_without_compile"), (18, 9, 9))
        print("".join(f"{reached.get(key, float('nan')):{width}.0f}" for key, width in columns))


# -- the trainers, each in its own process --------------------------------------------------


class Turns:
    """In a trainer's process: evaluates the policy, reports, and waits for the next turn.

    Args:
      task: task that policies are evaluated on.
      episodes: episodes of an evaluation; 0: no evaluation.
    """

    def __init__(self, task: Any, episodes: int):
        self.task, self.episodes = task, episodes
        self._evaluate: Callable | None = None
        self._begin()

    def _begin(self) -> None:
        self._clock, self._cpu = time.monotonic(), time.process_time()

    def __call__(self, timesteps: int, act: Callable, params: Any) -> None:
        """Must be called after each chunk, and once before the first.

        Args:
          timesteps: control steps so far.
          act: (params, obs [N, O]) -> actions [N, A], deterministic.
          params: parameters of the policy.
        """
        import jax

        jax.block_until_ready(params)
        row = {
            "timesteps": timesteps,
            "seconds": time.monotonic() - self._clock,
            "cpu_seconds": time.process_time() - self._cpu,
            "return": self._return(act, params),
        }
        print(MARK + json.dumps(row), flush=True)
        if sys.stdin.readline() != "go\n":
            raise SystemExit
        self._begin()

    def _return(self, act: Callable, params: Any) -> float:
        import jax

        from jaxrl.evaluation import Actor

        if not self.episodes:
            return float("nan")
        if self._evaluate is None:
            actor = Actor(lambda params, worlds, memory, key: (act(params, worlds.obs), memory))
            self._evaluate = self.task.runtime().evaluator(actor, self.episodes)
        return float(self._evaluate(params, jax.random.key(1234))[:, 0].mean())


def work(args: argparse.Namespace) -> None:
    """The program of a worker: one trainer, `chunks` turns."""
    from envs_mjx.ballbot import Ballbot
    from jaxrl.algos import PPOConfig
    from jaxrl.nets import NetworkConfig

    task = Ballbot(drive=args.drive, smooth_weight=args.smooth_weight)
    hidden = tuple(args.hidden)
    config = PPOConfig(
        learning_rate=args.learning_rate,
        num_steps=args.steps,
        num_epochs=args.epochs,
        num_minibatches=args.minibatches,
        network=NetworkConfig(policy_hidden=hidden, value_hidden=hidden),
    )
    {"jaxrl": train_jaxrl, "purejaxrl": train_purejaxrl}.get(args.worker, train_brax)(
        args, config, task
    )


def iterations_per_chunk(args: argparse.Namespace) -> int:
    return -(-args.timesteps // (args.num_envs * args.steps * args.chunks))


def train_chunks(
    turns: Turns, trainer: Any, state: Callable, *, chunks: int, iterations: int, batch_size: int
) -> None:
    """Runs a trainer that is one compiled program, one chunk per turn.

    Args:
      turns: called after each chunk with the policy.
      trainer: (update: (state, _) -> (state, _), policy: state -> params, act).
      state: function without arguments that makes the training state; its time is counted.
      chunks: number of chunks.
      iterations: updates in a chunk.
      batch_size: control steps of an update.
    """
    import jax

    update, policy, act = trainer
    chunk = jax.jit(lambda s: jax.lax.scan(update, s, length=iterations), donate_argnums=0)
    state = jax.tree.map(lambda x: x.copy(), jax.jit(state)())
    turns(0, act, policy(state))
    for done in range(1, chunks + 1):
        state, output = chunk(state)
        jax.block_until_ready(output)
        turns(done * iterations * batch_size, act, policy(state))


def train_fair(args: argparse.Namespace, task: Any, trainer: Any, state: Callable) -> None:
    """`train_chunks` with the batches that all trainers share."""
    train_chunks(
        Turns(task, args.episodes),
        trainer,
        state,
        chunks=args.chunks,
        iterations=iterations_per_chunk(args),
        batch_size=args.num_envs * args.steps,
    )


def train_jaxrl(args: argparse.Namespace, config: Any, task: Any) -> None:
    import jax

    from jaxrl.algos.ppo import PPO
    from jaxrl.runtime.compiled import iterate

    worlds = task.runtime().worlds(args.num_envs)
    ppo = PPO(config, task, worlds, iterations_per_chunk(args) * args.chunks)
    trainer = (
        lambda s, _: iterate(ppo, s),
        lambda s: s.policy,
        lambda params, obs: ppo.policy(params, obs)[0],
    )
    train_fair(args, task, trainer, lambda: ppo.init(jax.random.key(args.seed)))


def train_purejaxrl(args: argparse.Namespace, config: Any, task: Any) -> None:
    import jax
    from purejaxrl_style import PureJaxRL

    ppo = PureJaxRL(config, task, args.num_envs)
    trainer = (ppo.update, lambda s: (s.params, s.statistics), ppo.act)
    train_fair(args, task, trainer, lambda: ppo.init(jax.random.key(args.seed)))


def train_brax(args: argparse.Namespace, config: Any, task: Any) -> None:
    import brax_adapter
    import jax

    physics = brax_adapter.stock(task) if args.worker == "brax-stock" else task
    turns = Turns(task, args.episodes)

    def after(timesteps: int, make_policy: Callable, params: Any) -> None:
        def act(params, obs):
            return make_policy(params, deterministic=True)(obs, jax.random.key(0))[0]

        turns(timesteps, act, params)

    brax_adapter.train_brax(
        brax_adapter.brax_settings(config, physics, args.num_envs),
        timesteps=iterations_per_chunk(args) * args.chunks * args.num_envs * args.steps,
        chunks=args.chunks,
        seed=args.seed,
        after=after,
    )


def main() -> None:
    args = arguments()
    if args.worker:
        work(args)
        return
    results = compare(args)
    show(results)
    if args.json:
        from jaxrl.runs import hardware

        settings = {k: v for k, v in vars(args).items() if k not in ("json", "venv", "worker")}
        report = {"hardware": hardware(), "settings": settings, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
