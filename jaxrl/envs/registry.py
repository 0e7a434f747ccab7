"""Registry of tasks by name.

An installed package can add tasks through the entry-point group `jaxrl.envs`, and families of
tasks, named `family:name`, through the group `jaxrl.families`: a family is a function from the
name after the colon to a task class. A class without an entry point has the name
"package.module:Class", and a script can add a task for its own process with `register`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import gymnasium

from jaxrl.envs.task import Task
from jaxrl.errors import UserError
from jaxrl.plugins import imported

GROUP = "jaxrl.envs"
FAMILIES = "jaxrl.families"
_registered: dict[str, type[Task]] = {}


def register(name: str, env_class: type[Task]) -> None:
    """Registers a task class under a name, in this process.

    Raises:
      UserError: the class is not a complete task.
    """
    _registered[name] = _checked(name, env_class)


def names() -> list[str]:
    """Returns all known task names, then each family as "family:<name>"."""
    tasks = {*_registered, *metadata.entry_points(group=GROUP).names}
    return sorted(tasks) + [f"{family}:<name>" for family in _families()]


def _families() -> list[str]:
    return sorted(metadata.entry_points(group=FAMILIES).names)


def env_class(name: str) -> type[Task]:
    """Returns the class of a task: one of `names()`, or "package.module:Class".

    Raises:
      UserError: the task or family is unknown, cannot be imported, or is not a complete task.
    """
    if name in _registered:
        return _registered[name]
    family, colon, member = name.partition(":")
    for entry in metadata.entry_points(group=FAMILIES if colon else GROUP):
        if entry.name == family:
            loaded = imported("env.name", entry.name, entry.value)
            return loaded(member) if colon else _checked(name, loaded)
    if colon and ("." in family or _is_module(family)):
        return _checked(name, imported("env.name", name, name))
    if colon:
        raise unknown("family", family, [*_families(), "package.module:Class"])
    raise unknown("task", name, names())


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error about an unknown name, with the most similar known name.

    Args:
      kind: what the name stands for: "task" or "family".
      name: the unknown name.
      known: all known names.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"env.name: unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _is_module(name: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(name) is not None
    return False


def _checked(name: str, env_class: Any) -> type[Task]:
    """Returns the class, or raises UserError if it is not a complete task."""
    if not isinstance(env_class, type):
        raise UserError(f"env.name: {name!r} is not a class, but {type(env_class).__name__}")
    if issubclass(env_class, gymnasium.Env):
        raise UserError(f"env.name: {name!r} is a Gymnasium environment; use --env.gym {name}")
    if not (issubclass(env_class, Task) and dataclasses.is_dataclass(env_class)):
        requirement = (
            "a dataclass" if issubclass(env_class, Task) else "derived from jaxrl.envs.Task"
        )
        raise UserError(f"env.name: {name!r} is not a task: it must be {requirement}")
    missing = env_class.missing()
    if missing:
        raise UserError(
            f"env.name: {name!r} is not a complete task: it has no {', '.join(missing)} (see "
            "jaxrl/envs/task.py)"
        )
    try:
        typing.get_type_hints(env_class)
    except Exception as error:  # annotations are code and can raise anything
        raise UserError(f"env.name: the annotations of {name!r} cannot be read: {error}") from error
    return env_class
