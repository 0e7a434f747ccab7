"""Checks a task against the contract (`jaxrl.envs.task`), as far as shapes and types show it."""

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
    """Traces `reset` and `step` once, and compares their results with the task's declarations.

    Args:
      env: a compiled task.
      name: name of the task, for messages.

    Raises:
      UserError: the task breaks the contract; the message names the first error.
    """
    _check_numbers(env, name)
    action = _check_action_spec(env, name)
    key = jax.random.key(0)
    start = traced(f"task {name}: reset", lambda: jax.eval_shape(env.reset, key))
    _check_state(start, env, f"task {name}: reset")
    after = traced(f"task {name}: step", lambda: jax.eval_shape(env.step, start, action))
    _check_state(after, env, f"task {name}: step")
    _check_same(start, after, name)


def traced(doing: str, function: Callable[[], Any]) -> Any:
    """Returns the function's result, and turns exceptions of the task's code into a UserError.

    Args:
      doing: start of the message, such as "task pendulum: reset".
      function: function that runs the task's code.

    Raises:
      UserError: the task's code raised an exception; one line with the file and line number.
    """
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        user_frames = [
            f for f in frames if "site-packages" not in f.filename and "/jax" not in f.filename
        ]
        place = (user_frames or frames)[-1]
        raise UserError(
            f"{doing} fails with {type(error).__name__}: {brief(error)} "
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
    """Checks the action spec; returns shape and type of one action."""
    spec = env.action_spec
    _check_spec(spec, f"task {name}: action_spec")
    if len(spec.shape) != 1 or spec.shape[0] < 1:
        raise UserError(
            f"task {name}: action_spec has the shape {spec.shape}, expected (A,) with A at least 1"
        )
    if spec.discrete:
        return jax.ShapeDtypeStruct((), jnp.int32)
    if (spec.low, spec.high) != (-1, 1):
        raise UserError(
            f"task {name}: action_spec has the bounds {spec.low} and {spec.high}, must have -1 and "
            "1; scale the actions in step"
        )
    return jax.ShapeDtypeStruct(spec.shape, jnp.float32)


def _check_spec(spec: Any, path: str) -> None:
    if not isinstance(spec, ArraySpec):
        raise UserError(f"{path}: got {type(spec).__name__}, expected an ArraySpec")
    size = math.prod(spec.shape)
    if spec.names and len(spec.names) != size:
        raise UserError(f"{path}: got {len(spec.names)} names for {size} components")
    twice = [n for n in spec.names if spec.names.count(n) > 1]
    if twice:
        raise UserError(f"{path}: two components have the name {twice[0]!r}")


def _check_state(state: Any, env: Task, path: str) -> None:
    if not isinstance(state, State):
        raise UserError(f"{path} returns {type(state).__name__}, expected a State")
    spec = env.observation_spec
    if isinstance(spec, dict) != isinstance(state.obs, dict) or (
        isinstance(spec, dict) and set(spec) != set(state.obs)
    ):
        raise UserError(f"{path}: obs is {_kind(state.obs)}, but observation_spec is {_kind(spec)}")
    parts = spec if isinstance(spec, dict) else {"": spec}
    for key, part in parts.items():
        label = f"obs[{key!r}]" if key else "obs"
        _check_spec(part, f"{path}: observation_spec{f'[{key!r}]' if key else ''}")
        given = state.obs[key] if key else state.obs
        if tuple(jnp.shape(given)) != tuple(part.shape):
            raise UserError(
                f"{path}: {label} has the shape {tuple(jnp.shape(given))}, but observation_spec "
                f"declares {tuple(part.shape)}"
            )
    _check_scalar(state.reward, f"{path}: reward")
    _check_scalar(state.terminated, f"{path}: terminated")
    if not isinstance(state.metrics, dict):
        raise UserError(f"{path}: metrics is {_kind(state.metrics)}, expected a dictionary")
    for key, value in state.metrics.items():
        _check_scalar(value, f"{path}: metrics[{key!r}]")


def _check_scalar(value: Any, path: str) -> None:
    shape = jnp.shape(value) if not hasattr(value, "shape") else value.shape
    if tuple(shape) != ():
        raise UserError(f"{path} has the shape {tuple(shape)}, must be a scalar, ()")


def _check_same(start: State, after: State, name: str) -> None:
    """Raises UserError if `step` returns other parts, shapes or types than `reset`: a compiled
    loop repeats `step`, and its state cannot change its form."""
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
    }


def _kind(x: Any) -> str:
    if isinstance(x, dict):
        return f"a dictionary with {', '.join(map(repr, sorted(x))) or 'nothing'}"
    return "one array" if hasattr(x, "shape") else type(x).__name__
