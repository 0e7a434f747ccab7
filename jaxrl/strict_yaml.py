"""YAML in which what is written is what is meant, and what is small stays small.

Other than YAML 1.1: a key stands once and is text, `1:30` and dates are text, `010` is no octal
number, `1e-3` is a number. Nothing but text, numbers, true and false, null, lists and sections
can be written. What `dump` writes reads back the same, in values and types.
"""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from jaxrl.errors import UserError

MOST_VALUES = 20_000  # with aliases counted as what they stand for
MOST_NESTED = 50
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes with its eye on size, depth and keys."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = self._count = 0
        self._counts: dict[int, int] = {}  # values within a node, by its id

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event, before = self.peek_event(), self._count
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise _refused(f"more than {MOST_NESTED} sections or lists in each other", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):  # of a node that is not whole: it holds itself
            self._count += self._counts.get(id(node), MOST_VALUES)
        self._count += 1
        if self._count > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES:,} values", event)
        self._counts.setdefault(id(node), self._count - before)
        return cast(yaml.Node, node)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                raise _refused(f"the key {_text(key)} is no text; put it in quotes", key)
            if key.value in known:
                raise _refused(f"the key {_text(key)} a second time", key)
            known.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that any reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _text(key: yaml.Node) -> str:
    return repr(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"


def _set_up() -> None:
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
        if name == "float":  # 010 and 0x10 are none
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


def load(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
      text: one document.
      where: it comes from, for messages.

    Raises:
      UserError: it is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{where}: not valid YAML{place}: {problem}") from error


def dump(values: Any) -> str:
    """YAML that `load` reads back the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
