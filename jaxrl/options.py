"""Settings as frozen dataclasses: built from nested dictionaries, checked, printed.

YAML files, `--dotted.key value` arguments and the settings of saved runs all pass through `build`,
so that a wrong key or value leads to the same one-line message everywhere.
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
# Ranges of the numbers in training: float32 without subnormal numbers, and int32.
MIN_FLOAT, MAX_FLOAT, MAX_INT = 2.0**-126, 3.4e38, 2**31 - 1
MAX_NESTED = 20  # depth of sections


class Raw(str):
    """Text from the command line, which is converted to the type of its setting.

    For a setting that takes values of any type it is read as YAML, whereas text from a file stays
    text.
    """


def option(
    default: Any,
    help: str,
    *,
    greater_than: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    traced: bool = False,
    formerly: str | None = None,
) -> Any:
    """A dataclass field with its help text and the range that it must lie in.

    Args:
      default: default value.
      help: one line; "{section}" in it is replaced by the help of the section that the setting
        is in.
      greater_than: exclusive lower bound.
      minimum, maximum: inclusive bounds; a whole number without them must be within +-(2^31 - 1).
      traced: whether compiled programs take the number as an argument: another value does not
        compile them again, and each member of a population may have its own value.
      formerly: an old name of the field, which saved runs may contain.
    """
    metadata = {
        "help": help,
        "greater_than": greater_than,
        "minimum": minimum,
        "maximum": maximum,
        "traced": traced,
        "formerly": formerly,
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
    """Makes a dataclass from a nested dictionary.

    Args:
      cls: a dataclass; fields that are left out keep their defaults.
      values: plain values; strings are converted to the field's type, so that "1e-3" is accepted
        for a number, and "10e6" for a whole number.
      path: dotted path of `values`, for messages ("ppo.").
      default: an instance with the values of fields that are left out; None: the class's defaults.
      known: returns the dotted keys that are suggested for an unknown key; None: those of `cls`.

    Raises:
      UserError: unknown key, wrong type, value out of range, or no value where one is needed.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path.rstrip('.') or 'config'}: expected a section, got {quote(values)}")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    renamed = {f.metadata.get("formerly"): name for name, f in fields.items()}
    converted = {}
    for key, value in values.items():
        key = renamed.get(key, key)
        if key not in fields:
            candidates = known() if known else [row[0] for row in describe(cls, path)]
            raise UserError(_unknown(path, str(key), list(fields), candidates))
        base = _default(fields[key]) if default is None else getattr(default, key)
        converted[key] = _convert(value, hints[key], f"{path}{key}", base)
        _check_range(converted[key], fields[key], f"{path}{key}")
    if default is not None:
        return dataclasses.replace(default, **converted)
    for key, field in fields.items():
        if key not in converted and _required(field):
            raise UserError(f"{path}{key}: needs a value, {type_name(hints[key])}")
    return cls(**converted)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field) -> Any:
    """The default of a field, or None if it has no default."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _unknown(path: str, key: str, here: list[str], known: Sequence[str]) -> str:
    """The message about an unknown key, with suggestions.

    Args:
      path: dotted path of the section.
      key: the unknown key.
      here: keys of the section.
      known: dotted keys of settings anywhere.
    """

    def named(name: str) -> list[str]:
        return [full for full in known if full.rpartition(".")[2] == name][:3]

    suggestions = named(key)
    suggestions = suggestions or [x for x in known if key in x.rpartition(".")[2].split("_")][:3]
    names = list(dict.fromkeys(full.rpartition(".")[2] for full in known))
    for cutoff in (0.6, 0.5):
        near, far = (difflib.get_close_matches(key, x, 1, cutoff) for x in (here, names))
        suggestions = (
            suggestions
            or [path + name for name in near]
            or [x for name in far for x in named(name)]
        )
    hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
    shown = quote(path + key).strip("'")
    return f"unknown setting {shown}{hint} (allowed here: {', '.join(here)})"


def quote(value: Any) -> str:
    """A value as messages show it: one line of at most 100 characters."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_range(value: Any, field: dataclasses.Field, path: str) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(item, field, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    greater_than, minimum, maximum = (
        field.metadata.get(k) for k in ("greater_than", "minimum", "maximum")
    )
    if greater_than is not None and not value > greater_than:
        raise UserError(f"{path}: got {value}, must be above {greater_than}")
    if isinstance(value, float) and value and not MIN_FLOAT <= abs(value) <= MAX_FLOAT:
        raise UserError(
            f"{path}: got {value}, which float32 cannot hold (its size must be 0 or between "
            f"{MIN_FLOAT:.2g} and {MAX_FLOAT:.2g})"
        )
    if isinstance(value, int):
        minimum = -MAX_INT if minimum is None else minimum
        maximum = MAX_INT if maximum is None else maximum
    if minimum is not None and not value >= minimum:
        raise UserError(f"{path}: got {_number(value)}, must be at least {minimum}")
    if maximum is not None and not value <= maximum:
        raise UserError(f"{path}: got {_number(value)}, must be at most {maximum}")


