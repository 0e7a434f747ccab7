"""`python -m jaxrl.check`: check a task before training on it."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

from jaxrl import cli
from jaxrl.errors import UserError, brief
from jaxrl.options import merge

USAGE = """\
usage: python -m jaxrl.check TASK [--env.SETTING VALUE ...] [--traceback]

Checks a task before you train on it:
  the shapes and types of what reset and step return, compared with the task's specs
  the component names in the task's specs: one for each component, each name only once
  the starts: finite, not all equal, and equal again when reset gets the same keys
  200 control steps under random actions: finite values, rewards, ends of episodes
  the same actions a second time: do they lead to the same rewards?
  the time that a control step takes
A Gymnasium environment (gym:ID) is checked by Gymnasium's own checker instead.

TASK is the name of a task, or its class as package.module:Class.

  --env.SETTING VALUE   set a setting of the task, such as --env.max_speed 0.3
  --traceback           show the full traceback when the task's own code raises an error
"""

WORLDS, STEPS = 64, 200


def main(argv: list[str]) -> int:
    positionals, flags, settings = cli.parse(
        argv, {"traceback": False, "help": False}, settings=True
    )
    if flags.get("help"):
        print(USAGE)
        return 0
    if len(positionals) != 1:
        raise UserError(f"expected one task, got {len(positionals)} (see --help)")
    cli.start_jax()
    from jaxrl.config import resolve

    try:
        config = resolve(merge({"env": {"name": positionals[0]}}, settings), platform="none")
        lines = check(config.env, config.task)
    except UserError as error:
        if flags.get("traceback") and error.__cause__:
            traceback.print_exception(error.__cause__, file=sys.stderr)
        raise
    for line in lines:
        print(line)
    count = sum(line.startswith("warning") for line in lines)
    plural = "" if count == 1 else "s"
    print(f"{config.task}: {f'{count} warning{plural}' if count else 'no problems found'}")
    return 0


def check(env: Any, name: str) -> list[str]:
    """Returns the lines of the report on a task; problems begin with "warning".

    Raises:
      UserError: the task cannot be trained on.
    """
    from jaxrl.bridge.gym_in import GymTask

    env.runtime().check(name)
    if isinstance(env.unwrapped, GymTask):
        return _check_gymnasium(env.unwrapped)
    spec = env.observation_spec
    parts = spec if isinstance(spec, dict) else {"array": spec}
    sizes = ", ".join(f"{key} {tuple(part.shape)}" for key, part in parts.items())
    kind = "choices" if env.action_spec.discrete else "components"
    lines = [
        f"observation: {sizes}; action: {env.action_spec.shape[0]} {kind}",
        f"an episode: {env.episode_length:,} control steps of {env.control_dt:g} s",
    ]
    return [*lines, *_check_starts(env, name), *_check_steps(env, name)]


def _check_starts(env: Any, name: str) -> list[str]:
    """Checks the starts that `reset` draws, twice with the same keys; returns warnings."""
    import jax
    import numpy as np

    from jaxrl.envs.vector import all_finite

    reset = jax.jit(jax.vmap(env.reset))
    keys = jax.random.split(jax.random.key(0), WORLDS)
    starts, repeated = reset(keys), reset(keys)
    not_finite = WORLDS - int(all_finite((starts.physics, starts.obs), WORLDS).sum())
    if not_finite == WORLDS:
        raise UserError(f"task {name}: reset: no start is finite")
    rows = _as_rows(starts.obs)
    problems = {
        f"{not_finite} of {WORLDS} starts are not finite (each is drawn again)": not_finite > 0,
        "reset with the same key does not return the same start": not _same(
            rows, _as_rows(repeated.obs)
        ),
        "all starts are equal: does reset use its key?": len(np.unique(rows, axis=0)) == 1,
        "some starts have terminated=True, which is ignored": starts.terminated.any(),
    }
    return [f"warning: {text}" for text, holds in problems.items() if holds]


def _play_twice(vector: Any) -> tuple[Any, Any, float, float]:
    """Plays the same random actions twice from the same starts.

    Returns:
      the time steps of the first run, leaves [T, N, ...]; those of the second run; seconds of
      the compilation; seconds per control step and world.
    """
    import jax

    spec = vector.env.action_spec

    def act(state, key):
        if spec.discrete:
            action = jax.random.randint(key, (WORLDS,), 0, spec.shape[0])
        else:
            action = jax.random.uniform(key, (WORLDS, *spec.shape), minval=-1.0, maxval=1.0)
        return vector.step(state, action)

    def play(state):
        return jax.lax.scan(act, state, jax.random.split(jax.random.key(2), STEPS))[1]

    start = jax.jit(lambda: vector.init(jax.random.key(1), stagger=False))()
    start_time = time.perf_counter()
    run = jax.jit(play).lower(start).compile()
    compiled = time.perf_counter() - start_time
    first = jax.device_get(run(start))
    start_time = time.perf_counter()
    repeated = jax.device_get(run(start))
    return first, repeated, compiled, (time.perf_counter() - start_time) / (STEPS * WORLDS)


def _check_steps(env: Any, name: str) -> list[str]:
    """Checks control steps under random actions; returns the lines of the report."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl.envs import Vector

    vector = Vector(env, WORLDS)
    first, repeated, compiled, cost = _play_twice(vector)
    count = STEPS * WORLDS
    ends, not_finite, beyond = (
        int(x.sum()) for x in (first.terminated, first.nonfinite, first.out_of_range)
    )
    observations = _as_rows(jax.tree.map(lambda x: jnp.concatenate(x), first.final_obs))
    constant = np.flatnonzero(np.ptp(observations, axis=0) == 0)
    problems = {
        f"{not_finite} of {count:,} steps were not finite (each ends its episode)": not_finite > 0,
        f"{beyond} of {count:,} steps had rewards or observations beyond 1e6 (they are clipped)": (
            beyond > 0
        ),
        "the same actions do not lead to the same rewards": not _same(
            first.reward, repeated.reward
        ),
        f"components {_first_few(constant)} of the observation never changed": len(constant) > 0,
        "every step terminated": ends == count,
        "all rewards are the same": np.ptp(first.reward) == 0,
    }
    if "success" in vector.statistics and first.ended.any():
        column = vector.statistics.index("success")
        success = first.episode[..., column][first.ended]
        problems["success is not between 0 and 1"] = success.min() < 0 or success.max() > 1
    return [
        f"reward per step under random actions: {first.reward.mean():.4g} +- "
        f"{first.reward.std():.4g} (mean and standard deviation)",
        f"of {count:,} steps under random actions {ends:,} terminated and "
        f"{int(first.truncated.sum()):,} reached the time limit",
        f"time of a control step: {cost * 1e6:.3g} microseconds per world, with {WORLDS} worlds "
        f"side by side; compilation: {compiled:.1f} s",
        *(f"warning: {text}" for text, holds in problems.items() if holds),
    ]


