"""Populations: one run, or several runs (seeds, a grid of traced settings) in one program."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import devices, platform
from jaxrl.algos import ALGORITHMS
from jaxrl.config import MAX_MEMBERS, RunConfig, TrainConfig
from jaxrl.envs.vector import MEMBERS_AXIS
from jaxrl.errors import UserError
from jaxrl.evaluation import Actor
from jaxrl.options import build, traced
from jaxrl.pbt import Evolution
from jaxrl.runs import make_algorithm
from jaxrl.runtime import Evaluator
from jaxrl.runtime.compiled import iterate


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a population.

    Attributes:
      name: name of its folder, such as "learning_rate=0.001,seed=0"; empty for a single run.
      config: configuration of this member as a single run.
    """

    name: str
    config: RunConfig


def members(config: RunConfig) -> list[Member]:
    """Returns the runs that `num_seeds` and `sweep` define.

    Raises:
      UserError: a swept setting is not a traced number, a value is wrong, two runs are the
        same, or there are too many runs.
    """
    train = config.train
    if not config.is_population:
        return [Member("", config)]
    runs = []
    for point in itertools.product(*_axes(train)):
        values = {key.rpartition(".")[2]: value for pairs in point for key, value in pairs}
        seed = values.pop("seed")
        settings = build(type(train.settings), values, f"{train.algo}.", default=train.settings)
        changes: dict[str, Any] = {"seed": seed, "num_seeds": 1, "sweep": (), train.algo: settings}
        single = dataclasses.replace(train, **changes)
        values = {key: vars(settings)[key] for key in values} | {"seed": seed}
        name = ",".join(f"{key}={value}" for key, value in values.items())
        runs.append(Member(name, dataclasses.replace(config, train=single)))
    if len({member.name for member in runs}) < len(runs):
        raise UserError(
            f"sweep: got {list(train.sweep)}, where two runs are the same; remove repeated values"
        )
    return runs


def _axes(train: TrainConfig) -> list[list[tuple[tuple[str, Any], ...]]]:
    """For each axis of the grid, its points: the (setting, value) pairs of each."""
    axes: list[list[tuple[tuple[str, Any], ...]]] = [
        _axis(text, train.algo) for text in train.sweep
    ]
    keys = [key for axis in axes for key, _ in axis[0]]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UserError(
            f"sweep: got {twice[0]} twice; give all its values in one KEY=VALUE,VALUE.."
        )
    axes.append([(("seed", train.seed + i),) for i in range(train.num_seeds)])
    if math.prod(map(len, axes)) > MAX_MEMBERS:
        raise UserError(
            f"sweep, num_seeds: {' x '.join(f'{len(axis):,}' for axis in axes)} runs, must be at "
            f"most {MAX_MEMBERS:,}"
        )
    return axes


def _axis(text: str, algo: str) -> list[tuple[tuple[str, str], ...]]:
    """The points of an axis, such as two for "ppo.gamma=.9,.99" and for
    "ppo.gamma:ppo.clip_range=.9:.1,.99:.2"."""
    name, _, values = text.partition("=")
    keys, known = name.split(":"), sweepable(algo)
    if not set(keys) <= set(known):
        raise UserError(
            f"sweep: got {text!r}, expected KEY=VALUE,VALUE.. with one of {', '.join(known)} "
            "(other settings change the program: start a separate run for each value)"
        )
    points = [tuple(map(str.strip, point.split(":"))) for point in values.split(",")]
    points = [point for point in points if any(point)]
    if not points or any(len(point) != len(keys) or not all(point) for point in points):
        example = f"{name}={':'.join('1' for _ in keys)},{':'.join('2' for _ in keys)}"
        raise UserError(f"sweep: got {text!r}, expected values, such as {example}")
    return [tuple(zip(keys, point, strict=True)) for point in points]


def sweepable(algo: str) -> list[str]:
    """The settings of an algorithm in which the members of a population can differ."""
    return [f"{algo}.{name}" for name in traced(ALGORITHMS[algo].Config)]


