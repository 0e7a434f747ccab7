"""Registries that installed packages extend by entry points."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

from jaxrl.errors import UserError

T = TypeVar("T")


def imported(where: str, name: str, value: str) -> Any:
    """What "package.module:attribute" names.

    Args:
      where: it was asked for, for messages.
      name: it was asked for by.
      value: where it is.

    Raises:
      UserError: it cannot be imported.
    """
    module, _, attribute = value.partition(":")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        said = " ".join(str(error).splitlines())
        raise UserError(
            f"{where}: {name!r} is {value!r}, which cannot be imported: "
            f"{type(error).__name__}: {said}"
        ) from error


class Registry(Mapping[str, T]):
    """Names of a group, and what they stand for; an entry point is imported when it is used.

    Args:
      group: of the entry points.
      own: what the project itself has; an entry point of the same name does not replace it.
    """

    def __init__(self, group: str, own: dict[str, T]):
        self._group, self._own = group, own

    def _entries(self) -> dict[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in metadata.entry_points(group=self._group)}

    def __getitem__(self, name: str) -> T:
        """What the name stands for.

        Raises:
          KeyError: there is no such name.
          UserError: the package that has it cannot be imported.
        """
        if name in self._own:
            return self._own[name]
        found: T = imported(self._group, name, self._entries()[name].value)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **self._entries()})

    def __len__(self) -> int:
        return len({**self._own, **self._entries()})
