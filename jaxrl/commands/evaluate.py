"""`python -m jaxrl.evaluate`: judge a trained policy, or a task's baselines."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import check_writable
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
  --json FILE        where the numbers go (of a run with checkpoints/:
                     RUN/eval/<checkpoint>-<settings>.json, or with --baselines RUN
                     RUN/eval/baselines.json, which its report shows; else they are only
                     printed)
  --video FILE       write a video of one episode (.mp4), before the others are played; with
                     --baselines of the first scripted one
  --baselines TASK_OR_RUN   judge a task's scripted baselines instead, zero and random
                     included; of a run: with its settings of the task
"""

# Worlds side by side in a simulator that is called from the compiled program: each has its
# own memory there.
MOST_HOSTED = 256

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
    baselines = flags.get("baselines")
    if baselines and positionals:
        raise UserError(
            f"unexpected argument {positionals[0]!r} beside --baselines {baselines} (a policy "
            "and a task's baselines are judged one by one)"
        )
    if baselines and flags.get("on"):
        raise UserError("--on: cannot be used together with --baselines")
    if not baselines and len(positionals) != 1:
        raise UserError(f"expected one run or checkpoint, got {len(positionals)} (see --help)")
    cli.start_jax()
    return _baselines(flags) if baselines else _policy(positionals[0], flags)


def _policy(path: str, flags: dict[str, Any]) -> int:
    from jaxrl.evaluation import format_summary
    from jaxrl.runs import evaluate_policy, load_policy

    episodes, seed = (
        cli.parse_int(flags, "episodes", 100),
        cli.parse_int(flags, "seed", 0, minimum=0),
    )
    changed = flags["set"]
    trained = load_policy(path, changed | {"eval_overrides": changed.get("env", {})})
    env, run = trained.config.eval_env, trained.source.parent.parent
    elsewhere = _elsewhere(env, trained.config.task, flags) if flags.get("on") else {}
    _prepare(flags, env, trained.actor, trained.params, seed)
    if elsewhere:
        return _across(path, trained, elsewhere, flags, episodes, seed)
    result = evaluate_policy(trained, episodes, seed, changed)
    print(
        f"{path}: {result['source']}, {episodes} episodes, seed {seed}, {result['seconds']:.1f} s"
    )
    print(format_summary(result["summary"], env))
    _keep(result, flags, run, _name(result["source"], changed))
    return 0


def _prepare(
    flags: dict[str, Any], env: Any, actor: Any, params: Any, seed: int, of: str = ""
) -> None:
    """All that can fail for a reason other than the episodes, before they are played."""
    if flags.get("json"):
        try:
            check_writable(Path(flags["json"]))
        except UserError as error:
            raise UserError(f"--json: {error}") from error
    if flags.get("video"):
        from jaxrl.video import record

        record(env, actor, params, Path(flags["video"]), seed)
        print(f"video{of} in {flags['video']}")


def _keep(result: dict[str, Any], flags: dict[str, Any], run: Path, name: str) -> None:
    """Writes the numbers where --json says, or into the eval/ of a run of one's own."""
    from jaxrl.runs import is_own, write_json

    if flags.get("json"):
        out = Path(flags["json"])
        write_json(out, result)
    elif is_own(run):
        out = run / "eval" / name
        try:
            write_json(out, result)
        except UserError as error:  # nobody asked for the file
            print(f"not kept: {error}", file=sys.stderr)
            return
    else:
        return
    print(f"written to {out}")


def _name(source: str, changed: dict[str, Any], on: Sequence[str] = ()) -> str:
    """A file's name that says what was judged and how."""
    name = source + (f"-on-{'-'.join(on)}" if on else "")
    name += "".join(f"-{key}={value}" for key, value in flatten(changed).items())
    name = name.replace("/", "-")
    if len(name.encode()) > 200:  # file systems take 255 bytes
        name = f"{name[:100]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return f"{name}.json"


# -- other simulators ------------------------------------------------------------------


