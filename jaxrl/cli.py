"""Code that all commands share: arguments, one-line errors, the device, the compile cache."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from jaxrl.errors import UserError
from jaxrl.options import Raw, nest

MAX_FILES = 2**16  # limit of open files that a command asks for


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command's main; a UserError becomes one line and exit status 2."""
    before = sys.stdout, sys.stderr
    out, _ = _unbreakable("stdout", 1), _unbreakable("stderr", 2)
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        status = _fail(str(error))
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if str(error).startswith("INTERNAL: KeyboardInterrupt"):  # in a call of a simulator
            status = 130
        elif "RESOURCE_EXHAUSTED" not in str(error) or type(error).__module__ == "builtins":
            raise
        else:
            status = _fail("out of memory: lower num_envs, num_seeds, buffer_size or --episodes")
    finally:
        out.flush()
        if out.failed and not isinstance(out.failed, BrokenPipeError):
            status = _fail(f"cannot write to standard output: {out.failed.strerror}")
        sys.stdout, sys.stderr = before
    if "jax" in sys.modules:
        from jaxrl import hosts

        hosts.leave(status)
    sys.exit(status or (141 if out.failed else 0))


def _fail(message: str) -> int:
    """Prints an error as one line; returns the exit status."""
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2


class _Stream:
    """An output stream that raises no errors: text that cannot be written is lost.

    Attributes:
      failed: the first error while writing; None: no error.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, method: Callable, *args: Any) -> None:
        try:
            method(*args)
        except OSError as error:
            self.failed = self.failed or error
            with contextlib.suppress(OSError):  # no error at exit either
                _to_null(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unbreakable(name: str, number: int) -> _Stream:
    """Replaces sys.stdout or sys.stderr, even if it is closed, by a `_Stream`."""
    stream = getattr(sys, name)
    if stream is None:  # else the next opened file gets this number, which C code prints to
        _to_null(number)
        stream = open(number, "w", closefd=False)
    with contextlib.suppress(AttributeError):
        stream.reconfigure(errors="backslashreplace")  # if the terminal lacks a character
    setattr(sys, name, _Stream(stream))
    return getattr(sys, name)


def _to_null(number: int) -> None:
    """Redirects a file descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def parse(
    argv: list[str], flags: dict[str, bool], *, settings: bool = False
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Splits arguments into positional ones, the command's flags and dotted settings.

    Args:
      argv: arguments; "--name value" and "--name=value" are the same.
      flags: the command's flags and whether each takes a value.
      settings: whether other "--dotted.key value" arguments are allowed.

    Returns:
      positional arguments; flags by name ("set" has nested settings, "sweep" a list); nested
      settings.

    Raises:
      UserError: an unknown flag or a missing value.
    """
    positionals: list[str] = []
    flag_values: dict[str, Any] = {"set": {}}
    flat: dict[str, Any] = {}
    remaining = list(argv)
    while remaining:
        token = remaining.pop(0)
        if token == "-h":
            flag_values["help"] = True
        elif not token.startswith("--"):
            positionals.append(token)
        else:
            name, value = _name_and_value(token[2:], remaining, flags, settings)
            if name == "set":
                key, equals, value = value.partition("=")
                if not equals:
                    raise UserError(f"--set {key}: expected KEY=VALUE, such as env.drive=omniwheel")
                # Where settings are arguments, --set KEY=VALUE is the same as --KEY VALUE.
                (flag_values["set"] if "set" in flags else flat)[key] = Raw(value)
            elif name == "sweep" and "sweep" in flags:
                flag_values.setdefault("sweep", []).append(value)
            elif name in flags:
                flag_values[name] = value
            else:  # --env NAME is short for --env.name NAME
                flat["env.name" if name == "env" else name] = Raw(value)
    flag_values["set"] = nest(flag_values["set"])
    return positionals, flag_values, nest(flat)


def _name_and_value(
    text: str, remaining: list[str], flags: dict[str, bool], settings: bool
) -> tuple[str, Any]:
    """Name and value of an argument, "name=value" or "name".

    The value of "name" is the next argument, which is removed from `remaining`.
    """
    name, equals, value = text.partition("=")
    if name not in flags and not settings:
        close = difflib.get_close_matches(name, flags, 1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise UserError(f"unknown argument --{name}{hint} (known: --{', --'.join(flags)})")
    if name in flags and not flags[name]:
        if equals:
            raise UserError(f"--{name}: takes no value")
        return name, True
    if not equals and remaining and not remaining[0].startswith("--"):
        value = remaining.pop(0)
    if not value:
        raise UserError(f"--{name}: needs a value")
    return name, value


def parse_int(flags: dict[str, Any], name: str, default: int, *, minimum: int = 1) -> int:
    """The whole number that a flag has, at least `minimum` and below 2^32."""
    text = str(flags.get(name, default))
    if not text.isdecimal() or len(text) > 10 or not minimum <= int(text) < 2**32:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise UserError(
            f"--{name}: got {shown!r}, expected a whole number from {minimum} to {2**32 - 1:,}"
        )
    return int(text)


def parse_number(flags: dict[str, Any], name: str, default: float) -> float:
    """The number that a flag has, at least 0."""
    text = str(flags.get(name, default))
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < math.inf:
            return number
    raise UserError(f"--{name}: got {text!r}, expected a number from 0")


def start_jax() -> str:
    """Prepares JAX: device, compile cache, open files, float32; returns "cpu" or "gpu"."""
    import jax

    from jaxrl import platform

    _allow_files()
    if jax.config.values["jax_enable_x64"]:
        jax.config.update("jax_enable_x64", False)
        print("JAX_ENABLE_X64 is ignored: training is in float32", file=sys.stderr)
    return platform.start()


def _allow_files() -> None:
    """Raises the limit of open files: a population needs at least one for each member."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
