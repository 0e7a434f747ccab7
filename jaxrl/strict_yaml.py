"""YAML without surprising types, and with limits on size and depth.

Differences from YAML 1.1: a key must be text and may occur only once in a section; `1:30`, dates
and `010` are text; `1e-3` is a number. Only text, numbers, true and false, null, lists and sections
are allowed. `load` returns what was given to `dump`, with the same values and types.
"""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from jaxrl.errors import UserError

MAX_VALUES = 20_000  # an alias counts as many as the values that it stands for
MAX_NESTED = 50  # depth of sections and lists
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """A YAML loader that checks the number of values, the depth and the keys."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = self._count = 0
        self._counts: dict[int, int] = {}  # number of values in a node, by its id

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event, before = self.peek_event(), self._count
        self._depth += 1
        if self._depth > MAX_NESTED:
            raise _yaml_error(f"more than {MAX_NESTED} nested sections or lists", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):  # unknown: a node that contains itself
            self._count += self._counts.get(id(node), MAX_VALUES)
        self._count += 1
        if self._count > MAX_VALUES:
            raise _yaml_error(f"more than {MAX_VALUES:,} values", event)
        self._counts.setdefault(id(node), self._count - before)
        return cast(yaml.Node, node)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                raise _yaml_error(f"the key {_key_text(key)} is not text; put it in quotes", key)
            if key.value in known:
                raise _yaml_error(f"the key {_key_text(key)} occurs twice", key)
            known.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that puts text in quotes if it would be read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml_error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _key_text(key: yaml.Node) -> str:
    return repr(key.value) if isinstance(key, yaml.ScalarNode) else "(a list or a section)"


def _set_up() -> None:
    """Sets which plain texts stand for values of other types, and which types are allowed."""
    number = r"(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    forms = {
        "bool": (r"(?:true|false|yes|no|on|off)", "tTfFyYnNoO"),
        "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", "-+0123456789"),
        "float": (rf"[-+]?{number}|[-+]?\.inf|\.nan", "-+.0123456789"),
        "null": (r"~|null|", ["~", "n", "N", ""]),
        "merge": (r"<<", "<"),
    }
    _Loader.yaml_implicit_resolvers = {}
    for name, (form, first) in forms.items():
        pattern = re.compile(rf"(?:{form})\Z", re.IGNORECASE)
        if name == "float":  # 010 is not a number
            pattern = re.compile(rf"(?![-+]?0[0-9_]+\Z)(?:{form})\Z", re.IGNORECASE)
        for cls in (_Loader, _Dumper):
            cls.add_implicit_resolver(_TAG + name, pattern, list(first))
    known = ("null", "bool", "int", "float", "str", "seq", "map")
    constructors = yaml.SafeLoader.yaml_constructors
    _Loader.yaml_constructors = {
        tag: make
        for tag, make in constructors.items()
        if tag is None or tag in {_TAG + name for name in known}
    }


_set_up()


def load(text: str, path: str) -> Any:
    """The value of a YAML document.

    Args:
      text: the document.
      path: file or setting that the text comes from, for messages.

    Raises:
      UserError: the text is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{path}: not valid YAML{place}: {problem}") from error


def dump(values: Any) -> str:
    """The values as YAML, which `load` turns into the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
