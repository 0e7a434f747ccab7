"""Tasks by name.

Any installed package adds tasks with the entry-point group `jaxrl.envs`, and whole families
of them, named `family:name`, with the group `jaxrl.families`: a family is a function from
the name within it to a task class. A class that no package names is "package.module:Class",
and a script adds a task for itself with `register`.
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
    """Makes a task class known under a name in this process.

    Raises:
      UserError: it is no task.
    """
    _registered[name] = _checked(name, env_class)


def names() -> list[str]:
    """All known task names, then each family as "family:<name>"."""
    tasks = {*_registered, *metadata.entry_points(group=GROUP).names}
    return sorted(tasks) + [f"{family}:<name>" for family in _families()]


def _families() -> list[str]:
    return sorted(metadata.entry_points(group=FAMILIES).names)


def env_class(name: str) -> type[Task]:
    """The class of a task: one of `names()`, or "package.module:Class".

    Raises:
      UserError: no such task or family, or one that cannot be imported or is no task.
    """
    if name in _registered:
        return _registered[name]
    family, colon, member = name.partition(":")
    for entry in metadata.entry_points(group=FAMILIES if colon else GROUP):
        if entry.name == family:
            found = imported("env.name", entry.name, entry.value)
            return found(member) if colon else _checked(name, found)
    if colon and ("." in family or _is_module(family)):
        return _checked(name, imported("env.name", name, name))
    if colon:
        raise unknown("family", family, [*_families(), "package.module:Class"])
    raise unknown("task", name, names())


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error about a name that is none of the known ones, with the nearest of them.

    Args:
      kind: what the name is of, such as "task".
      name: as given.
      known: all right ones.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"env.name: unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _is_module(name: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(name) is not None
    return False


def _checked(name: str, found: Any) -> type[Task]:
    """The class, if it is a task that is whole."""
    if not isinstance(found, type):
        raise UserError(f"env.name: {name!r} is no class, but {type(found).__name__}")
    if issubclass(found, gymnasium.Env):
        raise UserError(f"env.name: {name!r} is a Gymnasium environment: --env.gym {name}")
    if not (issubclass(found, Task) and dataclasses.is_dataclass(found)):
        what = "a dataclass" if issubclass(found, Task) else "derived from jaxrl.envs.Task"
        raise UserError(f"env.name: {name!r} is no task: it is not {what}")
    lacks = found.missing()
    if lacks:
        raise UserError(
            f"env.name: {name!r} is no task: it lacks {', '.join(lacks)} (see jaxrl/envs/task.py)"
        )
    try:
        typing.get_type_hints(found)
    except Exception as error:  # they are expressions, and can do anything
        raise UserError(f"env.name: the annotations of {name!r} cannot be read: {error}") from error
    return found
