"""`python -m jaxrl.check`: does a task keep the contract, and does it behave?"""

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

Looks at a task before it is trained on: specs, shapes and types of what reset and step
give, names, whether starts differ and are finite, whether the same key gives the same
bits, how episodes go under random actions, and what a step costs.

  --traceback   where the task's own code raises, show the whole traceback
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
    found = sum(line.startswith("warning") for line in lines)
    plural = "" if found == 1 else "s"
    print(f"{config.task}: {f'{found} warning{plural}' if found else 'nothing to complain of'}")
    return 0


def check(env: Any, name: str) -> list[str]:
    """What is to say of a task, line by line; lines that begin with "warning" need a look.

    Raises:
      UserError: it cannot be trained on.
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
    """Fresh starts, made twice with the same keys."""
    import jax
    import numpy as np

    from jaxrl.envs.vector import all_finite

    reset = jax.jit(jax.vmap(env.reset))
    keys = jax.random.split(jax.random.key(0), WORLDS)
    starts, again = reset(keys), reset(keys)
    bad = WORLDS - int(all_finite((starts.physics, starts.obs), WORLDS).sum())
    if bad == WORLDS:
        raise UserError(f"task {name}: reset: no start is finite")
    rows = _numbers(starts.obs)
    found = {
        f"{bad} of {WORLDS} starts are not finite (each is drawn again)": bad > 0,
        "the same key does not give the same start": not _same(rows, _numbers(again.obs)),
        "all starts look alike: does reset use its key?": len(np.unique(rows, axis=0)) == 1,
        "some starts are already terminated, which is not looked at": starts.terminated.any(),
    }
    return [f"warning: {text}" for text, holds in found.items() if holds]


def _check_steps(env: Any, name: str) -> list[str]:
    """Random actions, played twice from the same starts."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl.envs import Vector

    vector, spec = Vector(env, WORLDS), env.action_spec

    def act(state, key):
        if spec.discrete:
            action = jax.random.randint(key, (WORLDS,), 0, spec.shape[0])
        else:
            action = jax.random.uniform(key, (WORLDS, *spec.shape), minval=-1.0, maxval=1.0)
        return vector.step(state, action)

    def play(state):
        return jax.lax.scan(act, state, jax.random.split(jax.random.key(2), STEPS))[1]

    start = jax.jit(lambda: vector.init(jax.random.key(1), stagger=False))()
    begun = time.perf_counter()
    run = jax.jit(play).lower(start).compile()
    compiled = time.perf_counter() - begun
    first = jax.device_get(run(start))
    begun = time.perf_counter()
    again = jax.device_get(run(start))
    cost = (time.perf_counter() - begun) / (STEPS * WORLDS)

    count = STEPS * WORLDS
    ends, bad, far = (int(x.sum()) for x in (first.terminated, first.nonfinite, first.out_of_range))
    seen = _numbers(jax.tree.map(lambda x: jnp.concatenate(x), first.final_obs))
    still = np.flatnonzero(np.ptp(seen, axis=0) == 0)
    found = {
        f"{bad} of {count:,} steps were not finite (each ends its episode)": bad > 0,
        f"{far} of {count:,} steps had rewards or observations beyond 1e6 (they are cut)": far > 0,
        "the same actions do not lead to the same rewards": not _same(first.reward, again.reward),
        f"components {_few(still)} of the observation never moved": len(still) > 0,
        "every step terminated": ends == count,
        "all rewards are the same": np.ptp(first.reward) == 0,
    }
    if "success" in vector.statistics and first.ended.any():
        column = vector.statistics.index("success")
        success = first.episode[..., column][first.ended]
        found["success is not between 0 and 1"] = success.min() < 0 or success.max() > 1
    return [
        f"reward of a random step: {first.reward.mean():.4g} +- {first.reward.std():.4g}",
        f"of {count:,} steps under random actions {ends:,} terminated and "
        f"{int(first.truncated.sum()):,} met the time limit",
        f"a control step of one of {WORLDS} worlds: {cost * 1e6:.3g} microseconds; compiled in "
        f"{compiled:.1f} s",
        *(f"warning: {text}" for text, holds in found.items() if holds),
    ]


def _check_gymnasium(env: Any) -> list[str]:
    """Gymnasium's own checker, on one environment."""
    import warnings

    from gymnasium.utils.env_checker import check_env

    from jaxrl.bridge.worker import make

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        world = make(env.id, dict(env.kwargs))
        try:
            check_env(world.unwrapped, skip_render_check=True)
        except Exception as error:  # assertions, and whatever the environment raises
            raise UserError(f"gym:{env.id}: {type(error).__name__}: {brief(error)}") from error
        finally:
            world.close()
    lines = {brief(str(w.message).replace("WARN:", "")) for w in told}
    return [f"warning: {line}" for line in sorted(lines)]


def _numbers(obs: Any) -> Any:
    """[B, F] all components of observations with leaves [B, ...], side by side."""
    import jax
    import numpy as np

    leaves = [np.asarray(x) for x in jax.tree.leaves(obs)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def _same(one: Any, other: Any) -> bool:
    import numpy as np

    return np.array_equal(one, other, equal_nan=True)


def _few(places: Any) -> str:
    """The first few of many numbers."""
    shown = ", ".join(map(str, places[:8]))
    return f"{shown}, ... ({len(places)})" if len(places) > 8 else shown
