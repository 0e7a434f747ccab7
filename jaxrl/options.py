"""Settings as frozen dataclasses: built from nested dictionaries, checked, printed.

YAML files, `--dotted.key value` arguments and saved runs all pass through `build`, so
each wrong key or value meets the same check and the same one-line message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from jaxrl import strict_yaml
from jaxrl.errors import UserError

T = TypeVar("T")
# What training computes with: float32 without subnormal numbers, and int32.
LEAST_FLOAT, MOST_FLOAT, MOST_INT = 2.0**-126, 3.4e38, 2**31 - 1
MOST_NESTED = 20  # sections in each other


class Raw(str):
    """Text as typed on the command line, whose type is that of the setting it is for. Where any
    value may stand it is read as YAML; text that comes from a file is text."""


def option(
    default: Any,
    help: str,
    *,
    greater_than: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    traced: bool = False,
) -> Any:
    """A dataclass field with its help text and the range that it must lie in.

    Args:
      default: default value.
      help: one line.
      greater_than: exclusive lower bound.
      minimum, maximum: inclusive bounds; a whole number is at most 2^31 - 1 if nothing is said.
      traced: a number that compiled programs take as an argument: another value does not
        compile them again, and the members of a population may have one each.
    """
    metadata = {
        "help": help,
        "greater_than": greater_than,
        "minimum": minimum,
        "maximum": maximum,
        "traced": traced,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def traced(cls: type) -> list[str]:
    """Names of a dataclass's traced options."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("traced")]


def build(
    cls: Any,
    values: dict[str, Any],
    path: str = "",
    default: Any = None,
    known: Callable[[], Sequence[str]] | None = None,
) -> Any:
    """Makes the dataclass from a nested dictionary.

    Args:
      cls: a dataclass; fields that are left out keep their defaults.
      values: plain values; strings are read by the field's type, so "1e-3" is a number
        where a number belongs and "10e6" a whole one.
      path: where `values` lies, for messages ("ppo.").
      default: keeps what `values` leave out; none: the class's own defaults.
      known: gives dotted keys that an unknown one may have meant; none: those of `cls`.

    Raises:
      UserError: unknown key, wrong type, value out of range, or no value where one is needed.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path.rstrip('.') or 'config'}: expected a section, got {quote(values)}")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    made = {}
    for key, value in values.items():
        if key not in fields:
            meant = known() if known else [row[0] for row in describe(cls, path)]
            raise UserError(_unknown(path, str(key), list(fields), meant))
        base = _default(fields[key]) if default is None else getattr(default, key)
        made[key] = _convert(value, hints[key], f"{path}{key}", base)
        _check_range(made[key], fields[key], f"{path}{key}")
    if default is not None:
        return dataclasses.replace(default, **made)
    for key, field in fields.items():
        if key not in made and _required(field):
            raise UserError(f"{path}{key}: needs a value, {type_name(hints[key])}")
    return cls(**made)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field) -> Any:
    """A field's default, or None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _unknown(path: str, key: str, here: list[str], known: Sequence[str]) -> str:
    """The message about an unknown key, with what it may have meant.

    Args:
      path: of its section.
      key: as given.
      here: keys of the section.
      known: dotted keys of settings anywhere.
    """

    def named(name: str) -> list[str]:
        return [full for full in known if full.rpartition(".")[2] == name][:3]

    meant = named(key)
    meant = meant or [x for x in known if key in x.rpartition(".")[2].split("_")][:3]
    names = list(dict.fromkeys(full.rpartition(".")[2] for full in known))
    for cutoff in (0.6, 0.5):
        near, far = (difflib.get_close_matches(key, x, 1, cutoff) for x in (here, names))
        meant = meant or [path + name for name in near] or [x for name in far for x in named(name)]
    hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
    shown = quote(path + key).strip("'")
    return f"unknown setting {shown}{hint} (allowed here: {', '.join(here)})"