def _number(value: float) -> str:
    """A number as messages show it; numbers of more than 20 digits with an exponent."""
    return str(value) if abs(value) < 10**20 else f"{float(value):g}"


def type_name(hint: Any) -> str:
    """The name of a type in messages and help texts."""
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
    """The value converted to the type `hint`; raises UserError with the path if it does not fit."""
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
        raise UserError(f"{path}: cannot be set, since its type is {type_name(hint)}")
    return _convert_number(value, hint, wrong)


def _convert_number(value: Any, hint: type, wrong: UserError) -> float:
    text = str(value).replace("_", "")
    if isinstance(value, bool) or len(text) > 300:
        raise wrong
    try:
        if hint is int:
            with contextlib.suppress(ValueError):
                return int(text)  # exact, if the text has no exponent
        number = float(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(number) or (hint is int and not number.is_integer()):
        raise wrong
    return hint(number)


def _convert_text(value: Any, wrong: UserError) -> str:
    """Text that can be a name: not empty, without control characters and lone surrogates."""
    if not isinstance(value, str) or not value.strip():
        raise wrong
    if any(c < " " or "\ud800" <= c < "\ue000" for c in value):
        raise wrong
    return str(value)


def _plain(value: Any, path: str) -> Any:
    """A value for a setting of any type: text from the command line is read as YAML."""
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
    """The value converted to the first type of the union that accepts it."""
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
    """Merges nested dictionaries; values of later ones win.

    Args:
      layers: the dictionaries.
      path: their dotted path, for messages.

    Raises:
      UserError: a key is a section in one dictionary and has a value in another.
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
                value_given = old if isinstance(value, dict) else value
                raise UserError(
                    f"{path}{key}: got both a section and the value {quote(value_given)}"
                )
            else:
                merged[key] = value
    return merged


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}.

    Raises:
      UserError: a key is a section and also has a value, or is nested too deeply.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key.count(".") >= MAX_NESTED:
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
    """The dataclass as nested dictionaries and lists of plain values, for YAML and JSON."""
    fields = dataclasses.fields(config)
    return {field.name: _plain_value(getattr(config, field.name)) for field in fields}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def default_values(cls: type) -> dict[str, Any]:
    """The plain default values of all settings that have one, by dotted key."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not _required(field):
            values[field.name] = _plain_value(_default(field))
    return flatten(values)


def describe(
    cls: type, path: str = "", default: Any = None, section: str = ""
) -> list[tuple[str, str, str, str]]:
    """Rows (dotted key, type, default, help) of all settings, including those in sections.

    Args:
      cls: a dataclass.
      path: its dotted path ("ppo.").
      default: an instance with the values to show; None: the class's own defaults.
      section: help of the section, which replaces "{section}" in the help of its settings.
    """
    rows = []
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        value = _default(field) if default is None else getattr(default, field.name)
        text = field.metadata.get("help", "").replace("{section}", section)
        if dataclasses.is_dataclass(hints[field.name]):
            rows += describe(hints[field.name], f"{path}{field.name}.", value, text)
            continue
        shown = "required" if _required(field) else _show(value)
        rows.append((path + field.name, type_name(hints[field.name]), shown, text))
    return rows


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _show(value: Any) -> str:
    """A value as help texts show it."""
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