class Population:
    """The runs of a configuration, as one program.

    A single run is traced directly; several runs are one `vmap`, each with its own seed and
    traced settings. Counters that are the same for all members are stored once, so that
    conditionals on them are not turned into selections; all other arrays of several runs begin
    with the member axis [M].

    Args:
      config: configuration of the run.

    Attributes:
      memory: least number of bytes on a device for each part of training.
      evolution: how the members' settings evolve (`pbt`); None: they do not.

    Raises:
      UserError: settings do not fit together, or do not fit the device.
    """

    def __init__(self, config: RunConfig):
        self._count = math.prod(map(len, _axes(config.train)))
        self._is_single = not config.is_population
        self.runtime = config.env.runtime()
        if not self._is_single and not self.runtime.trains_populations:
            raise UserError(
                f"num_seeds, sweep: {config.task} can train only one run at a time; start a "
                "separate run for each member"
            )
        self.runtime.check(config.task)
        try:
            self.algo = make_algorithm(config, members=len(self))
            self._init_one = jax.jit(self.algo.init, inline=True)  # traced once for both uses
            hyper = self.algo.hyperparameters()
            shapes = jax.eval_shape(self._init_one, jax.random.key(0), hyper)
        except OverflowError as error:
            raise UserError(
                f"env: with these settings {config.task} has numbers that int32 cannot hold: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self.evolution = self._evolution(config)
        self.memory = self._check_memory(config, shapes)
        self.members = members(config)
        self._axes = self.algo.shared(jax.tree.map(lambda _: 0, shapes))
        self.mesh = devices.mesh(self.algo.devices)
        # Members have an axis of their own before that of the worlds.
        self._specs = jax.tree.map(
            lambda axis: devices.spec(axis + (not self._is_single) * (axis >= 0)),
            self.algo.worlds_axes(shapes),
        )

    def __len__(self) -> int:
        return self._count

    def _evolution(self, config: RunConfig) -> Evolution | None:
        """How the members' settings evolve; None: they do not.

        Raises:
          UserError: they cannot.
        """
        train = config.train
        if not train.pbt.settings:
            return None
        if len(self) < 4 or train.sweep:
            raise UserError("pbt.settings: needs num_seeds of at least 4, and no sweep")
        return Evolution(train.pbt, train.algo, traced(type(train.settings)))

    def _check_memory(self, config: RunConfig, shapes: Any) -> dict[str, int]:
        """Returns the least number of bytes on the device for each part of training.

        Raises:
          UserError: the device has less free memory; none has been allocated yet.
        """
        free = platform.free_bytes()
        needs = {
            part: (len(self) * need, lower) for part, (need, lower) in self._needs(config, shapes)
        }
        memory = {part: need for part, (need, _) in needs.items()}
        if jax.tree.leaves(shapes.replay):
            memory["replay"] = len(self) * platform.tree_bytes(shapes.replay)
            if free is not None:
                self._check_replay(config, memory["replay"], free)
        if free is None:
            return memory
        total = sum(need for need, _ in needs.values())
        if total > free:
            each = ", ".join(f"{part} {need / 1e9:,.1f}" for part, (need, _) in needs.items())
            lower = max(needs.values())[1]
            raise UserError(
                f"{lower.partition(',')[0]}: training takes at least {total / 1e9:,.1f} GB "
                f"({each}), but {free / 1e9:,.1f} GB are free on the device; lower {lower}"
                f"{'' if self._is_single else ', num_seeds or sweep'}"
            )
        return memory

    def _needs(self, config: RunConfig, shapes: Any) -> Iterator[tuple[str, tuple[int, str]]]:
        """Yields (part of training, (minimum bytes for a member, settings that determine them))."""
        yield from self.algo.memory_needs(shapes)
        train = config.train
        settings = train.eval
        episodes = max(settings.episodes if config.eval_every else 0, settings.final_episodes)
        if need := episodes and config.eval_env.runtime().evaluation_bytes(episodes):
            yield "evaluation", (need, "eval.episodes, eval.final_episodes")

    def _check_replay(self, config: RunConfig, need: int, free: int) -> None:
        copied = platform.target() == "cpu" and config.train.checkpoint.replay
        if copied:  # on other devices, the copy is in the host's memory
            need *= 2
        if need > free:
            name, size = config.train.algo, vars(config.train.settings)["buffer_size"]
            members = "" if self._is_single else f" x {len(self)} members"
            raise UserError(
                f"{name}.buffer_size: {size:,} control steps{members} take {need / 1e9:,.1f} GB, "
                f"{'with the copy that a checkpoint is written from, ' if copied else ''}but "
                f"{free / 1e9:,.1f} GB are free on the device; about "
                f"{int(size * free / need):,} steps fit ({name}.storage bfloat16 halves their size)"
            )

    def hyperparameters(self) -> Any:
        """Returns the traced settings of all members, leaves [M]; of a single run, []."""
        each = [self.algo.hyperparameters(member.config.train.settings) for member in self.members]
        if self.evolution:
            for member, hyper in zip(self.members, each, strict=True):
                for name in self.evolution.limits:
                    value = self.evolution.start(name, member.config.train.seed)
                    hyper[name] = jnp.asarray(value, jnp.float32)
        return each[0] if self._is_single else jax.tree.map(lambda *x: jnp.stack(x), *each)

    def seeds(self) -> jax.Array:
        """Returns the PRNG keys of the members' seeds, [M]; of a single run, []."""
        keys = [jax.random.key(member.config.train.seed) for member in self.members]
        return keys[0] if self._is_single else jnp.stack(keys)

    def init(self) -> Any:
        """Returns the training state at the start."""
        init = self._init_one
        if not self._is_single:
            init = jax.vmap(init, out_axes=self._axes)
        if self.algo.devices > 1:
            init = jax.shard_map(
                init, mesh=self.mesh, in_specs=jax.P(), out_specs=self._specs, check_vma=False
            )
        return init(self.seeds(), self.hyperparameters())

    def shapes(self) -> Any:
        """Returns the training state as shapes, placed on the devices."""
        shapes = jax.eval_shape(self.init)
        if self.algo.devices == 1:
            return shapes
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(self.mesh, spec)
            ),
            shapes,
            self._specs,
        )

    def on_devices(self, run: Any) -> Any:
        """Returns a function of a training state and an integer, which returns a training state
        and scalars, so that it runs on all devices: on each with its part of the worlds."""
        if self.algo.devices == 1:
            return run
        specs = (self._specs, jax.P())
        return jax.shard_map(run, mesh=self.mesh, in_specs=specs, out_specs=specs, check_vma=False)

    def spread(self, state: Any) -> Any:
        """Returns a training state with its arrays on the devices that need them."""
        if self.algo.devices == 1:
            return state

        def put(x: Any, spec: Any) -> Any:
            if devices.is_key(x):
                return jax.random.wrap_key_data(put(jax.random.key_data(x), spec))
            x, place = np.asarray(x), jax.NamedSharding(self.mesh, spec)
            return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

        return jax.tree.map(put, state, self._specs)

    def step(self, state: Any) -> tuple[Any, Any]:
        """Runs one iteration of all members; returns the state, and metrics with episode sums."""
        step = functools.partial(iterate, self.algo)
        if self._is_single:
            return step(state)
        step = jax.vmap(
            step,
            in_axes=(self._axes,),
            out_axes=(self._axes, 0),
            axis_name=MEMBERS_AXIS,
        )
        return step(state)

    def finite(self, state: Any) -> jax.Array:
        """[M] bool: whether all numbers that learning changes are finite."""

        def check(*parts):
            return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(parts)]).all()

        parts, axes = (state.policy, state.learner), (self._axes.policy, self._axes.learner)
        return check(*parts)[None] if self._is_single else jax.vmap(check, in_axes=axes)(*parts)

    def split(self, tree: Any) -> list[Any]:
        """Splits a tree of the training into one tree for each member."""
        if self._is_single:
            return [tree]
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(self))]

    def evaluator(self, config: RunConfig) -> Evaluator:
        """Returns an evaluator of all members' policies at once."""
        return config.eval_env.runtime().evaluator(
            Actor.of_policy(self.algo.policy),
            config.train.eval.episodes,
            members=None if self._is_single else len(self),
        )
