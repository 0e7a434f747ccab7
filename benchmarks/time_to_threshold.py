"""Seconds until a return is reached: jaxrl, rejax and SBX, each with its own settings.

    python benchmarks/time_to_threshold.py --task pendulum --algo ppo --json ppo.json

`peers.py` gives all trainers the same settings; here each has its own: jaxrl has the task's
preset, the others have the settings that they publish for the task (`SETTINGS`). `rejax-tuned`
has the fastest settings of several that were tried here. rejax trains on the same task as jaxrl,
SBX on Gymnasium's environment with the same equations. Every trainer has a fresh process; the
processes take turns. After each turn the policy is evaluated on jaxrl's task, for all trainers in
the same way; this time is not counted. Seconds with compile count from the end of the imports.

rejax and SBX need their own virtual environment; the first run makes one in `--venv`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import peers

PACKAGES = ("rejax==0.1.3", "gymnax==0.0.9", "sbx-rl==0.28.0", "gymnasium>=1.4,<1.5")
TRAINERS = ("jaxrl", "rejax", "rejax-tuned", "sbx")

# Returns that only a skilled policy reaches. The ballbot gets about 300 for standing still, so
# 375 needs driving.
THRESHOLDS = {"pendulum": -200.0, "ballbot": 375.0}

# With the task's own penalty on jerky torque, a trainer that explores with a wide Gaussian does
# not learn.
ENV = {"ballbot": {"smooth_weight": 0.1}}

# Settings by task, algorithm and trainer. "turn": control steps between two evaluations.
SETTINGS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("pendulum", "ppo"): {
        "jaxrl": {"turn": 2048},
        "rejax": {
            "turn": 20_000,
            "action_limit": 2.0,
            "num_envs": 100,
            "num_steps": 100,
            "num_epochs": 10,
            "num_minibatches": 10,
            "learning_rate": 1e-3,
            "max_grad_norm": 10,
            "gamma": 0.995,
            "ent_coef": 0.0,
            "normalize_observations": True,
        },
        "rejax-tuned": {
            "turn": 2048,
            "num_envs": 32,
            "num_steps": 32,
            "num_epochs": 5,
            "num_minibatches": 8,
            "learning_rate": 3e-3,
            "max_grad_norm": 10,
            "gamma": 0.95,
            "ent_coef": 0.0,
            "normalize_observations": True,
            "normalize_rewards": True,
        },
        "sbx": {
            "turn": 4096,
            "num_envs": 4,
            "n_steps": 1024,
            "gamma": 0.9,
            "learning_rate": 1e-3,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    },
    ("pendulum", "sac"): {
        "jaxrl": {"turn": 200},
        "rejax": {
            "turn": 500,
            "action_limit": 2.0,
            "agent_kwargs": {"activation": "swish"},
            "num_envs": 1,
            "buffer_size": 10_000,
            "fill_buffer": 256,
            "batch_size": 256,
            "learning_rate": 0.01,
            "polyak": 0.98,
            "normalize_observations": True,
        },
        "rejax-tuned": {
            "turn": 200,
            "agent_kwargs": {"activation": "swish"},
            "num_envs": 1,
            "buffer_size": 10_000,
            "fill_buffer": 256,
            "batch_size": 128,
            "learning_rate": 3e-3,
            "polyak": 0.98,
            "normalize_observations": True,
        },
        "sbx": {"turn": 500, "num_envs": 1, "learning_rate": 1e-3},
    },
    ("ballbot", "ppo"): {
        "jaxrl": {"turn": 16_384, "num_envs": 64},
        "rejax-tuned": {
            "turn": 16_384,
            "action_limit": 2.5,
            "num_envs": 32,
            "num_steps": 32,
            "num_epochs": 4,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "max_grad_norm": 0.5,
            "gamma": 0.98,
            "ent_coef": 0.0,
            "normalize_observations": True,
        },
    },
    ("ballbot", "sac"): {
        "jaxrl": {"turn": 16_384},
        "rejax-tuned": {
            "turn": 16_384,
            "num_envs": 128,
            "buffer_size": 131_072,
            "fill_buffer": 8192,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "num_epochs": 16,
            "gamma": 0.98,
            "polyak": 0.95,
            "normalize_observations": True,
        },
    },
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--task", default="pendulum", choices=THRESHOLDS)
    add("--algo", default="ppo", choices=("ppo", "sac"))
    add("--trainers", nargs="+", default=TRAINERS, choices=TRAINERS)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--threshold", type=float, help="mean return to reach; default: that of the task")
    add("--turns", type=int, default=200, help="largest number of turns of a trainer")
    add("--episodes", type=int, default=128, help="episodes of an evaluation")
    add(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("TRAINER", "JSON"),
        help="settings that override those of a trainer",
    )
    add("--json", type=Path, help="file for the results")
    add("--venv", type=Path, default=Path.home() / ".cache" / "jaxrl" / "threshold")
    add("--worker", help=argparse.SUPPRESS)
    add("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threshold is None:
        args.threshold = THRESHOLDS[args.task]
    return args


def settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of each chosen trainer that has settings for the task."""
    known = SETTINGS[args.task, args.algo]
    chosen = {name: dict(known[name]) for name in args.trainers if name in known}
    for name, values in args.set:
        if name in chosen:
            chosen[name] |= json.loads(values)
    return chosen