def _check_gymnasium(env: Any) -> list[str]:
    """Runs Gymnasium's own checker on one environment; returns warnings."""
    import warnings

    from gymnasium.utils.env_checker import check_env

    from jaxrl.bridge.worker import make

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        world = make(env.id, dict(env.kwargs))
        try:
            check_env(world.unwrapped, skip_render_check=True)
        except Exception as error:  # assertions of the checker, or any error of the environment
            raise UserError(f"gym:{env.id}: {type(error).__name__}: {brief(error)}") from error
        finally:
            world.close()
    lines = {brief(str(w.message).replace("WARN:", "")) for w in caught}
    return [f"warning: {line}" for line in sorted(lines)]


def _as_rows(obs: Any) -> Any:
    """All components of observations with leaves [B, ...], as an array [B, F]."""
    import jax
    import numpy as np

    leaves = [np.asarray(x) for x in jax.tree.leaves(obs)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def _same(first: Any, second: Any) -> bool:
    import numpy as np

    return np.array_equal(first, second, equal_nan=True)


def _first_few(indices: Any) -> str:
    """The first eight indices as text, with the number of all if there are more."""
    shown = ", ".join(map(str, indices[:8]))
    return f"{shown}, ... ({len(indices)} in all)" if len(indices) > 8 else shown
