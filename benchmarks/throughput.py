"""Speed of simulation and training, and how near training comes to its limit.

  python benchmarks/throughput.py --worlds 64,512,4096 --json out.json [--SETTING VALUE]

In one run, in alternation, for each number of worlds:
* sim: control steps a second under random actions, no learning;
* train: control steps a second of the whole iteration;
* limit: t_sim + t_policy + epochs * t_forward_backward, each timed alone;
* what the rest of the iteration goes to: bootstrap values and advantages, shuffling,
  optimiser.
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

from jaxrl import cli
from jaxrl.options import flatten, merge

FLAGS = {"worlds": True, "json": True, "repeats": True, "no_compile": False, "first": False}


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if flags.get("first"):
        return first_update(settings)
    platform = cli.start_jax()
    from jaxrl.runs import hardware, write_json

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
    """All timings of one number of worlds: medians of seconds, and ratios."""
    import jax

    from jaxrl.config import resolve
    from jaxrl.runs import make_algorithm

    config = resolve(settings, platform=platform)
    algo = make_algorithm(config)
    state = jax.jit(algo.init)(jax.random.key(0))
    parts = {name: jax.jit(part) for name, part in pieces(algo).items()}
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


def pieces(algo: Any) -> dict[str, Callable[[Any], Any]]:
    """The parts of one iteration as functions of the training state."""
    import jax
    import jax.numpy as jnp

    from jaxrl.algos.base import shuffled
    from jaxrl.algos.ppo import Acted, Batch
    from jaxrl.rl.packing import Packing
    from jaxrl.rl.rollout import Rollout, limit_slots
    from jaxrl.runtime.compiled import iterate

    c, n = algo.config, algo.num_envs
    shape = (c.num_steps, n, algo.policy.action_size)

    def sim(state):
        actions = jax.random.uniform(state.key, shape, minval=-1.0, maxval=1.0)
        envs = algo.worlds.advance(state.envs)
        return jax.lax.scan(lambda e, a: (algo.worlds.step(e, a)[0], None), envs, actions)[0]

    def policy(state):
        noise = jax.random.normal(state.key, shape)

        def act(total, noise):
            gaussian, _ = algo.policy.gaussian(state.policy, state.envs.obs)
            distribution = algo.policy.distribution
            raw = distribution.sample(gaussian, noise + 0.0 * total)
            return total + distribution.log_prob(gaussian, raw).sum(), None

        return jax.lax.scan(act, jnp.zeros(()), noise)[0]

    def batch(state):
        """A batch of the right shape, made of one observation."""
        obs = jax.tree.map(lambda x: jnp.broadcast_to(x, (c.num_steps, *x.shape)), state.envs.obs)
        flat = jnp.zeros((c.num_steps, n))
        raw = jax.random.normal(state.key, shape)
        acted = Acted(raw, flat, expert=None)
        return Batch(obs, acted, flat, raw[..., 0], flat, reset=None)

    def rows(state):
        size = algo.batch_size // c.num_minibatches
        return jax.tree.map(
            lambda x: x.reshape(c.num_minibatches, size, *x.shape[2:]), batch(state)
        )

    def forward_backward(state):
        def one(total, rows):
            gradient, _ = jax.grad(algo._loss, has_aux=True)(
                jax.tree.map(lambda p: p + 0.0 * total, state.policy.params),
                state,
                (rows, ()),
                state.key,
            )
            return total + sum(g.sum() for g in jax.tree.leaves(gradient)), None

        return jax.lax.scan(one, jnp.zeros(()), rows(state))[0]

    def advantages(state):
        b = batch(state)
        ends = jnp.zeros((c.num_steps, n), bool)
        slots = limit_slots(c.num_steps, algo.worlds.least_episode)
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
        return algo._batch(state, rollout)[0].advantage.sum()

    def shuffle(state):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch(state))
        packing = Packing(jax.tree.map(lambda x: x[0], flat))
        packed = packing.pack(flat)

        def epoch(total, key):
            order = shuffled(key, algo.batch_size).reshape(c.num_minibatches, -1)

            def minibatch(total, order):
                taken = packing.unpack({kind: x[order] for kind, x in packed.items()})
                return total + sum(x.sum() for x in jax.tree.leaves(taken)), None

            return jax.lax.scan(minibatch, total, order)

        return jax.lax.scan(epoch, jnp.zeros(()), jax.random.split(state.key, c.num_epochs))[0]

    def optimizer(state):
        def update(carry, _):
            params, opt_state = carry
            tiny = {"hyper": state.hyper, "rate": 1e-9}
            return algo._descend(params, opt_state, params, **tiny), None

        count = c.num_epochs * c.num_minibatches
        return jax.lax.scan(update, (state.policy.params, state.learner), length=count)[0]

    return {
        "train": functools.partial(iterate, algo),
        "sim": sim,
        "policy": policy,
        "forward_backward": forward_backward,
        "advantages": advantages,
        "shuffle": shuffle,
        "optimizer": optimizer,
    }


def alternate(run: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn so that a slow moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(repeats):
        for name, work in run.items():
            begun = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory_mb() -> float:
    """Of the device where it counts, else of this process."""
    import jax

    facts = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in facts:
        return facts["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def first_update(settings: dict[str, Any]) -> int:
    """What the timed process of `first_update_times` does: set up and run one chunk."""
    platform = cli.start_jax()
    import jax

    from jaxrl.config import resolve
    from jaxrl.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(resolve(settings, platform=platform), Path(folder))
        jax.block_until_ready(trainer._compiled_chunk()(trainer.state, 1))
    return 0


def first_update_times(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds from the start of Python to the first finished chunk of the task's preset,
    with an empty and with a filled compile cache."""
    more = [f"--{key}={value}" for key, value in flatten(settings).items()]
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "--first", *more],
                check=True,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            )
            seconds.append(time.perf_counter() - begun)
    return {"first_update_cold_seconds": seconds[0], "first_update_warm_seconds": seconds[1]}


if __name__ == "__main__":
    cli.run(main)
