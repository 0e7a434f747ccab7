"""Registries that installed packages can extend by entry points."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

from jaxrl.errors import UserError

T = TypeVar("T")


def imported(setting: str, name: str, value: str) -> Any:
    """Imports the object that an entry point refers to.

    Args:
      setting: the setting or the group that the name belongs to, for messages.
      name: the name that the user gave, for messages.
      value: the object as "package.module:attribute".

    Raises:
      UserError: the object cannot be imported.
    """
    module, _, attribute = value.partition(":")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # an import may raise anything
        message = " ".join(str(error).splitlines())
        raise UserError(
            f"{setting}: {name!r} is {value!r}, which cannot be imported: "
            f"{type(error).__name__}: {message}"
        ) from error


class Registry(Mapping[str, T]):
    """The objects of a group by their names; an entry point is imported when it is used.

    Args:
      group: the group of entry points.
      builtin: the project's own objects; an entry point of the same name does not replace them.
    """

    def __init__(self, group: str, builtin: dict[str, T]):
        self._group, self._builtin = group, builtin

    def _entries(self) -> dict[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in metadata.entry_points(group=self._group)}

    def __getitem__(self, name: str) -> T:
        """The object with this name.

        Raises:
          KeyError: there is no such name.
          UserError: the object of an installed package cannot be imported.
        """
        if name in self._builtin:
            return self._builtin[name]
        value: T = imported(self._group, name, self._entries()[name].value)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter({**self._builtin, **self._entries()})

    def __len__(self) -> int:
        return len({**self._builtin, **self._entries()})
