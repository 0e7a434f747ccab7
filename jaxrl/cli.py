"""What the commands share: arguments, one-line errors, the device, the compile cache."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError
from jaxrl.options import nest


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command's main; a UserError becomes one line and exit status 2."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or type(error).__module__ == "builtins":
            raise
        print(
            "error: out of memory: lower num_envs (num_seeds, buffer_size, --episodes)",
            file=sys.stderr,
        )
        status = 2
    sys.exit(status)


def parse(
    argv: list[str], flags: dict[str, bool], *, settings: bool = False
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Splits arguments into positionals, the command's flags and dotted settings.

    Args:
      argv: arguments; "--name value" and "--name=value" are the same.
      flags: the command's flags and whether each takes a value.
      settings: whether other "--dotted.key value" arguments are allowed.

    Returns:
      positionals, flags by name ("set" collects nested settings, "sweep" a list), nested
      settings.

    Raises:
      UserError: an unknown flag or a missing value.
    """
    positionals: list[str] = []
    found: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            if token == "-h":
                found["help"] = True
            else:
                positionals.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        known = name in flags
        if not known and not settings:
            close = difflib.get_close_matches(name, flags, 1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise UserError(f"unknown argument --{name}{hint} (known: --{', --'.join(flags)})")
        if known and not flags[name]:
            if equals:
                raise UserError(f"--{name}: takes no value")
            found[name] = True
            continue
        if not equals:
            value = "" if not rest or rest[0].startswith("--") else rest.pop(0)
        if not value:
            raise UserError(f"--{name}: needs a value")
        if name == "set":
            key, equals, value = value.partition("=")
            if not equals:
                raise UserError(f"--set {key}: expected KEY=VALUE, such as env.drive=omniwheel")
            found.setdefault("set", {})[key] = value
        elif name == "sweep":
            found.setdefault("sweep", []).append(value)
        elif known:
            found[name] = value
        else:
            flat[name] = value
    found["set"] = nest(found.get("set", {}))
    return positionals, found, nest(flat)


def whole(flags: dict[str, Any], name: str, default: int, *, least: int = 1) -> int:
    """A flag's whole number, at least `least` and below 2^32."""
    text = str(flags.get(name, default))
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) < 2**32:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise UserError(
            f"--{name}: got {shown!r}, expected a whole number from {least} to {2**32 - 1:,}"
        )
    return int(text)


def start_jax() -> str:
    """Chooses the device and the compile cache; returns "cpu" or "gpu".

    The cache lies in the user's own cache folder, since a cached program is code; set
    JAX_COMPILATION_CACHE_DIR to move it.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "jaxrl" / "xla"))
    try:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {str(error).splitlines()[0]}") from error
