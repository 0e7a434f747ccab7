"""`python -m jaxrl.collect`: save the images that a task observes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.files import check_writable, replacing
from jaxrl.options import merge

USAGE = """\
usage: python -m jaxrl.collect TASK_OR_RUN --out DIR [options] [--env.SETTING VALUE ...]

Plays episodes and saves the images that are observed in them, for jaxrl.pretrain. TASK_OR_RUN
is the name of a task, or the folder of a run or checkpoint, whose policy then acts.

  --out DIR       folder for the images: images-0000.npy, ..., bytes [N, height, width, channels]
  --frames N      number of images; default: 20000
  --every N       control steps from one saved image of a world to the next; default: 10
  --num_envs N    number of worlds; default: 64
  --actor NAME    who acts in a task: random (the default), zero, or one of its baselines
  --part NAME     part of the observation; default: its only image
  --seed N        seed of the episodes; default: 0
"""
SHARD = 4096  # images in a file

FLAGS = {
    "out": True,
    "frames": True,
    "every": True,
    "num_envs": True,
    "actor": True,
    "part": True,
    "seed": True,
    "help": False,
}


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(argv, FLAGS, settings=True)
    if flags.get("help"):
        print(USAGE)
        return 0
    if len(positionals) != 1 or "out" not in flags:
        raise UserError("expected one task or run, and --out DIR (see --help)")
    if wrong := set(settings) - {"env"}:
        raise UserError(f"unknown argument --{min(wrong)} (settings of the task are --env.NAME)")
    folder = Path(flags["out"])
    if next(folder.glob("images-*.npy"), None):
        raise UserError(f"--out: {folder} already holds images; choose another folder")
    check_writable(folder / "images-0000.npy")
    cli.start_jax()
    images = _collect(positionals[0], flags, settings, folder)
    print(f"{images:,} images written to {folder}/")
    return 0


def _collect(name: str, flags: dict[str, Any], settings: dict[str, Any], folder: Path) -> int:
    """Plays, and writes the shards; returns the number of images."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl.envs import Vector, select
    from jaxrl.nets.encoders import ONLY_PART
    from jaxrl.pretraining import image_part
    from jaxrl.runs import hardware, write_json

    task, actor, params = _actor(name, flags.get("actor", "random"), settings)
    part, shape, _ = image_part(task, flags.get("part"))
    count, every = cli.parse_int(flags, "num_envs", 64), cli.parse_int(flags, "every", 10)
    wanted = cli.parse_int(flags, "frames", 20_000)
    vector = Vector(task, count)

    def play(envs, memory, key):
        """`every` control steps; the images after them."""

        def step(carry, key):
            envs, memory = carry
            action, memory = actor.act(params, envs.worlds, memory, key)
            envs, step = vector.step(envs, action)
            ended = step.terminated | step.truncated
            memory = select(ended, jax.tree.map(jnp.zeros_like, memory), memory)
            return (envs, memory), None

        carry, _ = jax.lax.scan(step, (envs, memory), jax.random.split(key, every))
        obs = carry[0].obs
        return *carry, obs if part == ONLY_PART else obs[part]

    key_start, key = jax.random.split(jax.random.key(cli.parse_int(flags, "seed", 0, minimum=0)))
    envs, memory = jax.jit(vector.init)(key_start), actor.memory(count)
    run: Any = jax.jit(play)
    shards, waiting, written, told = 0, [], 0, time.monotonic()
    while written < wanted:
        key, now = jax.random.split(key)
        envs, memory, images = run(envs, memory, now)
        waiting.append(np.asarray(images))
        full = sum(map(len, waiting))
        if full >= min(SHARD, wanted - written):
            rows = np.concatenate(waiting)[: wanted - written]
            with replacing(folder / f"images-{shards:04}.npy") as path, path.open("wb") as file:
                np.save(file, rows)
            shards, waiting, written = shards + 1, [], written + len(rows)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{written + sum(map(len, waiting)):,}/{wanted:,} images", file=sys.stderr)
    task.check_engine()
    facts = {"source": name, "part": part, "shape": list(shape), "images": written}
    write_json(folder / "images.json", facts | {"hardware": hardware()})
    return written


def _actor(name: str, actor: str, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The task, who acts in it, and the parameters of the actor."""
    from jaxrl import assets, envs
    from jaxrl.commands.evaluate import baselines, everywhere
    from jaxrl.config import resolve
    from jaxrl.runs import load_policy

    if name not in envs.names() and assets.find(Path(name), "checkpoints").exists():
        trained = load_policy(name, everywhere(settings))
        return trained.config.env, trained.actor, trained.params
    env = resolve(merge({"env": {"name": name}}, settings), platform="none").env
    actors = baselines(env)
    if actor not in actors:
        raise UserError(f"--actor: got {actor!r}, expected one of {', '.join(actors)}")
    return env, actors[actor], None