# -- the main process --------------------------------------------------------------------


def race(args: argparse.Namespace, python: str, seed: int) -> dict[str, dict[str, Any]]:
    """Runs all trainers in turns with one seed, each until it reaches the threshold."""
    workers, reports = [], {}
    try:
        for name in settings(args):
            workers.append(peers.Worker(python, name, "--seed", str(seed)))
            reports[name] = [workers[-1].report()]
        for _ in range(args.turns):
            for worker in workers:
                rows = reports[worker.name]
                # At least two turns: the time to compile is the first one's excess over another.
                if len(rows) > 2 and max(r["return"] for r in rows[1:]) >= args.threshold:
                    continue
                rows.append(worker.turn())
                print(
                    f"seed {seed} {worker.name:11} {rows[-1]['timesteps']:>9} steps "
                    f"{rows[-1]['seconds']:7.2f} s   return {rows[-1]['return']:8.2f}",
                    flush=True,
                )
    finally:
        for worker in workers:
            worker.close()
    return peers.summary(reports, args.threshold)


def medians(races: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians over seeds, and the ratios of each trainer's times to those of the first trainer.

    The time of a run that does not reach the threshold counts as infinite, shown as None.
    """
    out: dict[str, Any] = {}
    for name in races[0]:
        reached = [race[name]["to_threshold"] or {} for race in races]
        row = {
            key: statistics.median(result.get(key, math.inf) for result in reached)
            for key in ("timesteps", "seconds_with_compile", "seconds_without_compile")
        }
        for key in ("compile_seconds", "steps_per_second"):
            row[key] = statistics.median(race[name][key] for race in races)
        out[name] = row
    first = next(iter(out.values()))
    for row in out.values():
        for key in ("seconds_with_compile", "seconds_without_compile"):
            finite = math.isfinite(row[key]) and math.isfinite(first[key])
            row[key.replace("seconds", "ratio")] = row[key] / first[key] if finite else None
    return {
        name: {key: None if value == math.inf else value for key, value in row.items()}
        for name, row in out.items()
    }


def show(results: dict[str, Any]) -> None:
    columns = {
        "timesteps": "steps",
        "seconds_with_compile": "s with",
        "ratio_with_compile": "ratio",
        "seconds_without_compile": "s without",
        "ratio_without_compile": "ratio",
        "compile_seconds": "compile s",
        "steps_per_second": "steps/s",
    }
    print("\n" + " " * 12 + "".join(f"{title:>12}" for title in columns.values()))
    for name, row in results.items():
        cells = ("-" if row[key] is None else f"{row[key]:.4g}" for key in columns)
        print(f"{name:12}" + "".join(f"{cell:>12}" for cell in cells))


# -- the trainers, each in its own process --------------------------------------------------


def work(args: argparse.Namespace) -> None:
    """The program of a worker: one trainer, which takes turns until the main process ends it."""
    trainer_settings = settings(args)[args.worker]
    turn = trainer_settings.pop("turn")
    train = {"jaxrl": train_jaxrl, "sbx": train_sbx}.get(args.worker, train_rejax)
    train(args, turn, trainer_settings)


def run_config(args: argparse.Namespace, layer: dict[str, Any]) -> Any:
    """jaxrl's configuration: the task with this benchmark's settings, its preset, and `layer`."""
    from jaxrl import config, platform

    env = {"name": args.task, **ENV.get(args.task, {})}
    device = "cpu" if platform.target() == "cpu" else "gpu"
    return config.resolve({"env": env}, layer, platform=device)


def train_jaxrl(args: argparse.Namespace, turn: int, settings: dict[str, Any]) -> None:
    import jax

    from jaxrl.runs import make_algorithm
    from jaxrl.runtime.compiled import iterate

    config = run_config(args, {"algo": args.algo, **settings})
    turns = peers.Turns(config.env, args.episodes)
    algo = make_algorithm(config)
    peers.train_chunks(
        turns,
        (
            lambda s, _: iterate(algo, s),
            lambda s: s.policy,
            lambda params, obs: algo.policy(params, obs)[0],
        ),
        lambda: algo.init(jax.random.key(args.seed)),
        chunks=args.turns,
        iterations=max(1, turn // algo.batch_size),
        batch_size=algo.batch_size,
    )


def train_rejax(args: argparse.Namespace, turn: int, settings: dict[str, Any]) -> None:
    import jax
    from rejax_adapter import Rejax

    task = run_config(args, {}).env
    turns = peers.Turns(task, args.episodes)
    algo = Rejax(args.algo, task, **settings)
    peers.train_chunks(
        turns,
        (algo.update, algo.policy, algo.act),
        lambda: algo.init(jax.random.PRNGKey(args.seed)),
        chunks=args.turns,
        iterations=max(1, turn // algo.batch_size),
        batch_size=algo.batch_size,
    )


def train_sbx(args: argparse.Namespace, turn: int, settings: dict[str, Any]) -> None:
    """SBX on Gymnasium's Pendulum-v1, with one call of `learn` per turn."""
    import jax.numpy as jnp
    import sbx
    from stable_baselines3.common.env_util import make_vec_env

    turns = peers.Turns(run_config(args, {}).env, args.episodes)
    env = make_vec_env("Pendulum-v1", settings.pop("num_envs"), seed=args.seed)
    model = getattr(sbx, args.algo.upper())("MlpPolicy", env, seed=args.seed, **settings)
    # Actions of SBX's PPO are in N m and clipped, those of its SAC are shares of the limit.
    limit = env.action_space.high if args.algo == "ppo" else 1.0
    apply = model.policy.actor_state.apply_fn

    def act(params, obs):
        return jnp.clip(apply(params, obs).mode() / limit, -1, 1)

    turns(0, act, model.policy.actor_state.params)
    for _ in range(args.turns):
        model.learn(turn, reset_num_timesteps=False)
        turns(model.num_timesteps, act, model.policy.actor_state.params)


def main() -> None:
    args = arguments()
    if args.worker:
        work(args)
        return
    python = peers.peer_python(args.venv, "rejax", *PACKAGES)
    races = [race(args, python, seed) for seed in args.seeds]
    results = medians(races)
    show(results)
    if args.json:
        from jaxrl.runs import hardware, write_json

        report = {
            "hardware": hardware(),
            "task": args.task,
            "algo": args.algo,
            "threshold": args.threshold,
            "episodes": args.episodes,
            "settings": settings(args),
            "medians": results,
            "seeds": dict(zip(map(str, args.seeds), races)),
        }
        write_json(args.json, report)


if __name__ == "__main__":
    main()
