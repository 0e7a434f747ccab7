"""Pretraining of image encoders, as autoencoders of the images that a task observes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl.envs import Task
from jaxrl.errors import UserError
from jaxrl.logs import readable
from jaxrl.logs.sinks import CSVSink, TensorBoardSink
from jaxrl.nets.autoencoder import Autoencoder, FrozenEncoder
from jaxrl.nets.encoders import ONLY_PART, parts_of
from jaxrl.options import option

FIRST_FRAMES = 2048  # by which images are normalised
SECONDS = 5.0  # between two lines of progress
SHOWN = 6  # images in the picture of reconstructions


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of the pretraining of an image encoder."""

    seed: int = option(0, "seed of the parameters and the images", minimum=0)
    out: str | None = option(None, "folder for the results; default: encoders/<task>")
    part: str | None = option(None, "part of the observation to encode; default: its only image")
    data: str | None = option(
        None, "folder of images from jaxrl.collect; default: images of the starts of new episodes"
    )
    frames: int = option(100_000, "number of images to learn from", minimum=1)
    batch_size: int = option(128, "images in one update", minimum=1)
    eval_frames: int = option(2048, "images that the error is measured with", minimum=1)
    learning_rate: float = option(2e-3, "learning rate at the start; it falls to 0", greater_than=0)
    channels: tuple[int, ...] = option(
        (16, 32, 32), "channels of the convolutions, each of which halves the image", minimum=1
    )
    code_size: int = option(32, "size of the code", minimum=1)
    full: float = option(1.0, "what the largest value of a pixel stands for, in `unit`")
    unit: str | None = option(None, "unit of the error, such as m")


Frames = Callable[[jax.Array, int], jax.Array]  # (key, number N) -> images [N, H, W, C] in 0 to 1


class _State(struct.PyTreeNode):
    params: Any
    optimizer: Any


def image_part(task: Task, name: str | None) -> tuple[str, tuple[int, int, int], float]:
    """Name, shape and largest value of the image that a task observes.

    Args:
      task: the task.
      name: name of the part; None: the only image.

    Raises:
      UserError: there is no such image, or several.
    """
    images = {key: part for key, part in parts_of(task.observation_spec).items() if part.is_image}
    known = ", ".join(images) or "none"
    if not name and len(images) == 1:
        name = next(iter(images))
    if name not in images:
        raise UserError(
            f"part: got {name or 'nothing'}, expected an image that the task observes (it "
            f"observes: {known})"
        )
    part = images[name]
    return name, part.shape, 255.0 if part.dtype == "uint8" else 1.0  # type: ignore[return-value]


def of_starts(task: Task, part: str | None) -> Frames:
    """Images at the starts of new episodes, which are made when they are needed."""
    name, _, largest = image_part(task, part)

    def frames(key: jax.Array, count: int) -> jax.Array:
        obs = jax.vmap(lambda key: task.reset(key).obs)(jax.random.split(key, count))
        return (obs if name == ONLY_PART else obs[name]).astype(jnp.float32) / largest

    return frames