def quote(value: Any) -> str:
    """A value as messages show it: on one line, and not at any length."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_range(value: Any, field: dataclasses.Field, path: str) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(item, field, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    above, least, most = (field.metadata.get(k) for k in ("greater_than", "minimum", "maximum"))
    if above is not None and not value > above:
        raise UserError(f"{path}: got {value}, must be above {above}")
    if isinstance(value, float) and value and not LEAST_FLOAT <= abs(value) <= MOST_FLOAT:
        raise UserError(
            f"{path}: got {value}, which float32 cannot hold (its size must be 0 or between "
            f"{LEAST_FLOAT:.2g} and {MOST_FLOAT:.2g})"
        )
    if isinstance(value, int):
        least = -MOST_INT if least is None else least
        most = MOST_INT if most is None else most
    if least is not None and not value >= least:
        raise UserError(f"{path}: got {_number(value)}, must be at least {least}")
    if most is not None and not value <= most:
        raise UserError(f"{path}: got {_number(value)}, must be at most {most}")


def _number(value: float) -> str:
    """A number as messages show it; whole ones of a hundred digits briefly."""
    return str(value) if abs(value) < 10**20 else f"{float(value):g}"


def type_name(hint: Any) -> str:
    """How a type is named to the user."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"list of {type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "section"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in typing.get_args(hint))
    if hint is type(None):
        return "none"
    if dataclasses.is_dataclass(hint):
        return "section"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _convert(value: Any, hint: Any, path: str, default: Any = None) -> Any:
    """The value as the field's type; raises UserError with the path."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, path + ".", default)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, path)
    wrong = UserError(f"{path}: got {quote(value)}, expected {type_name(hint)}")
    if origin is Literal:
        for choice in typing.get_args(hint):
            if value == choice and not isinstance(value, bool):
                return choice
        raise wrong
    if dict in (origin, hint):
        value = _plain(value, path)
        if not isinstance(value, dict):
            raise wrong
        return value
    if hint is Any:
        return _plain(value, path)
    if origin is tuple:
        return _convert_list(value, typing.get_args(hint)[0], path, wrong)
    if isinstance(value, (list, tuple, dict)) or value is None:
        raise wrong
    if hint is str:
        return _convert_text(value, wrong)
    if hint is bool:
        text = str(value).lower()
        if text not in ("true", "false", "yes", "no"):
            raise wrong
        return text in ("true", "yes")
    if hint not in (int, float):
        raise UserError(f"{path}: is {type_name(hint)}, which cannot be set")
    return _convert_number(value, hint, wrong)


def _convert_number(value: Any, hint: type, wrong: UserError) -> float:
    text = str(value).replace("_", "")
    if isinstance(value, bool) or len(text) > 300:
        raise wrong
    try:
        if hint is int:
            with contextlib.suppress(ValueError):
                return int(text)  # exact, where it has no exponent
        number = float(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(number) or (hint is int and not number.is_integer()):
        raise wrong
    return hint(number)


def _convert_text(value: Any, wrong: UserError) -> str:
    """Text that can name something: not empty, and without what no file can hold."""
    if not isinstance(value, str) or not value.strip():
        raise wrong
    if any(c < " " or "\ud800" <= c < "\ue000" for c in value):
        raise wrong
    return str(value)


def _plain(value: Any, path: str) -> Any:
    """A value of any type: what was typed as YAML says, all else as it is."""
    if isinstance(value, Raw):
        return _plain(strict_yaml.load(str(value), path), path)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{path}: got the key {quote(key)}, expected text")
    return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}


def _convert_union(value: Any, hint: Any, path: str) -> Any:
    """As the first of the types that takes it."""
    kinds = list(typing.get_args(hint))
    if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    for kind in kinds[:-1]:
        with contextlib.suppress(UserError):
            return _convert(value, kind, path)
    return _convert(value, kinds[-1], path)


def _convert_list(value: Any, item: Any, path: str, wrong: UserError) -> tuple:
    if isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise wrong
    return tuple(_convert(v, item, f"{path}[{i}]") for i, v in enumerate(value))


def merge(*layers: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dictionaries laid over each other; later ones win.

    Args:
      layers: the dictionaries.
      path: where they lie, for messages.

    Raises:
      UserError: a key is a section in one and has a value in another.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(value, dict) and isinstance(old, dict):
                merged[key] = merge(old, value, path=f"{path}{key}.")
            elif value is None and isinstance(old, dict):
                continue  # an empty section changes nothing
            elif old is not None and isinstance(value, dict) != isinstance(old, dict):
                one = old if isinstance(value, dict) else value
                raise UserError(f"{path}{key}: got both a section and the value {quote(one)}")
            else:
                merged[key] = value
    return merged


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}.

    Raises:
      UserError: a key is a section and has a value, or lies too deep.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key.count(".") >= MOST_NESTED:
            raise UserError(f"unknown setting {quote(key)}")
        layer: Any = value
        for part in reversed(key.split(".")):
            layer = {part: layer}
        nested = merge(nested, layer)
    return nested


def flatten(nested: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{path}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain nested dictionaries and lists, as YAML and JSON take them."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def describe(cls: type, path: str = "", default: Any = None) -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every setting, sections opened."""
    rows = []
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        value = _default(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            rows += describe(hints[field.name], f"{path}{field.name}.", value)
            continue
        shown = "required" if _required(field) else _show(value)
        rows.append(
            (path + field.name, type_name(hints[field.name]), shown, field.metadata.get("help", ""))
        )
    return rows


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
