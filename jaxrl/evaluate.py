"""`python -m jaxrl.evaluate`: judge a trained policy, or a task's baselines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.options import flatten

USAGE = """\
usage: python -m jaxrl.evaluate RUN_OR_CHECKPOINT [options]
       python -m jaxrl.evaluate --baselines TASK_OR_RUN [options]

Plays fresh episodes, compiled, with the deterministic policy, and prints what came of
them. RUN is a run's folder (its best model is taken) or one checkpoint's.

  --episodes N       number of episodes (100)
  --seed N           seed of the episodes (0)
  --on SIMULATORS    play in other simulators too, such as mujoco (C) or mjx,mujoco, with the
                     same starts, and print the gap
  --set KEY=VALUE    change a setting, such as env.drive=omniwheel; repeatable
  --json FILE        where the numbers go (RUN/eval/<checkpoint>-<settings>.json; with
                     --baselines RUN: RUN/eval/baselines.json, which its report shows)
  --video FILE       write a video of one episode (.mp4); with --baselines of the first
                     scripted one
  --baselines TASK_OR_RUN   judge a task's scripted baselines instead, zero and random
                     included; of a run: with its settings of the task
"""

FLAGS = {
    "episodes": True,
    "seed": True,
    "set": True,
    "on": True,
    "json": True,
    "video": True,
    "baselines": True,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, FLAGS)
    if flags.get("help"):
        print(USAGE)
        return 0
    cli.start_jax()
    if flags.get("baselines"):
        return _baselines(flags)
    if len(positionals) != 1:
        raise UserError(f"expected one run or checkpoint, got {len(positionals)} (see --help)")
    return _policy(positionals[0], flags)


def _policy(path: str, flags: dict[str, Any]) -> int:
    from jaxrl.evaluation import format_summary
    from jaxrl.runs import evaluate_policy, load_policy, write_json

    episodes, seed = cli.whole(flags, "episodes", 100), cli.whole(flags, "seed", 0, least=0)
    changed = flags["set"]
    trained = load_policy(path, changed | {"eval_overrides": changed.get("env", {})})
    if flags.get("on"):
        return _across(path, trained, flags, episodes, seed)
    result = evaluate_policy(trained, episodes, seed, changed)
    print(
        f"{path}: {result['source']}, {episodes} episodes, seed {seed}, {result['seconds']:.1f} s"
    )
    print(format_summary(result["summary"], trained.config.eval_env))
    suffix = "".join(f"-{key}={value}" for key, value in flatten(changed).items())
    name = result["source"].replace("/", "-") + suffix + ".json"
    out = Path(flags.get("json") or trained.source.parent.parent / "eval" / name)
    try:
        write_json(out, result)
        print(f"written to {out}")
    except (OSError, UserError) as error:
        print(f"not written: {error}", file=sys.stderr)
    if flags.get("video"):
        from jaxrl.video import record

        record(trained.config.eval_env, trained.actor, trained.params, Path(flags["video"]), seed)
        print(f"video in {flags['video']}")
    return 0


def _across(path: str, trained: Any, flags: dict[str, Any], episodes: int, seed: int) -> int:
    """The policy in several simulators, side by side; the first is MJX, or the first named."""
    import dataclasses

    from jaxrl.envs import Wrapped
    from jaxrl.evaluation import success_line
    from jaxrl.runs import evaluate_policy, write_json

    names = list(dict.fromkeys(["mjx", *flags["on"].split(",")]))
    env, results = trained.config.eval_env, {}
    if not hasattr(env.task if isinstance(env, Wrapped) else env, "on"):
        raise UserError(f"--on: {trained.config.task} knows no other simulator")
    elsewhere = {name: env.on(name) for name in names}  # complaints first, work after
    for name, other in elsewhere.items():
        config = dataclasses.replace(trained.config, eval_env=other)
        there = dataclasses.replace(trained, config=config)
        results[name] = evaluate_policy(there, episodes, seed, flags["set"])
    first = results[names[0]]
    print(f"{path}: {first['source']}, {episodes} episodes, seed {seed}")
    width = max(len(name) for name in first["summary"])
    others = "".join(f"{name:>12}{'gap':>12}" for name in names[1:])
    print(f"{'':{width}}{names[0]:>12}{others}")
    for row, values in first["summary"].items():
        line = f"{row:{width}}{values['mean']:12.4g}"
        for name in names[1:]:
            mean = results[name]["summary"][row]["mean"]
            line += f"{mean:12.4g}{mean - values['mean']:+12.4g}"
        print(line)
    for line in success_line(env):
        print(line)
    source = first["source"].replace("/", "-")
    default = trained.source.parent.parent / "eval" / f"{source}-on-{'-'.join(names)}.json"
    out = Path(flags.get("json") or default)
    write_json(out, {"simulators": results})
    print(f"written to {out}")
    return 0


def _baselines(flags: dict[str, Any]) -> int:
    import jax

    from jaxrl.config import read_yaml, resolve
    from jaxrl.evaluation import format_summary, make_evaluator, summarize
    from jaxrl.report import BASELINES
    from jaxrl.runs import write_json

    episodes, seed = cli.whole(flags, "episodes", 100), cli.whole(flags, "seed", 0, least=0)
    changed = flags["set"] | {"eval_overrides": flags["set"].get("env", {})}
    run, out = Path(flags["baselines"]), flags.get("json")
    base: dict[str, Any] = {"env": {"name": str(run)}}
    if (run / "config.yaml").exists():
        base, out = read_yaml(run / "config.yaml"), out or run / "eval" / BASELINES
    config = resolve(base, changed, platform="none")
    env, results = config.eval_env, {}
    actors = baselines(env)
    for name, actor in actors.items():
        evaluator = make_evaluator(env, actor, episodes)
        table = evaluator(None, jax.random.key(seed))
        results[name] = summarize(evaluator.statistics, table)
        print(f"\n{name}: {episodes} episodes")
        print(format_summary(results[name], env))
    if out:
        write_json(
            Path(out),
            {"task": config.task, "episodes": episodes, "seed": seed, "baselines": results},
        )
    if flags.get("video"):
        from jaxrl.video import record

        name, actor = list(actors.items())[2 if len(actors) > 2 else 0]
        record(env, actor, None, Path(flags["video"]), seed)
        print(f"video of {name} in {flags['video']}")
    return 0


def baselines(env: Any) -> dict[str, Any]:
    """Actors by name: zero, random, and the task's own."""
    import jax
    import jax.numpy as jnp

    size, discrete = env.action_spec.shape[0], env.action_spec.discrete

    def zero(params, worlds, key):
        count = worlds.reward.shape[0]
        return jnp.zeros(count, int) if discrete else jnp.zeros((count, size))

    def uniform(params, worlds, key):
        count = worlds.reward.shape[0]
        if discrete:
            return jax.random.randint(key, (count,), 0, size)
        return jax.random.uniform(key, (count, size), minval=-1.0, maxval=1.0)

    own = getattr(env, "baselines", dict)()
    scripted = {
        name: lambda params, worlds, key, act=act: jax.vmap(act)(worlds)
        for name, act in own.items()
    }
    return {"zero": zero, "random": uniform, **scripted}


if __name__ == "__main__":
    cli.run(main)