def of_shards(folder: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """The images of all shards in a folder [N, H, W, C], and the largest value of a pixel.

    Raises:
      UserError: there are none, or they have another shape.
    """
    files = sorted(folder.glob("images-*.npy"))
    try:
        shards = [np.load(file, allow_pickle=False) for file in files]
    except (OSError, ValueError) as error:
        raise UserError(f"data: cannot read the images in {folder}: {error}") from error
    if not shards:
        raise UserError(f"data: {folder} holds no images; python -m jaxrl.collect makes them")
    if {shard.shape[1:] for shard in shards} != {tuple(shape)}:
        raise UserError(
            f"data: the images in {folder} have the shape {list(shards[0].shape[1:])}, but those "
            f"of the task {list(shape)}"
        )
    images = np.concatenate(shards)
    return images, 255.0 if images.dtype == np.uint8 else 1.0


def pretrain(
    config: PretrainConfig,
    task: Task,
    eval_task: Task,
    folder: Path,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains an autoencoder, and writes its encoder, logs and pictures into a folder.

    Args:
      config: settings.
      task: the task whose images are learned.
      eval_task: the task with images that are not learned, for the error.
      folder: folder for encoder.npz, progress.csv, tensorboard/ and result.json's content.
      show: prints a line of progress.

    Returns:
      the result: errors, seconds, number of images.
    """
    started = time.monotonic()
    name, shape, _ = image_part(task, config.part)
    # Images that were collected are an argument of the program, and not a part of it.
    stored: Any = np.zeros((1, *shape), np.uint8)
    if config.data:
        stored, largest = of_shards(Path(config.data), shape)
    source = of_starts(task, name)

    def frames(stored: jax.Array, key: jax.Array, count: int) -> jax.Array:
        if not config.data:
            return source(key, count)
        rows = jax.random.randint(key, (count,), 0, len(stored))
        return stored[rows].astype(jnp.float32) / largest

    key_first, key_init, key_train, key_eval = jax.random.split(jax.random.key(config.seed), 4)
    stored = jnp.asarray(stored)
    first = jax.jit(frames, static_argnums=2)(stored, key_first, FIRST_FRAMES)
    mean = first.mean(0)
    std = jnp.maximum(jnp.sqrt(jnp.mean((first - mean) ** 2)), 1e-6)
    updates = -(-config.frames // config.batch_size)
    network = Autoencoder(config.channels, config.code_size, shape)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, updates))

    @jax.jit
    def init() -> _State:
        params = network.init(key_init, jnp.zeros((1, *shape)))
        return _State(params, optimizer.init(params))

    def decoded(params: Any, images: jax.Array) -> jax.Array:
        result: Any = network.apply(params, (images - mean) / std)
        return mean + std * result

    @jax.jit
    def run(state: _State, stored: jax.Array, start: jax.Array, count: jax.Array):
        def update(i, carry):
            state, total = carry
            images = frames(stored, jax.random.fold_in(key_train, i), config.batch_size)

            def loss(params):
                return jnp.mean(((decoded(params, images) - images) / std) ** 2)

            value, gradient = jax.value_and_grad(loss)(state.params)
            changes, new = optimizer.update(gradient, state.optimizer, state.params)
            return _State(optax.apply_updates(state.params, changes), new), total + value

        return jax.lax.fori_loop(start, start + count, update, (state, 0.0))

    held_out = jax.jit(of_starts(eval_task, name), static_argnums=1)(key_eval, config.eval_frames)
    error = jax.jit(lambda p: jnp.sqrt(jnp.mean((decoded(p, held_out) - held_out) ** 2)))
    constant = float(config.full * jnp.sqrt(jnp.mean((mean - held_out) ** 2)))
    sinks: list[Any] = [CSVSink(folder / "progress.csv"), TensorBoardSink(folder / "tensorboard")]
    state, done, count = init(), 0, 1
    unit = f" {config.unit}" if config.unit else ""
    rmse = constant
    while done < updates:
        began = time.monotonic()
        count = min(count, updates - done)
        state, total = run(state, stored, done, count)
        loss, seconds = float(total) / count, time.monotonic() - began
        speed = count * config.batch_size / seconds
        done += count
        images, rmse = done * config.batch_size, float(config.full * error(state.params))
        row = {"loss": loss, "eval/rmse": rmse, "images_per_second": speed}
        for sink in sinks:
            sink.write(images, {"time/total_timesteps": images, **row})
        show(
            f"{images:,}/{updates * config.batch_size:,} images  error {readable(rmse)}{unit}  "
            f"images/s {readable(speed)}"
        )
        if done > 1:  # the first call compiles
            count = max(int(count * SECONDS / seconds), 1)
    for sink in sinks:
        sink.close()
    encoder = FrozenEncoder.of(state.params, mean, std)
    encoder.save(folder / "encoder.npz")
    shown = held_out[:SHOWN]
    return {
        "rmse": rmse,
        "rmse_of_the_mean_image": constant,
        "unit": config.unit,
        "images": done * config.batch_size,
        "seconds": time.monotonic() - started,
        "originals": np.asarray(shown),
        "reconstructions": np.asarray(decoded(state.params, shown)),
    }
