"""Speed of simulation and training, and how close training is to its limit.

  python benchmarks/throughput.py --worlds 64,512,4096 --json out.json [--SETTING VALUE]

Measured in alternation, in one process, for each number of worlds:
* sim: control steps per second under random actions, without learning;
* train: control steps per second of the whole iteration;
* limit: t_sim + t_policy + epochs * t_forward_backward, each timed alone;
* rest: the other parts of the iteration: bootstrap values and advantages, shuffling, optimiser.
Compile times are those of the training chunk in a fresh process, with an empty and with
a filled cache.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import cli
from jaxrl.algos.base import shuffled
from jaxrl.algos.ppo import Acted, Batch
from jaxrl.config import resolve
from jaxrl.options import flatten, merge
from jaxrl.rl.packing import Packing
from jaxrl.rl.rollout import Rollout, limit_slots
from jaxrl.runs import hardware, make_algorithm, write_json
from jaxrl.runtime.compiled import iterate
from jaxrl.trainer import Trainer

FLAGS = {"worlds": True, "json": True, "repeats": True, "no_compile": False, "first": False}


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if flags.get("first"):
        return first_update(settings)
    platform = cli.start_jax()
    report: dict[str, Any] = {"hardware": hardware(), "results": []}
    if not flags.get("no_compile"):
        report |= first_update_times(settings)
    for count in str(flags.get("worlds", "64,512,4096")).split(","):
        layer = merge(settings, {"num_envs": count})
        report["results"].append(measure(layer, platform, int(flags.get("repeats", 5))))
    print(json.dumps(report, indent=1))
    if flags.get("json"):
        write_json(Path(flags["json"]), report)
    return 0


def measure(settings: dict[str, Any], platform: str, repeats: int) -> dict[str, Any]:
    """All timings for one number of worlds: medians of seconds, and ratios."""
    config = resolve(settings, platform=platform)
    algo = make_algorithm(config)
    state = jax.jit(algo.init)(jax.random.key(0))
    parts = {name: jax.jit(part) for name, part in Pieces(algo).functions().items()}
    run = {
        name: lambda part=part: jax.block_until_ready(part(state)) for name, part in parts.items()
    }
    for work in run.values():
        work()
    seconds = alternate(run, repeats)
    epochs, steps = algo.config.num_epochs, algo.batch_size
    limit = seconds["sim"] + seconds["policy"] + epochs * seconds["forward_backward"]
    rest = {k: seconds[k] for k in ("advantages", "shuffle", "optimizer")}
    return {
        "task": config.task,
        "num_envs": algo.num_envs,
        "num_steps": algo.config.num_steps,
        "sim_steps_per_second": steps / seconds["sim"],
        "train_steps_per_second": steps / seconds["train"],
        "train_over_sim": seconds["sim"] / seconds["train"],
        "limit_seconds": limit,
        "train_seconds": seconds["train"],
        "share_of_limit": limit / seconds["train"],
        "seconds": seconds,
        "rest_seconds": rest,
        "unexplained_seconds": seconds["train"] - limit - sum(rest.values()),
        "peak_memory_mb": peak_memory_mb(),
    }


class Pieces:
    """The parts of one iteration, as functions of the training state."""

    def __init__(self, algo: Any):
        self.algo, self.config = algo, algo.config
        self.shape = (algo.config.num_steps, algo.num_envs, algo.policy.action_size)

    def functions(self) -> dict[str, Callable[[Any], Any]]:
        names = ("sim", "policy", "forward_backward", "advantages", "shuffle", "optimizer")
        return {
            "train": functools.partial(iterate, self.algo),
            **{name: getattr(self, name) for name in names},
        }

    def sim(self, state):
        actions = jax.random.uniform(state.key, self.shape, minval=-1.0, maxval=1.0)
        envs = self.algo.worlds.advance(state.envs)
        return jax.lax.scan(lambda e, a: (self.algo.worlds.step(e, a)[0], None), envs, actions)[0]

    def policy(self, state):
        noise = jax.random.normal(state.key, self.shape)

        def act(total, noise):
            gaussian, _ = self.algo.policy.gaussian(state.policy, state.envs.obs)
            distribution = self.algo.policy.distribution
            raw = distribution.sample(gaussian, noise + 0.0 * total)
            return total + distribution.log_prob(gaussian, raw).sum(), None

        return jax.lax.scan(act, jnp.zeros(()), noise)[0]

    def batch(self, state):
        """A batch of the right shapes; all its steps have the present observations."""
        obs = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (self.config.num_steps, *x.shape)), state.envs.obs
        )
        flat = jnp.zeros((self.config.num_steps, self.algo.num_envs))
        raw = jax.random.normal(state.key, self.shape)
        expert = None if self.algo._expert is None else jnp.zeros_like(raw)
        acted = Acted(raw, flat, expert=expert)
        return Batch(obs, acted, flat, raw[..., 0], flat, reset=None)

    def rows(self, state):
        size = self.algo.batch_size // self.config.num_minibatches
        return jax.tree.map(
            lambda x: x.reshape(self.config.num_minibatches, size, *x.shape[2:]), self.batch(state)
        )

    def forward_backward(self, state):
        def minibatch(total, rows):
            gradient, _ = jax.grad(self.algo._loss, has_aux=True)(
                jax.tree.map(lambda p: p + 0.0 * total, state.policy.params),
                state,
                (rows, ()),
                state.key,
            )
            return total + sum(g.sum() for g in jax.tree.leaves(gradient)), None

        return jax.lax.scan(minibatch, jnp.zeros(()), self.rows(state))[0]

    def advantages(self, state):
        b = self.batch(state)
        ends = jnp.zeros((self.config.num_steps, self.algo.num_envs), bool)
        slots = limit_slots(self.config.num_steps, self.algo.worlds.min_episode_length)
        rollout = Rollout(
            obs=b.obs,
            action=b.acted.raw,
            act_info=b.acted,
            reward=b.advantage,
            terminated=ends,
            truncated=ends,
            limit_obs=jax.tree.map(
                lambda x: jnp.broadcast_to(x, (slots, *x.shape)), state.envs.obs
            ),
            last_obs=state.envs.obs,
            memory=state.memory,
        )
        return self.algo._batch(state, rollout)[0].advantage.sum()

    def shuffle(self, state):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.batch(state))
        packing = Packing(jax.tree.map(lambda x: x[0], flat))
        packed = packing.pack(flat)

        def epoch(total, key):
            order = shuffled(key, self.algo.batch_size).reshape(self.config.num_minibatches, -1)

            def minibatch(total, order):
                rows = packing.unpack({kind: x[order] for kind, x in packed.items()})
                return total + sum(x.sum() for x in jax.tree.leaves(rows)), None

            return jax.lax.scan(minibatch, total, order)

        return jax.lax.scan(
            epoch, jnp.zeros(()), jax.random.split(state.key, self.config.num_epochs)
        )[0]

    def optimizer(self, state):
        def update(carry, _):
            params, opt_state = carry
            return self.algo._descend(params, opt_state, params, state=state, rate=1e-9), None

        count = self.config.num_epochs * self.config.num_minibatches
        return jax.lax.scan(update, (state.policy.params, state.learner), length=count)[0]


def alternate(run: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each function; they run in turns, so that a slow moment affects all."""
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(repeats):
        for name, work in run.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory_mb() -> float:
    """Peak memory of the device if it is counted, otherwise of this process (MiB)."""
    facts = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in facts:
        return facts["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def first_update(settings: dict[str, Any]) -> int:
    """The program that `first_update_times` times: sets up training and runs one chunk."""
    platform = cli.start_jax()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(resolve(settings, platform=platform), Path(folder))
        jax.block_until_ready(trainer.training.run(trainer.state, 1))
    return 0


def first_update_times(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds from the start of Python to the first finished chunk of the task's preset,
    with an empty and with a filled compile cache."""
    arguments = [f"--{key}={value}" for key, value in flatten(settings).items()]
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "--first", *arguments],
                check=True,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            )
            seconds.append(time.perf_counter() - started)
    return {"first_update_cold_seconds": seconds[0], "first_update_warm_seconds": seconds[1]}


if __name__ == "__main__":
    cli.run(main)
