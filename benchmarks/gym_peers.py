"""Compares jaxrl on Gymnasium environments with Stable-Baselines3 and SBX, with equal settings.

    python benchmarks/gym_peers.py --json gym_peers.json

Every run has its own process; for each seed the trainers take turns. Seconds count from the end
of the imports to the end of training, including compilation. The return is the mean over 20
episodes of the deterministic policy, played by the same loop for all; their time is not counted.

Stable-Baselines3 and SBX (and imageio for the MuJoCo tasks) need their own virtual environment;
the first run makes one in `--venv`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers

PACKAGES = ("sbx-rl==0.28.0", "stable-baselines3>=2.9,<2.10", "imageio>=2.35")
TRAINERS = ("jaxrl", "sbx", "sb3")
EPISODES = 20

# Settings by the names of Stable-Baselines3 and SBX. All others have their defaults there; jaxrl's
# settings are set to the same values.
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("Pendulum-v1", "ppo"): {
        "timesteps": 100_000,
        "num_envs": 4,
        "n_steps": 1024,
        "batch_size": 128,
        "n_epochs": 10,
        "gamma": 0.9,
        "learning_rate": 1e-3,
    },
    ("InvertedPendulum-v5", "ppo"): {
        "timesteps": 60_000,
        "num_envs": 4,
        "n_steps": 256,
        "batch_size": 64,
        "n_epochs": 10,
        "gamma": 0.99,
        "learning_rate": 1e-3,
    },
    ("Pendulum-v1", "sac"): {
        "timesteps": 10_000,
        "num_envs": 1,
        "learning_rate": 1e-3,
        "learning_starts": 1_000,
        "buffer_size": 100_000,
    },
    ("InvertedPendulum-v5", "sac"): {
        "timesteps": 15_000,
        "num_envs": 1,
        "learning_rate": 3e-4,
        "learning_starts": 1_000,
        "buffer_size": 100_000,
    },
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    add("--tasks", nargs="+", default=sorted({task for task, _ in SETTINGS}))
    add("--algos", nargs="+", default=["ppo", "sac"], choices=["ppo", "sac"])
    add("--json", type=Path, help="file for the results")
    add("--venv", type=Path, default=Path.home() / ".cache" / "jaxrl" / "gym_peers")
    add("--worker", nargs=4, help=argparse.SUPPRESS)  # trainer, task, algorithm, seed
    return parser.parse_args()


# -- the runs, each in its own process ------------------------------------------------------


def run_jaxrl(task: str, algo: str, seed: int) -> tuple[float, Any]:
    """Trains; returns seconds, and the policy: observation [O] -> the environment's action [A]."""
    import jax
    import numpy as np

    from jaxrl.bridge.worker import Guard
    from jaxrl.config import resolve
    from jaxrl.trainer import Trainer

    s = SETTINGS[task, algo]
    started = time.monotonic()
    config = resolve(
        {
            "env": {"gym": task},
            "algo": algo,
            "seed": seed,
            "num_envs": s["num_envs"],
            "total_timesteps": s["timesteps"],
            "chunk": 1,
            algo: _settings(algo, s),
            "eval": {"every": 0, "final_episodes": 0},
            "checkpoint": {"every": 0},
            "log": {"console": False, "tensorboard": False},
        },
        platform="none",  # no preset
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder))
        trainer.run()
        jax.block_until_ready(trainer.state.policy)
    seconds = time.monotonic() - started
    policy, env = jax.jit(trainer.algo.policy), Guard(task, {})
    return seconds, lambda obs: env._native(policy(trainer.state.policy, np.float32(obs))[0])


def _settings(algo: str, s: dict[str, Any]) -> dict[str, Any]:
    """The other libraries' settings of an algorithm, by jaxrl's names."""
    settings = {"learning_rate": s["learning_rate"], "normalize_observation": False}
    if algo == "ppo":
        return settings | {
            "num_steps": s["n_steps"],
            "num_epochs": s["n_epochs"],
            "num_minibatches": s["n_steps"] * s["num_envs"] // s["batch_size"],
            "gamma": s["gamma"],
        }
    return settings | {
        "critic_learning_rate": s["learning_rate"],
        "temperature_learning_rate": s["learning_rate"],
        "initial_temperature": 1.0,
        "learning_starts": s["learning_starts"],
        "buffer_size": s["buffer_size"],
        "num_steps": 500,
        "gradient_steps": 1,
    }


def run_peer(trainer: str, task: str, algo: str, seed: int) -> tuple[float, Any]:
    """As `run_jaxrl`."""
    from stable_baselines3.common.env_util import make_vec_env

    library = __import__({"sb3": "stable_baselines3", "sbx": "sbx"}[trainer])
    settings = dict(SETTINGS[task, algo])
    started = time.monotonic()
    envs = make_vec_env(task, n_envs=settings.pop("num_envs"), seed=seed)
    timesteps = settings.pop("timesteps")
    model = getattr(library, algo.upper())("MlpPolicy", envs, seed=seed, **settings)
    model.learn(timesteps)
    return time.monotonic() - started, lambda obs: model.predict(obs, deterministic=True)[0]


def work(trainer: str, task: str, algo: str, seed: str) -> None:
    import gymnasium
    import numpy as np

    if trainer == "jaxrl":
        import jaxrl.trainer  # noqa: F401  before the clock starts
    else:
        import sbx  # noqa: F401
        import stable_baselines3  # noqa: F401
    run = run_jaxrl if trainer == "jaxrl" else lambda *args: run_peer(trainer, *args)
    seconds, act = run(task, algo, int(seed))
    env, returns = gymnasium.make(task), []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=10_000 + episode)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    print(peers.MARK + json.dumps({"seconds": seconds, "return": float(np.mean(returns))}))


# -- the main process ---------------------------------------------------------------------------


def run(python: str, *names: str) -> dict[str, float]:
    """Runs a trainer in a fresh process."""
    env = peers.worker_environment()
    out = subprocess.run(
        [python, sys.argv[0], "--worker", *names], env=env, stdout=subprocess.PIPE, text=True
    )
    lines = [line for line in out.stdout.splitlines() if line.startswith(peers.MARK)]
    if out.returncode or not lines:
        raise RuntimeError(f"{' '.join(names)} ended with status {out.returncode}")
    return json.loads(lines[-1].removeprefix(peers.MARK))


def main() -> None:
    args = arguments()
    if args.worker:
        work(*args.worker)
        return
    python = peers.peer_python(args.venv, "sbx", *PACKAGES)
    results: dict[str, Any] = {}
    for task, algo in [key for key in SETTINGS if key[0] in args.tasks and key[1] in args.algos]:
        rows: dict[str, list] = {trainer: [] for trainer in args.trainers}
        for seed in range(args.seeds):
            for trainer in args.trainers:
                rows[trainer].append(run(python, trainer, task, algo, str(seed)))
        first = rows[args.trainers[0]]
        print(f"\n{task}, {algo}, {SETTINGS[task, algo]['timesteps']} steps, {args.seeds} seeds")
        print(f"{'':8}{'return':>10}{'worst':>10}{'seconds':>10}{'ratio':>8}")
        for trainer, runs in rows.items():
            returns = [row["return"] for row in runs]
            seconds = statistics.median(row["seconds"] for row in runs)
            ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, first))
            results[f"{task} {algo} {trainer}"] = {"runs": runs, "seconds_ratio": ratio}
            print(
                f"{trainer:8}{statistics.mean(returns):10.1f}{min(returns):10.1f}"
                f"{seconds:10.1f}{ratio:8.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
