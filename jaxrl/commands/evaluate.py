"""`python -m jaxrl.evaluate`: evaluate a trained policy, or the baselines of a task."""

from __future__ import annotations

import hashlib
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import check_writable
from jaxrl.options import flatten

USAGE = """\
usage: python -m jaxrl.evaluate RUN_OR_CHECKPOINT [options]
       python -m jaxrl.evaluate --baselines TASK_OR_RUN [options]

Plays new episodes with a trained policy, which acts deterministically, and prints statistics.
RUN_OR_CHECKPOINT is the folder of a run (its best model is evaluated) or of one checkpoint.

  --episodes N       number of episodes; default: 100
  --seed N           seed of the episodes; default: 0
  --on SIMULATORS    evaluate in MJX and in these simulators (a list such as mujoco,pybullet),
                     from the same starts, and print the difference (gap) to MJX
  --set KEY=VALUE    change a setting, such as env.drive=omniwheel; may be given several times
  --vary KEY[=V,W]   play with each value of one of the task's settings, such as env.terrain or
                     env.max_speed=0.2,0.3, and print a table with a row for each; without values:
                     all choices of the setting
  --json FILE        write the statistics to this file. Without --json, those of a run that has
                     a folder checkpoints/ are written to
                     RUN/eval/<checkpoint>-<settings>.json, or with --baselines RUN to
                     RUN/eval/baselines.json, and appear in its report; others are only printed
  --video FILE       write a video (.mp4) of one more episode, before the others are played;
                     with --baselines: of the first scripted baseline, or of "zero" if there is none
  --baselines TASK_OR_RUN
                     evaluate the scripted baselines of a task, and the actors "zero" and
                     "random", instead of a policy; for a run: of its task with its settings
"""

# Maximum number of worlds side by side with --on: a simulator that is called from the compiled
# program needs memory for each world.
MAX_HOSTED = 256

FLAGS = {
    "episodes": True,
    "seed": True,
    "set": True,
    "on": True,
    "vary": True,
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
            f"unexpected argument {positionals[0]!r} together with --baselines "
            f"{baselines}: evaluate a policy and baselines by two commands"
        )
    if baselines and flags.get("on"):
        raise UserError("--on: cannot be used together with --baselines")
    for other in ("on", "video"):
        if flags.get("vary") and flags.get(other):
            raise UserError(f"--vary: cannot be used together with --{other}")
    if not baselines and len(positionals) != 1:
        raise UserError(f"expected one run or checkpoint, got {len(positionals)} (see --help)")
    cli.start_jax()
    from jaxrl import storage

    path = str(storage.local(baselines or positionals[0]))
    if flags.get("vary"):
        return _vary(path, flags)
    if baselines:
        return _evaluate_baselines(flags | {"baselines": path})
    return _evaluate_run(path, flags)


def _evaluate_run(path: str, flags: dict[str, Any]) -> int:
    """Evaluates the policy of a run or checkpoint, in one simulator or in several."""
    from jaxrl.evaluation import format_summary
    from jaxrl.runs import evaluate_policy, load_policy

    episodes, seed = _sample(flags)
    changed = flags["set"]
    trained = load_policy(path, everywhere(changed))
    env, run = trained.config.eval_env, trained.source.parent.parent
    tasks = _elsewhere(env, trained.config.task, flags) if flags.get("on") else {}
    _prepare(flags, env, trained.actor, trained.params, seed)
    if tasks:
        return _compare_simulators(path, trained, tasks, flags, episodes, seed)
    result = evaluate_policy(trained, episodes, seed, changed)
    print(
        f"{path}: {result['source']}, {episodes} episodes, seed {seed}, {result['seconds']:.1f} s"
    )
    print(format_summary(result["summary"], env))
    _write_result(result, flags, run, _name(result["source"], changed))
    return 0


