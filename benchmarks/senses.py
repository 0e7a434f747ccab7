"""Networks for special observations: a task that needs memory, and one that observes images.

  python benchmarks/senses.py --out runs --json senses.json [--seeds 3]

`Recall` shows a number in an episode's first step and asks for it in the last: a policy without
memory is no better than chance. `Chase` shows an image of a dot that must be moved to the middle.
Each row of the table is PPO with one network.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

import jaxrl
from jaxrl import ArraySpec, State, Task, cli, option
from jaxrl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recall(Task):
    """A cue, -1 or 1, is observed in the first step. The reward of the last step is the action
    times the cue. Success: this action has the cue's sign and more than half its size."""

    episode_length: int = option(10, "control steps of an episode", minimum=2)

    control_dt = 0.1
    success_criterion = "the last action is the cue, within a half"
    observation_parts: ClassVar[dict[str, int]] = {"cue": 1, "clock": 1}

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((1,), -1.0, 1.0)

    def reset(self, key: jax.Array) -> State:
        cue = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return self._state(cue, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        cue, step = state.physics
        last = step == self.episode_length - 1
        return self._state(cue, step + 1, jnp.where(last, cue * jnp.clip(action[0], -1, 1), 0.0))

    def _state(self, cue: jax.Array, step: jax.Array, reward: jax.Array) -> State:
        return State(
            physics=jnp.stack([cue, step]),
            obs=self.observe(cue=jnp.where(step == 0, cue, 0.0), clock=step / self.episode_length),
            reward=reward,
            terminated=jnp.zeros((), bool),
            metrics={"success": (reward > 0.5).astype(jnp.float32)},
            info=(),
        )


@dataclasses.dataclass(frozen=True)
class Chase(Task):
    """A dot is moved to the middle of an image. Success: at the end it is within two pixels."""

    size: int = option(16, "pixels along a side", minimum=4)
    episode_length: int = option(20, "control steps of an episode", minimum=1)

    control_dt = 0.1
    success_criterion = "at the end the dot is within two pixels of the middle"

    @property
    def observation_spec(self) -> ArraySpec:
        return ArraySpec((self.size, self.size, 1), 0, 255, dtype="uint8")

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((2,), -1.0, 1.0)

    def reset(self, key: jax.Array) -> State:
        return self._state(jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0))

    def step(self, state: State, action: jax.Array) -> State:
        return self._state(jnp.clip(state.physics + 0.2 * jnp.clip(action, -1, 1), -1.0, 1.0))

    def _state(self, place: jax.Array) -> State:
        distance = jnp.linalg.norm(place)
        centres = jnp.linspace(-1.0, 1.0, self.size)
        y, x = (jnp.exp(-0.5 * ((centres - at) * self.size / 3) ** 2) for at in place)
        return State(
            physics=place,
            obs=(255 * jnp.outer(y, x))[..., None].astype(jnp.uint8),
            reward=-distance,
            terminated=jnp.zeros((), bool),
            metrics={"success": (distance < 4 / self.size).astype(jnp.float32)},
            info=(),
        )


NETWORKS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    "Recall, mlp": (Recall, {}),
    "Recall, gru": (Recall, {"memory": "gru", "memory_size": 32}),
    "Chase, cnn": (Chase, {"image_channels": [8, 16], "image_features": 64}),
}


def main(argv: list[str]) -> int:
    _, flags, _ = cli.parse(argv, {"out": True, "json": True, "seeds": True})
    out, results = Path(flags.get("out", "runs")), []
    print("| task, network | success of the best model, each seed | control steps | seconds |")
    print("| --- | --- | --- | --- |")
    for name, (task, network) in NETWORKS.items():
        row = {"name": name, "success": [], "seconds": [], "steps": 0}
        for seed in range(cli.parse_int(flags, "seeds", 3)):
            started = time.monotonic()
            run = jaxrl.train(
                task,
                seed=seed,
                num_envs=64,
                total_timesteps=300_000,
                out=str(out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"),
                ppo={"num_steps": 20, "num_epochs": 4, "learning_rate": 2e-3, "network": network},
                eval={"every": 50_000, "best_by": "success_rate"},
                log={"tensorboard": False},
                progress=False,
            )
            row["success"].append(run.summary["success"]["mean"])
            row["seconds"].append(round(time.monotonic() - started, 1))
            row["steps"] = int(run.history["time/total_timesteps"][-1])
        shares = ", ".join(f"{share:.0%}" for share in row["success"])
        seconds = ", ".join(f"{value:.0f}" for value in row["seconds"])
        print(f"| {name} | {shares} | {row['steps']:,} | {seconds} |", flush=True)
        results.append(row)
    if flags.get("json"):
        from jaxrl.runs import hardware, write_json

        write_json(Path(flags["json"]), {"hardware": hardware(), "results": results})
    if not results:
        raise UserError("--seeds: nothing was trained")
    return 0


if __name__ == "__main__":
    cli.run(main)
