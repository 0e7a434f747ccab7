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
    result = evaluate_policy(trained, episodes, seed, changed)
    print(
        f"{path}: {result['source']}, {episodes} episodes, seed {seed}, {result['seconds']:.1f} s"
    )
    print(format_summary(result["summary"]))
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
        print(format_summary(results[name]))
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

    size = env.action_spec.shape[0]

    def zero(params, worlds, key):
        return jnp.zeros((worlds.reward.shape[0], size))

    def uniform(params, worlds, key):
        shape = (worlds.reward.shape[0], size)
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    own = getattr(env, "baselines", dict)()
    scripted = {
        name: lambda params, worlds, key, act=act: jax.vmap(act)(worlds)
        for name, act in own.items()
    }
    return {"zero": zero, "random": uniform, **scripted}


if __name__ == "__main__":
    cli.run(main)