def _prepare(
    flags: dict[str, Any], env: Any, actor: Any, params: Any, seed: int, suffix: str = ""
) -> None:
    """Checks that --json can be written, and writes the video, before the episodes are played."""
    if flags.get("json"):
        try:
            check_writable(Path(flags["json"]))
        except UserError as error:
            raise UserError(f"--json: {error}") from error
    if flags.get("video"):
        from jaxrl.video import record

        record(env, actor, params, Path(flags["video"]), seed)
        print(f"video{suffix} written to {flags['video']}")


def _write_result(result: dict[str, Any], flags: dict[str, Any], run: Path, name: str) -> None:
    """Writes the statistics to the file of --json, or to RUN/eval if the run has checkpoints."""
    from jaxrl.runs import is_resumable, write_json

    if flags.get("json"):
        out = Path(flags["json"])
        write_json(out, result)
    elif is_resumable(run):
        out = run / "eval" / name
        try:
            write_json(out, result)
        except UserError as error:  # the user did not ask for the file
            print(f"statistics not saved: {error}", file=sys.stderr)
            return
    else:
        return
    print(f"written to {out}")


def _name(source: str, changed: dict[str, Any], simulators: Sequence[str] = ()) -> str:
    """The name of a result file: the checkpoint, the simulators and the changed settings."""
    name = source + (f"-on-{'-'.join(simulators)}" if simulators else "")
    name += "".join(f"-{key}={value}" for key, value in flatten(changed).items())
    name = name.replace("/", "-")
    if len(name.encode()) > 200:  # file systems allow 255 bytes
        name = f"{name[:100]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return f"{name}.json"


# -- other simulators ------------------------------------------------------------------


