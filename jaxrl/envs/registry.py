"""Tasks by name. Any installed package adds its own with the entry-point group
`jaxrl.envs`; a script adds one for itself with `register`."""

from __future__ import annotations

import difflib
from importlib import metadata

from jaxrl.errors import UserError

GROUP = "jaxrl.envs"
_registered: dict[str, type] = {}


def register(name: str, env_class: type) -> None:
    """Makes a task class known under a name in this process."""
    _registered[name] = env_class


def names() -> list[str]:
    """All known task names."""
    return sorted({*_registered, *(e.name for e in metadata.entry_points(group=GROUP))})


def env_class(name: str) -> type:
    """The class of a task.

    Raises:
      UserError: no such task, or its package cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    for entry in metadata.entry_points(group=GROUP):
        if entry.name == name:
            try:
                return entry.load()
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"env.name: task {name!r} is registered as {entry.value!r}, "
                    f"which cannot be imported: {error}"
                ) from error
    close = difflib.get_close_matches(name, names(), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"env.name: unknown task {name!r}{hint} (known: {', '.join(names())})")
