"""One run, or many at once in one program: seeds, and a grid of traced settings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import platform
from jaxrl.algos import ALGORITHMS
from jaxrl.config import MOST_MEMBERS, RunConfig, TrainConfig, resolve
from jaxrl.envs.checking import check_task
from jaxrl.envs.vector import MEMBERS_AXIS
from jaxrl.errors import UserError
from jaxrl.evaluation import Evaluator, evaluation_bytes, make_evaluator, policy_actor
from jaxrl.options import flatten, nest, to_dict
from jaxrl.runs import make_algorithm


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a population.

    Attributes:
      name: of its folder, such as "learning_rate=0.001,seed=0"; empty for a run alone.
      config: as if it were run alone.
    """

    name: str
    config: RunConfig


def members(config: RunConfig) -> list[Member]:
    """The runs that `num_seeds` and `sweep` ask for.

    Raises:
      UserError: a swept setting that is not one traced number.
    """
    train = config.train
    if not config.is_population:
        return [Member("", config)]
    axes = _axes(train)
    base = config.to_dict() | {"num_seeds": 1, "sweep": []}
    made = []
    for point in itertools.product(*axes):
        alone = resolve(base, nest(dict(point)), platform="none")
        settings = flatten(to_dict(alone.train))
        name = ",".join(f"{key.rpartition('.')[2]}={settings[key]}" for key, _ in point)
        made.append(Member(name, alone))
    if len({member.name for member in made}) < len(made):
        raise UserError(f"sweep: got {list(train.sweep)}, which makes two runs that are the same")
    return made


def _axes(train: TrainConfig) -> list[list[tuple[str, Any]]]:
    """What varies over the members: (setting, value) pairs, each setting's in a list."""
    axes: list[list[tuple[str, Any]]] = [_axis(text, train.algo) for text in train.sweep]
    keys = [axis[0][0] for axis in axes]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UserError(
            f"sweep: got {twice[0]} twice; give all its values in one KEY=VALUE,VALUE.."
        )
    axes.append([("seed", train.seed + i) for i in range(train.num_seeds)])
    if math.prod(map(len, axes)) > MOST_MEMBERS:
        raise UserError(
            f"sweep, num_seeds: {' x '.join(f'{len(axis):,}' for axis in axes)} runs, must be at "
            f"most {MOST_MEMBERS:,}"
        )
    return axes


def _axis(text: str, algo: str) -> list[tuple[str, str]]:
    """ "ppo.gamma=.9,.99" -> [("ppo.gamma", ".9"), ("ppo.gamma", ".99")]."""
    key, _, values = text.partition("=")
    traced = dataclasses.fields(ALGORITHMS[algo].Hyperparameters)
    known = [f"{algo}.{field.name}" for field in traced]
    if key not in known:
        raise UserError(
            f"sweep: got {text!r}, expected KEY=VALUE,VALUE.. with one of {', '.join(known)} "
            "(other settings change the program: start a run for each)"
        )
    split = [value.strip() for value in values.split(",") if value.strip()]
    if not split:
        raise UserError(f"sweep: got {text!r}, expected values, such as {key}=1,2")
    return [(key, value) for value in split]


