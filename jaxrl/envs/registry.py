"""Tasks by name.

Any installed package adds tasks with the entry-point group `jaxrl.envs`, and whole families
of them, named `family:name`, with the group `jaxrl.families`: a family is a function from
the name within it to a task class. A script adds a task for itself with `register`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from jaxrl.errors import UserError

GROUP = "jaxrl.envs"
FAMILIES = "jaxrl.families"
_registered: dict[str, type] = {}


def register(name: str, env_class: type) -> None:
    """Makes a task class known under a name in this process."""
    _registered[name] = env_class


def names() -> list[str]:
    """All known task names, then each family as "family:<name>"."""
    tasks = {*_registered, *metadata.entry_points(group=GROUP).names}
    return sorted(tasks) + [f"{family}:<name>" for family in _families()]


def _families() -> list[str]:
    return sorted(metadata.entry_points(group=FAMILIES).names)


def env_class(name: str) -> type:
    """The class of a task.

    Raises:
      UserError: no such task or family, or its package cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    family, colon, member = name.partition(":")
    group = FAMILIES if colon else GROUP
    for entry in metadata.entry_points(group=group):
        if entry.name == family:
            return _load(entry)(member) if colon else _load(entry)
    raise unknown("family", family, _families()) if colon else unknown("task", name, names())


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


def _load(entry: metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"env.name: {entry.name!r} is registered as {entry.value!r}, "
            f"which cannot be imported: {error}"
        ) from error