def _elsewhere(env: Any, task: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The task in MJX and each simulator named, by their names.

    Raises:
      UserError: it cannot be played there.
    """
    if not env.simulators:
        raise UserError(f"--on: {task} knows no other simulator")
    names = list(dict.fromkeys(["mjx", *flags["on"].split(",")]))
    found = {name: env.on(name) for name in names}
    if len(names) > 1 and (varied := _varied(env.unwrapped)):
        arguments = " ".join(f"--set {setting}" for setting in varied)
        raise UserError(
            "--on: the worlds' models differ (domain randomisation), which other simulators do "
            f"not know; switch it off with {arguments}"
        )
    return found


def _varied(task: Any) -> list[str]:
    """Settings "env.a.low=1" under which the task's worlds would all have the same model."""
    still = {
        id(term.range): (1 if term.how == "scale" else 0)
        for term in task.randomizations
        if not term.is_off
    }
    return [
        f"env.{path}.{edge}={0 if edge == 'high' and values.distribution == 'normal' else nominal}"
        for path, values in _sections(task)
        if (nominal := still.get(id(values))) is not None
        for edge in ("low", "high")
    ]


def _sections(settings: Any, path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, section) of all sections within a dataclass of settings."""
    found = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            own = f"{path}{field.name}"
            found += [(own, value), *_sections(value, f"{own}.")]
    return found


def _across(
    path: str,
    trained: Any,
    elsewhere: dict[str, Any],
    flags: dict[str, Any],
    episodes: int,
    seed: int,
) -> int:
    """The policy in several simulators, side by side; the first is MJX."""
    from jaxrl.evaluation import success_line
    from jaxrl.logs import readable
    from jaxrl.runs import evaluate_policy

    results = {}
    for name, env in elsewhere.items():
        results[name] = evaluate_policy(
            trained, episodes, seed, flags["set"], task=env, most=MOST_HOSTED
        )
    names = list(results)
    first = results[names[0]]
    print(f"{path}: {first['source']}, {episodes} episodes, seed {seed}")
    width = max(len(name) for name in first["summary"])
    others = "".join(f"{name:>12}{'gap':>12}" for name in names[1:])
    print(f"{'':{width}}{names[0]:>12}{others}")
    for row, values in first["summary"].items():
        line = f"{row:{width}}{readable(values['mean']):>12}"
        for name in names[1:]:
            mean = results[name]["summary"][row]["mean"]
            gap = mean - values["mean"]
            line += f"{readable(mean):>12}{'+' * (gap > 0) + readable(gap):>12}"
        print(line)
    for line in success_line(trained.config.eval_env):
        print(line)
    file = _name(first["source"], flags["set"], names)
    _keep({"simulators": results}, flags, trained.source.parent.parent, file)
    return 0


# -- baselines -------------------------------------------------------------------------


def _baselines(flags: dict[str, Any]) -> int:
    import jax

    from jaxrl.config import read_yaml, resolve
    from jaxrl.evaluation import format_summary, play, summarize
    from jaxrl.reporting.reading import BASELINES

    episodes, seed = (
        cli.parse_int(flags, "episodes", 100),
        cli.parse_int(flags, "seed", 0, minimum=0),
    )
    changed = flags["set"] | {"eval_overrides": flags["set"].get("env", {})}
    run = Path(flags["baselines"])
    base: dict[str, Any] = {"env": {"name": str(run)}}
    if (run / "config.yaml").exists():
        base = read_yaml(run / "config.yaml")
    config = resolve(base, changed, platform="none")
    env, results = config.eval_env, {}
    actors = baselines(env)
    filmed, actor = list(actors.items())[2 if len(actors) > 2 else 0]
    _prepare(flags, env, actor, None, seed, f" of {filmed}")
    for name, actor in actors.items():
        statistics, table = play(env, actor, None, episodes, jax.random.key(seed))
        results[name] = summarize(statistics, table)
        print(f"\n{name}: {episodes} episodes")
        print(format_summary(results[name], env))
    result = {"task": config.task, "episodes": episodes, "seed": seed, "baselines": results}
    _keep(result, flags, run, BASELINES)
    return 0


def baselines(env: Any) -> dict[str, Any]:
    """Actors by name: zero, random, and the task's own."""
    import jax
    import jax.numpy as jnp

    from jaxrl.evaluation import Actor

    size, discrete = env.action_spec.shape[0], env.action_spec.discrete

    def zero(worlds, key):
        count = worlds.reward.shape[0]
        return jnp.zeros(count, int) if discrete else jnp.zeros((count, size))

    def uniform(worlds, key):
        count = worlds.reward.shape[0]
        if discrete:
            return jax.random.randint(key, (count,), 0, size)
        return jax.random.uniform(key, (count, size), minval=-1.0, maxval=1.0)

    scripted = {
        name: lambda worlds, key, act=act: jax.vmap(act)(worlds)
        for name, act in env.baselines().items()
    }
    actors = {"zero": zero, "random": uniform, **scripted}
    return {name: Actor.of_function(act) for name, act in actors.items()}