class Population:
    """The runs of a configuration as one program.

    A run alone is traced as it is; several are one `vmap`, each with its own seed and
    numbers. Counters that are the same for all are kept once, so that branches on them
    stay branches; all else of several runs begins with the member axis [M].

    Args:
      config: the run.

    Raises:
      UserError: settings that do not fit together, or the device.
    """

    def __init__(self, config: RunConfig):
        self._count = math.prod(map(len, _axes(config.train)))
        self._alone = not config.is_population
        if not self._alone and hasattr(config.env, "make_vector"):
            raise UserError("num_seeds, sweep: a Gymnasium environment trains one run at a time")
        if not hasattr(config.env, "make_vector"):
            check_task(config.env, config.task)
        try:
            self.algo = make_algorithm(config, members=len(self))
            shapes = jax.eval_shape(self.algo.init, jax.random.key(0))
        except OverflowError as error:
            raise UserError(
                f"env: with these settings {config.task} counts beyond what int32 can hold: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self._check_memory(config, shapes)
        self.members = members(config)
        self._axes = self.algo.shared(jax.tree.map(lambda _: 0, shapes))

    def __len__(self) -> int:
        return self._count

    def _check_memory(self, config: RunConfig, shapes: Any) -> None:
        """Refuses what the device cannot hold, before it is made."""
        free = platform.free_bytes()
        if free is None:
            return
        self._check_replay(config, shapes.replay, free)
        needs = {
            part: (len(self) * need, lower) for part, (need, lower) in self._needs(config, shapes)
        }
        total = sum(need for need, _ in needs.values())
        if total > free:
            each = ", ".join(f"{part} {need / 1e9:,.1f}" for part, (need, _) in needs.items())
            lower = max(needs.values())[1]
            raise UserError(
                f"{lower.partition(',')[0]}: training takes at least {total / 1e9:,.1f} GB "
                f"({each}), but {free / 1e9:,.1f} GB are free on the device; lower {lower}"
                f"{'' if self._alone else ', num_seeds or sweep'}"
            )

    def _needs(self, config: RunConfig, shapes: Any) -> Iterator[tuple[str, tuple[int, str]]]:
        """(part of training, (least bytes for a member, settings that it grows with))."""
        train, algo, count = config.train, self.algo, platform.tree_bytes
        name, c, worlds = train.algo, self.algo.config, train.num_envs
        yield (
            "networks",
            (
                count((shapes.policy, shapes.learner)),
                f"{name}.network (policy_hidden, value_hidden)"
                + ("" if name == "ppo" else f", {name}.num_critics, {name}.num_atoms"),
            ),
        )
        yield "worlds", (count(shapes.envs), f"num_envs, {name}.num_steps, env.wrap")
        obs, action = count(shapes.envs.obs) // worlds, 4 * algo.network.action_size
        if name == "ppo":  # collected, and packed once more
            rollout = algo.batch_size * (2 * obs + 3 * action + 24)
            passes = 32 * c.num_epochs * c.num_minibatches
            yield "rollout", (rollout + passes, "num_envs, ppo.num_steps, ppo.num_epochs")
        else:
            sample = 2 * obs + action + 8 + c.n_step * (action + 12)
            heads = 4 * c.batch_size * c.num_critics * c.num_atoms
            yield (
                "samples",
                (
                    c.gradient_steps * c.batch_size * sample + heads,
                    ", ".join(
                        f"{name}.{key}" for key in ("batch_size", "gradient_steps", "n_step")
                    ),
                ),
            )
        settings = train.eval
        episodes = max(settings.episodes if config.eval_every else 0, settings.final_episodes)
        if episodes and not hasattr(config.eval_env, "make_evaluator"):
            need = evaluation_bytes(config.eval_env, episodes)
            yield "evaluation", (need, "eval.episodes, eval.final_episodes")

    def _check_replay(self, config: RunConfig, replay: Any, free: int) -> None:
        need = platform.tree_bytes(replay) * len(self)
        copied = platform.target() == "cpu" and config.train.checkpoint.replay
        if copied:  # on another device the copy lies on the host
            need *= 2
        if need > free:
            name, size = config.train.algo, getattr(config.train, config.train.algo).buffer_size
            raise UserError(
                f"{name}.buffer_size: {size:,} control steps"
                f"{'' if self._alone else f' x {len(self)} members'} take {need / 1e9:,.1f} GB, "
                f"{'with the copy that a checkpoint is written from, ' if copied else ''}but "
                f"{free / 1e9:,.1f} GB are free on the device; about "
                f"{int(size * free / need):,} fit ({name}.storage bfloat16 halves it)"
            )

    def hyperparameters(self) -> Any:
        """Traced numbers, leaves [M]; of a run alone, []."""
        each = [
            self.algo.hyperparameters(getattr(m.config.train, m.config.train.algo))
            for m in self.members
        ]
        return each[0] if self._alone else jax.tree.map(lambda *x: jnp.stack(x), *each)

    def seeds(self) -> jax.Array:
        """[M] keys of the members' seeds; of a run alone, []."""
        keys = [jax.random.key(member.config.train.seed) for member in self.members]
        return keys[0] if self._alone else jnp.stack(keys)

    def init(self) -> Any:
        """The training state at the start."""
        init = self.algo.init if self._alone else jax.vmap(self.algo.init, out_axes=self._axes)
        return init(self.seeds(), self.hyperparameters())

    def step(self, state: Any) -> tuple[Any, Any]:
        """One iteration of all; metrics and episode sums come out."""
        if self._alone:
            return self.algo.step(state)
        step = jax.vmap(
            self.algo.step,
            in_axes=(self._axes,),
            out_axes=(self._axes, 0),
            axis_name=MEMBERS_AXIS,
        )
        return step(state)

    def finite(self, state: Any) -> jax.Array:
        """[M] bool; all numbers that learning moves are finite."""

        def check(*parts):
            return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(parts)]).all()

        parts, axes = (state.policy, state.learner), (self._axes.policy, self._axes.learner)
        return check(*parts)[None] if self._alone else jax.vmap(check, in_axes=axes)(*parts)

    def split(self, tree: Any) -> list[Any]:
        """A tree that training gave, for each member."""
        if self._alone:
            return [tree]
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(self))]

    def evaluator(self, config: RunConfig) -> Evaluator:
        """Judges all members' policies at once."""
        return make_evaluator(
            config.eval_env,
            policy_actor(self.algo.policy),
            config.train.eval.episodes,
            members=None if self._alone else len(self),
        )


def spread(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the members' rows, and their standard deviations as `NAME_std`.

    What is the same for all (`time/`) is taken from the first.
    """
    out: dict[str, float] = {}
    for name in rows[0]:
        if name.startswith("time/"):
            out[name] = rows[0][name]
            continue
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        out[name] = float(values.mean()) if values.size else float("nan")
        out[f"{name}_std"] = float(values.std()) if values.size else float("nan")
    return out