def _elsewhere(env: Any, task: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The task in MJX and in each simulator of --on, by the simulator's name.

    Raises:
      UserError: the task cannot be played in one of them.
    """
    if not env.simulators:
        raise UserError(f"--on: the task {task} supports no other simulator")
    names = list(dict.fromkeys(["mjx", *flags["on"].split(",")]))
    return {name: env.on(name) for name in names}


def _compare_simulators(
    path: str,
    trained: Any,
    tasks: dict[str, Any],
    flags: dict[str, Any],
    episodes: int,
    seed: int,
) -> int:
    """Evaluates the policy in several simulators and prints a table; the first one is MJX."""
    from jaxrl.evaluation import success_line
    from jaxrl.logs import readable
    from jaxrl.runs import evaluate_policy

    results = {}
    for name, env in tasks.items():
        results[name] = evaluate_policy(
            trained, episodes, seed, flags["set"], task=env, max_worlds=MAX_HOSTED
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
    _write_result({"simulators": results}, flags, trained.source.parent.parent, file)
    return 0


# -- one setting with several values ---------------------------------------------------


def _vary(path: str, flags: dict[str, Any]) -> int:
    """Evaluates a policy or baselines with each value of a setting, and prints a table."""
    from jaxrl.logs import readable
    from jaxrl.options import Raw, merge, nest
    from jaxrl.runs import load_policy

    episodes, seed = _sample(flags)
    scripted = bool(flags.get("baselines"))
    load: Any = _configured if scripted else load_policy
    play = _play_with_baselines if scripted else _play_with_policy
    key, values = _values(flags["vary"], _env(load(path, everywhere(flags["set"]))))
    changes = [merge(flags["set"], nest({key: Raw(value)})) for value in values]
    subjects = [load(path, everywhere(changed)) for changed in changes]  # all before any is played
    _prepare(flags, _env(subjects[0]), None, None, seed)
    print(f"{path}: {episodes} episodes for each value of {key}, seed {seed}")
    rows: dict[str, Any] = {}
    for value, subject in zip(values, subjects, strict=True):
        for name, result in play(subject, episodes, seed).items():
            means = {label: row["mean"] for label, row in result["summary"].items()}
            means["failure"] = result["failure"]
            first = [n for n in ("success", "failure", "return", "length") if n in means]
            final = [n for n in means if n.startswith("final/")]
            widths = {n: max(len(n), 9) for n in first + final}
            if not rows:
                print(f"{'':20}" + "".join(f" {n:>{width}}" for n, width in widths.items()))
            label = f"{value}, {name}" if name else value
            cells = "".join(f" {readable(means[n]):>{width}}" for n, width in widths.items())
            print(f"{label:20}{cells}", flush=True)
            rows[label] = result
    source = Path(path) if scripted else subjects[0].source.parent.parent
    _write_result({"varied": key, "rows": rows}, flags, source, f"vary-{key}.json")
    return 0


def _env(subject: Any) -> Any:
    """The task in evaluations of a trained policy or of a configuration."""
    return getattr(subject, "config", subject).eval_env


def _play_with_policy(trained: Any, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    from jaxrl.runs import evaluate_policy

    return {"": evaluate_policy(trained, episodes, seed)}


def _play_with_baselines(config: Any, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    return {
        name: _play_baseline(config.eval_env, actor, episodes, seed)
        for name, actor in baselines(config.eval_env).items()
    }


def _values(text: str, env: Any) -> tuple[str, list[str]]:
    """The key of --vary, and its values: those that are given, or all choices of the setting."""
    key, given, values = text.partition("=")
    name = key.removeprefix("env.")
    hint = typing.get_type_hints(type(env.unwrapped)).get(name)
    if not key.startswith("env.") or hint is None:
        raise UserError(f"--vary: got {key!r}, expected a setting of the task, such as env.NAME")
    if given:
        return key, values.split(",")
    if typing.get_origin(hint) is not Literal:
        raise UserError(f"--vary {key}: needs its values, such as --vary {key}=A,B")
    return key, [str(choice) for choice in typing.get_args(hint)]


# -- baselines -------------------------------------------------------------------------


def _evaluate_baselines(flags: dict[str, Any]) -> int:
    """Evaluates the baselines of a task, or of the task of a run."""
    from jaxrl.evaluation import format_summary
    from jaxrl.reporting.reading import BASELINES

    run, episodes, seed = Path(flags["baselines"]), *_sample(flags)
    config = _configured(str(run), everywhere(flags["set"]))
    env, results = config.eval_env, {}
    actors = baselines(env)
    filmed, actor = list(actors.items())[2 if len(actors) > 2 else 0]
    _prepare(flags, env, actor, None, seed, f" of {filmed}")
    for name, actor in actors.items():
        results[name] = _play_baseline(env, actor, episodes, seed)["summary"]
        print(f"\n{name}: {episodes} episodes")
        print(format_summary(results[name], env))
    result = {"task": config.task, "episodes": episodes, "seed": seed, "baselines": results}
    _write_result(result, flags, run, BASELINES)
    return 0


def _configured(path: str, changed: dict[str, Any]) -> Any:
    """The configuration of a run, or of a task by its name, with changed settings."""
    from jaxrl.config import read_yaml, resolve

    base: dict[str, Any] = {"env": {"name": path}}
    if (Path(path) / "config.yaml").exists():
        base = read_yaml(Path(path) / "config.yaml")
    return resolve(base, changed, platform="none")


def everywhere(changed: dict[str, Any]) -> dict[str, Any]:
    """Changed settings, in which those of the task hold in evaluations too."""
    return changed | {"eval_overrides": changed.get("env", {})}


def _sample(flags: dict[str, Any]) -> tuple[int, int]:
    """The number of episodes, and their seed."""
    return cli.parse_int(flags, "episodes", 100), cli.parse_int(flags, "seed", 0, minimum=0)


def _play_baseline(env: Any, actor: Any, episodes: int, seed: int) -> dict[str, Any]:
    import jax

    from jaxrl.evaluation import failures, play, summarize

    statistics, table = play(env, actor, None, episodes, jax.random.key(seed))
    return {
        "failure": failures(statistics, table, env),
        "summary": summarize(statistics, table),
    }


def baselines(env: Any) -> dict[str, Any]:
    """Actors by name: "zero", "random", and the scripted baselines of the task."""
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
