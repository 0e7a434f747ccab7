"""The time that each algorithm's iteration spends on simulation, learning and the rest.

  python benchmarks/shares.py --task ballbot --json shares.json --plot shares.png

Each algorithm runs with the task's preset and a filled replay. Timed in alternation, in one
process: the whole iteration; its control steps alone, under random actions; its learning alone
(PPO: values, advantages and all minibatches; SAC, TD3: sampling and all updates, and sampling
alone). The rest is policy, noise, normaliser, storing, and differences in how XLA compiles the
parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from throughput import alternate

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import check_writable, replacing
from jaxrl.options import merge

FLAGS = {"task": True, "json": True, "plot": True, "repeats": True}


def main(argv: list[str]) -> int:
    _, flags, settings = cli.parse(argv, FLAGS, settings=True)
    _prepare(flags)
    platform = cli.start_jax()
    from jaxrl.algos import ALGORITHMS
    from jaxrl.runs import hardware, write_json

    task = flags.get("task", "ballbot")
    report: dict[str, Any] = {"hardware": hardware(), "task": task, "results": {}}
    for name in ALGORITHMS:
        layer = merge(settings, {"env": {"name": task}, "algo": name})
        report["results"][name] = measure(layer, platform, cli.parse_int(flags, "repeats", 7))
    print(json.dumps(report, indent=1))
    if flags.get("json"):
        write_json(Path(flags["json"]), report)
    if flags.get("plot"):
        plot(report, Path(flags["plot"]))
    return 0


def _prepare(flags: dict[str, Any]) -> None:
    """Checks the output files and Matplotlib before measuring, so that errors come early."""
    for name in ("json", "plot"):
        if flags.get(name):
            check_writable(Path(flags[name]))
    if flags.get("plot"):
        if Path(flags["plot"]).suffix != ".png":
            raise UserError(f"--plot: got {flags['plot']}, expected a file that ends in .png")
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise UserError(
                "--plot: Matplotlib is not installed; run `pip install 'jaxrl[report]'`"
            ) from error


def measure(settings: dict[str, Any], platform: str, repeats: int) -> dict[str, Any]:
    """Median milliseconds of each part for 1000 control steps, shares and speed."""
    import jax

    from jaxrl.config import resolve
    from jaxrl.runs import make_algorithm
    from jaxrl.runtime.compiled import iterate

    algo = make_algorithm(resolve(settings, platform=platform))
    state, step = (
        jax.jit(algo.init)(jax.random.key(0)),
        jax.jit(partial(iterate, algo), donate_argnums=0),
    )
    state = jax.tree.map(lambda x: x.copy(), state)
    for _ in range(1 + algo.refill_steps // algo.batch_size):
        state, _ = step(state)

    current = [state]

    def whole():
        current[0], out = step(current[0])
        jax.block_until_ready(out)

    parts = {name: jax.jit(part) for name, part in pieces(algo).items()}
    run = {
        name: lambda part=part: jax.block_until_ready(part(current[0]))
        for name, part in parts.items()
    }
    run["whole"] = whole
    for work in run.values():
        work()
    seconds = alternate(run, repeats)
    scale = 1e6 / algo.batch_size
    cost = {name: scale * value for name, value in seconds.items()}
    cost["rest"] = cost["whole"] - cost["simulation"] - cost["learning"]
    return {
        "num_envs": algo.num_envs,
        "milliseconds_per_1000_steps": cost,
        "shares": {k: cost[k] / cost["whole"] for k in ("simulation", "learning", "rest")},
        "steps_per_second": algo.batch_size / seconds["whole"],
    }


def pieces(algo: Any) -> dict[str, Callable[[Any], Any]]:
    """The parts of one iteration, as functions of the training state."""
    import jax
    import jax.numpy as jnp

    from jaxrl.runtime.compiled import collect

    steps = algo.config.num_steps

    def simulation(state):
        shape = (steps, algo.num_envs, algo.policy.action_size)
        actions = jax.random.uniform(state.key, shape, minval=-1.0, maxval=1.0)
        envs = algo.worlds.advance(state.envs)
        return jax.lax.scan(lambda e, a: (algo.worlds.step(e, a)[0], None), envs, actions)[0]

    if algo.name == "ppo":

        def learning(state):
            rollout = jax.eval_shape(lambda: collect(algo, state, state.key)[1])
            rollout = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rollout)
            return algo.learn(state, rollout, state.key)

        return {"simulation": simulation, "learning": learning}

    def repeated(part):
        def run(state):
            def body(carry, key):
                return part(state, carry, key), None

            start = (state.policy.params, state.learner)
            return jax.lax.scan(body, start, jax.random.split(state.key, steps))[0]

        return run

    def learn(state, carry, key):
        params, learner = carry
        now = state.replace(policy=state.policy.replace(params=params), learner=learner)
        return algo._learn(now, jnp.ones((), bool), key, key)[0]

    def sample(state, carry, key):
        count = algo.config.gradient_steps * algo.config.batch_size
        rows = algo.replay.sample(state.replay, key, count, gamma=state.hyper["gamma"])
        total = sum(x.sum() for x in jax.tree.leaves(rows))
        return jax.tree.map(lambda x: x + (0 * total).astype(x.dtype), carry)

    return {
        "simulation": simulation,
        "learning": repeated(learn),
        "sampling": repeated(sample),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws a stacked bar of shares for each algorithm, with its time for 1000 control steps."""
    from matplotlib.figure import Figure

    colours = {"simulation": "#0072b2", "learning": "#e69f00", "rest": "#8a8a8a"}
    figure = Figure(figsize=(7, 2.2))
    axis = figure.subplots()
    names = list(report["results"])[::-1]
    for i, name in enumerate(names):
        cost = report["results"][name]["milliseconds_per_1000_steps"]
        parts = {part: max(cost[part], 0.0) for part in colours}  # timed alone: the sum may differ
        left = 0.0
        for part, value in parts.items():
            share = 100 * value / sum(parts.values())
            axis.barh(i, share, left=left, color=colours[part], label=None if i else part)
            if share > 6:
                axis.text(left + share / 2, i, f"{share:.0f} %", ha="center", va="center")
            left += share
        axis.text(101, i, f"{cost['whole']:,.0f} ms", va="center")
    axis.set_yticks(range(len(names)), [name.upper() for name in names])
    axis.set_xticks([])
    axis.set_title("shares of time, and milliseconds for 1000 control steps", fontsize=10)
    axis.legend(ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


if __name__ == "__main__":
    cli.run(main)
