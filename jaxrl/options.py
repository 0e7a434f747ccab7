"""Settings as frozen dataclasses: built from nested dictionaries, checked, printed.

YAML files, `--dotted.key value` arguments and saved runs all pass through `build`, so
each wrong key or value meets the same check and the same one-line message.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal, TypeVar

import yaml

from jaxrl.errors import UserError

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field with its help text and the range that it must lie in.

    Args:
      default: default value.
      help: one line.
      above: exclusive lower bound.
      least, most: inclusive bounds.
    """
    metadata = {"help": help, "above": above, "least": least, "most": most}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type[T], values: dict[str, Any], path: str = "", default: T | None = None) -> T:
    """Makes the dataclass from a nested dictionary.

    Args:
      cls: a dataclass; fields that are left out keep their defaults.
      values: plain values; strings are read by the field's type, so "1e-3" is a number
        where a number belongs and "10e6" a whole one.
      path: where `values` lies, for messages ("ppo.").
      default: keeps what `values` leave out; none: the class's own defaults.

    Raises:
      UserError: unknown key, wrong type, or value out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path.rstrip('.') or 'config'}: expected a section, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    made = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(_unknown(f"{path}{key}", str(key), fields, path))
        base = _default(fields[key]) if default is None else getattr(default, key)
        made[key] = _convert(value, hints[key], f"{path}{key}", base)
        _check_range(made[key], fields[key], f"{path}{key}")
    return cls(**made) if default is None else dataclasses.replace(default, **made)


def _default(field: dataclasses.Field) -> Any:
    """A field's default, or None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _unknown(full: str, key: str, fields: dict, path: str) -> str:
    close = difflib.get_close_matches(key, fields, 1, 0.5)
    hint = f"; did you mean {path}{close[0]!s}?" if close else ""
    return f"unknown setting {full}{hint} (allowed here: {', '.join(fields)})"


def _check_range(value: Any, field: dataclasses.Field, path: str) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(item, field, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    above, least, most = (field.metadata.get(k) for k in ("above", "least", "most"))
    if above is not None and not value > above:
        raise UserError(f"{path}: got {value}, must be above {above}")
    if least is not None and not value >= least:
        raise UserError(f"{path}: got {value}, must be at least {least}")
    if most is not None and not value <= most:
        raise UserError(f"{path}: got {value}, must be at most {most}")


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
        return _convert_optional(value, hint, path)
    wrong = UserError(f"{path}: got {value!r}, expected {type_name(hint)}")
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise wrong
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        return {key: yaml.safe_load(v) if isinstance(v, str) else v for key, v in value.items()}
    if origin is tuple:
        return _convert_list(value, typing.get_args(hint)[0], path, wrong)
    if hint is bool:
        text = str(value).lower()
        if text not in ("true", "false", "yes", "no"):
            raise wrong
        return text in ("true", "yes")
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        raise wrong
    if hint is str:
        return str(value)
    try:
        number = float(str(value).replace("_", ""))
    except ValueError:
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    if hint is int:
        if not number.is_integer():
            raise wrong
        return value if isinstance(value, int) else int(number)
    return number


def _convert_optional(value: Any, hint: Any, path: str) -> Any:
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    if value is None or str(value).lower() in ("none", "null"):
        return None
    return _convert(value, inner[0], path)


def _convert_list(value: Any, item: Any, path: str, wrong: UserError) -> tuple:
    if isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise wrong
    return tuple(_convert(v, item, f"{path}[{i}]") for i, v in enumerate(value))


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other; later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = merge(merged[key], value)
            elif value is None and isinstance(merged.get(key), dict):
                continue  # an empty section changes nothing
            else:
                merged[key] = value
    return merged


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
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
    hints = typing.get_type_hints(cls)
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
    return "none" if value is None else str(value)
