"""Seconds until a robot's task is learned on a CPU: jaxrl, and what one would use instead.

    python benchmarks/robot_peers.py --task franka_reach --json robot_peers.json

* jaxrl: `python -m jaxrl.train` with the task's preset.
* sb3, sbx: their PPO on the same task through Gymnasium, in as many processes as there are cores.
* brax: its PPO on the same task, stepped by MJX with this project's changes.

All have the preset's settings (networks, batches, epochs, learning rate, normalised observations),
an empty compile cache, and the machine for themselves, one after the other. Seconds count from the
start of Python to the first evaluation of 100 episodes whose success reaches the bar; the time of
evaluations is not counted, except for jaxrl. Stable-Baselines3, SBX and Brax need their own virtual
environment; the first run makes one in `--venv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers

PACKAGES = ("sbx-rl==0.28.0", "stable-baselines3>=2.9,<2.10", peers.BRAX)
TRAINERS = ("jaxrl", "sbx", "sb3", "brax")
EPISODES = 100


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--task", default="franka_reach")
    add("--bar", type=float, default=0.95, help="share of successful episodes")
    add("--every", type=int, default=50_000, help="control steps between evaluations")
    add("--steps", type=int, help="control steps of the others; default: as in the preset")
    add("--limit", type=float, default=1200, help="seconds after which a trainer is stopped")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    add("--json", type=Path, help="file for the results")
    add("--venv", type=Path, default=Path.home() / ".cache" / "jaxrl" / "robot_peers")
    add("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- the main process ----------------------------------------------------------------------


def main() -> None:
    args = arguments()
    if args.worker:
        work(args, args.worker[0], int(args.worker[1]))
        return
    python = peers.peer_python(args.venv, "sbx", *PACKAGES)
    results: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in args.trainers}
    for seed in args.seeds:
        for trainer in args.trainers:
            if trainer == "jaxrl":
                curve = run_jaxrl(args, seed)
            else:
                curve = run_peer(args, trainer, seed, python)
            done = curve and curve[-1]["success"] >= args.bar
            results[trainer].append({"seed": seed, "learned": bool(done), "curve": curve})
            last = curve[-1] if curve else {}
            print(trainer, "seed", seed, "learned" if done else "not learned", last, flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))


def run_jaxrl(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "jaxrl.train", "--env", args.task, f"--seed={seed}"]
        command += [f"--eval.every={args.every}", f"--eval.stop_at={args.bar}", "--out", str(out)]
        command += [f"--eval.episodes={EPISODES}", "--eval.final_episodes=0"]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache")}
        begun = time.time()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        whole = time.time() - begun
        rows = list(csv.DictReader((out / "progress.csv").open()))
    # The log counts from the start of training; what comes before and after is added to all rows.
    before = whole - float(rows[-1]["time/time_elapsed"])
    return [
        point(r["time/total_timesteps"], before + float(r["time/time_elapsed"]), success)
        for r in rows
        if (success := r.get("eval/success_rate"))
    ]


def run_peer(args: argparse.Namespace, name: str, seed: int, python: str) -> list[dict[str, Any]]:
    curve = []
    with tempfile.TemporaryDirectory() as cache:
        environment = peers.worker_environment() | {"JAX_COMPILATION_CACHE_DIR": cache}
        command = [python, *sys.argv, "--worker", name, str(seed)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            for line in process.stdout:
                if line.startswith(peers.MARK):
                    curve.append(json.loads(line.removeprefix(peers.MARK)))
                    print(name, curve[-1], flush=True)
                    if curve[-1]["success"] >= args.bar or curve[-1]["seconds"] > args.limit:
                        os.killpg(process.pid, 9)
    return curve


def point(steps: Any, seconds: float, success: Any) -> dict[str, Any]:
    return {"steps": int(float(steps)), "seconds": seconds, "success": float(success)}


# -- a trainer's process -------------------------------------------------------------------


def work(args: argparse.Namespace, trainer: str, seed: int) -> None:
    clock = Clock(args.task)
    if trainer == "brax":
        train_brax(args, seed, clock)
    else:
        train_gym(args, trainer, seed, clock)


class Clock:
    """Reports steps, seconds without evaluations, and success."""

    def __init__(self, task: str):
        self.begun, self.evaluating = time.time() - peers.process_age(), 0.0
        self._task, self._worlds = task, None

    def report(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> None:
        start = time.time()
        success = self._success(act)
        row = point(steps, start - self.begun - self.evaluating, success)
        self.evaluating += time.time() - start
        print(peers.MARK + json.dumps(row), flush=True)

    def _success(self, act: Callable[[np.ndarray], np.ndarray]) -> float:
        """Share of successful episodes under `act`, from observations [N, D] to actions [N, A]."""
        import gymnasium

        from jaxrl.bridge.gym_out import gym_id

        if self._worlds is None:
            self._worlds = gymnasium.make_vec(gym_id(self._task), num_envs=EPISODES)
        obs, _ = self._worlds.reset(seed=10_000)
        open_, success = np.ones(EPISODES, bool), np.zeros(EPISODES)
        while open_.any():
            obs, _, terminated, truncated, info = self._worlds.step(act(obs))
            ended = open_ & (terminated | truncated)
            if ended.any():
                success[ended] = info["is_success"][ended]
            open_ &= ~ended
        return success.mean()


def train_gym(args: argparse.Namespace, trainer: str, seed: int, clock: Clock) -> None:
    """PPO of Stable-Baselines3 or SBX."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

    from jaxrl.bridge.gym_out import gym_id
    from jaxrl.config import resolve

    library = __import__({"sb3": "stable_baselines3", "sbx": "sbx"}[trainer])
    train = resolve({"env": {"name": args.task}}, platform="cpu").train
    c, count = train.settings, os.cpu_count()
    batch = train.num_envs * c.num_steps
    envs = make_vec_env(f"jaxrl:{gym_id(args.task)}", count, seed=seed, vec_env_cls=SubprocVecEnv)
    envs = VecNormalize(envs, norm_reward=c.normalize_reward, gamma=c.gamma)
    final = c.schedule.final if c.schedule.kind == "linear" else 1.0
    networks = {"pi": list(c.network.policy_hidden), "vf": list(c.network.value_hidden)}
    model = library.PPO(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: c.learning_rate * (final + (1 - final) * left),
        n_steps=batch // count,
        batch_size=batch // c.num_minibatches,
        n_epochs=c.num_epochs,
        gamma=c.gamma,
        gae_lambda=c.gae_lambda,
        clip_range=c.clip_range,
        ent_coef=c.entropy_coef,
        vf_coef=c.value_coef,
        max_grad_norm=c.max_grad_norm,
        seed=seed,
        policy_kwargs={
            "net_arch": networks,
            "log_std_init": float(np.log(c.network.initial_std)),
            "activation_fn": activation(trainer, c.network.activation),
        },
        **({"device": "cpu"} if trainer == "sb3" else {}),
    )

    class Judge(BaseCallback):
        judged = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # after the updates with the rollout before
            if self.num_timesteps - self.judged >= args.every:
                self.judged = self.num_timesteps
                clock.report(
                    self.num_timesteps,
                    lambda obs: model.predict(envs.normalize_obs(obs), deterministic=True)[0],
                )

    model.learn(args.steps or train.total_timesteps, Judge())


def activation(trainer: str, name: str) -> Any:
    if trainer == "sbx":
        from jaxrl.nets.mlp import ACTIVATIONS

        return ACTIVATIONS[name]
    from torch import nn

    return {"tanh": nn.Tanh, "swish": nn.SiLU, "relu": nn.ReLU, "elu": nn.ELU}[name]


def train_brax(args: argparse.Namespace, seed: int, clock: Clock) -> None:
    import dataclasses

    import brax_adapter
    import jax

    from jaxrl.config import resolve

    config = resolve({"env": {"name": args.task}}, platform="cpu")
    task = dataclasses.replace(config.env, engine="mjx")
    train = config.train
    settings = brax_adapter.brax_settings(train.settings, task, train.num_envs)

    def after(steps: int, make_policy: Callable, params: Any) -> None:
        if not steps:
            return
        policy = jax.jit(make_policy(params, deterministic=True))
        clock.report(steps, lambda obs: np.asarray(policy(obs, jax.random.key(0))[0]))

    steps = args.steps or train.total_timesteps
    brax_adapter.train_brax(
        settings, timesteps=steps, chunks=steps // args.every, seed=seed, after=after
    )


if __name__ == "__main__":
    main()
