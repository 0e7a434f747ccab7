"""Whether a task keeps the contract (`jaxrl.envs.task`), as far as its shapes and types tell."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.task import ArraySpec, State, Task
from jaxrl.errors import UserError, brief


def check_task(env: Task, name: str) -> None:
    """Traces `reset` and `step` once, and compares what they give with what the task declares.

    Args:
      env: a task that is compiled.
      name: of the task, for messages.

    Raises:
      UserError: the first thing that is wrong.
    """
    _check_numbers(env, name)
    action = _check_action_spec(env, name)
    key = jax.random.key(0)
    start = traced(f"task {name}: reset", lambda: jax.eval_shape(env.reset, key))
    _check_state(start, env, f"task {name}: reset")
    after = traced(f"task {name}: step", lambda: jax.eval_shape(env.step, start, action))
    _check_state(after, env, f"task {name}: step")
    _check_same(start, after, name)


def traced(what: str, function: Callable[[], Any]) -> Any:
    """The function's result; what the task's code raises as one line that says where.

    Raises:
      UserError: anything but a UserError was raised.
    """
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "site-packages" not in f.filename and "/jax" not in f.filename]
        place = (own or frames)[-1]
        raise UserError(
            f"{what} fails with {type(error).__name__}: {brief(error)} "
            f"({place.filename}, line {place.lineno})"
        ) from error


def _check_numbers(env: Task, name: str) -> None:
    length, dt = env.episode_length, env.control_dt
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UserError(
            f"task {name}: episode_length is {length!r}, must be a whole number of at least 1 "
            "(control steps)"
        )
    if not isinstance(dt, (int, float)) or not (math.isfinite(dt) and dt > 0):
        raise UserError(f"task {name}: control_dt is {dt!r}, must be a positive number (seconds)")


def _check_action_spec(env: Task, name: str) -> jax.ShapeDtypeStruct:
    """Shape and type of one action."""
    spec = env.action_spec
    _check_spec(spec, f"task {name}: action_spec")
    if len(spec.shape) != 1 or spec.shape[0] < 1:
        raise UserError(
            f"task {name}: action_spec has the shape {spec.shape}, expected (A,), A at least 1"
        )
    if spec.discrete:
        return jax.ShapeDtypeStruct((), jnp.int32)
    if (spec.low, spec.high) != (-1, 1):
        raise UserError(
            f"task {name}: action_spec goes from {spec.low} to {spec.high}; policies act in "
            "[-1, 1]: declare that, and scale in step"
        )
    return jax.ShapeDtypeStruct(spec.shape, jnp.float32)


def _check_spec(spec: Any, where: str) -> None:
    if not isinstance(spec, ArraySpec):
        raise UserError(f"{where}: got {type(spec).__name__}, expected an ArraySpec")
    size = math.prod(spec.shape)
    if spec.names and len(spec.names) != size:
        raise UserError(f"{where}: {len(spec.names)} names for {size} components")
    twice = [n for n in spec.names if spec.names.count(n) > 1]
    if twice:
        raise UserError(f"{where}: two components have the name {twice[0]!r}")


def _check_state(state: Any, env: Task, where: str) -> None:
    if not isinstance(state, State):
        raise UserError(f"{where} returns {type(state).__name__}, expected a State")
    spec = env.observation_spec
    if isinstance(spec, dict) != isinstance(state.obs, dict) or (
        isinstance(spec, dict) and set(spec) != set(state.obs)
    ):
        raise UserError(
            f"{where}: obs is {_kind(state.obs)}, but observation_spec is {_kind(spec)}"
        )
    parts = spec if isinstance(spec, dict) else {"": spec}
    for key, part in parts.items():
        label = f"obs[{key!r}]" if key else "obs"
        _check_spec(part, f"{where}: observation_spec{f'[{key!r}]' if key else ''}")
        seen = state.obs[key] if key else state.obs
        if tuple(jnp.shape(seen)) != tuple(part.shape):
            raise UserError(
                f"{where}: {label} has the shape {tuple(jnp.shape(seen))}, but observation_spec "
                f"says {tuple(part.shape)}"
            )
    _check_scalar(state.reward, f"{where}: reward")
    _check_scalar(state.terminated, f"{where}: terminated")
    if not isinstance(state.metrics, dict):
        raise UserError(f"{where}: metrics is {_kind(state.metrics)}, expected a dictionary")
    for key, value in state.metrics.items():
        _check_scalar(value, f"{where}: metrics[{key!r}]")


def _check_scalar(value: Any, where: str) -> None:
    shape = jnp.shape(value) if not hasattr(value, "shape") else value.shape
    if tuple(shape) != ():
        raise UserError(f"{where} has the shape {tuple(shape)}, must be a scalar, ()")


def _check_same(start: State, after: State, name: str) -> None:
    """`step` returns what `reset` does: it is repeated in a loop, whose state keeps its form."""
    old, new = _leaves(start), _leaves(after)
    for path in [*old, *(p for p in new if p not in old)]:
        if old.get(path) != new.get(path):
            raise UserError(
                f"task {name}: state{path} is {old.get(path, 'missing')} after reset and "
                f"{new.get(path, 'missing')} after step; both must have the same parts, shapes and "
                "types"
            )


def _leaves(state: State) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if not jax.tree_util.keystr(path).startswith(".reward")  # is made float32 by the vector
        and not jax.tree_util.keystr(path).startswith(".terminated")
    }


def _kind(x: Any) -> str:
    if isinstance(x, dict):
        return f"a dictionary with {', '.join(map(repr, sorted(x))) or 'nothing'}"
    return "one array" if hasattr(x, "shape") else type(x).__name__
