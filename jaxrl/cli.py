"""What the commands share: arguments, one-line errors, the device, the compile cache."""

from __future__ import annotations

import contextlib
import difflib
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from jaxrl.errors import UserError
from jaxrl.options import Raw, nest

MOST_FILES = 2**16


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
        if "RESOURCE_EXHAUSTED" not in str(error) or type(error).__module__ == "builtins":
            raise
        status = _fail("out of memory: lower num_envs (num_seeds, buffer_size, --episodes)")
    finally:
        out.flush()
        if out.failed and not isinstance(out.failed, BrokenPipeError):
            status = _fail(f"cannot write to standard output: {out.failed.strerror}")
        sys.stdout, sys.stderr = before
    sys.exit(status or (141 if out.failed else 0))


def _fail(message: str) -> int:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2


class _Stream:
    """An output stream that is no reason to end a training: what it cannot take is lost.

    Attributes:
      failed: the first error in writing to it.
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
            with contextlib.suppress(OSError):  # nor at the interpreter's end
                _to_null(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unbreakable(name: str, number: int) -> _Stream:
    """Puts such a stream in the place of sys.stdout or sys.stderr, closed ones too."""
    stream = getattr(sys, name)
    if stream is None:  # else the next file opened would get the number that C prints to
        _to_null(number)
        stream = open(number, "w", closefd=False)
    with contextlib.suppress(AttributeError):
        stream.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    setattr(sys, name, _Stream(stream))
    return getattr(sys, name)


def _to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


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
            found.setdefault("set", {})[key] = Raw(value)
        elif name == "sweep":
            found.setdefault("sweep", []).append(value)
        elif known:
            found[name] = value
        else:
            flat[name] = Raw(value)
    found["set"] = nest(found.get("set", {}))
    return positionals, found, nest(flat)


def parse_int(flags: dict[str, Any], name: str, default: int, *, minimum: int = 1) -> int:
    """A flag's whole number, at least `minimum` and below 2^32."""
    text = str(flags.get(name, default))
    if not text.isdecimal() or len(text) > 10 or not minimum <= int(text) < 2**32:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise UserError(
            f"--{name}: got {shown!r}, expected a whole number from {minimum} to {2**32 - 1:,}"
        )
    return int(text)


def start_jax() -> str:
    """Chooses the device and the compile cache; returns "cpu" or "gpu"."""
    import jax

    from jaxrl import platform

    _allow_files()
    if jax.config.values["jax_enable_x64"]:
        jax.config.update("jax_enable_x64", False)
        print("JAX_ENABLE_X64 is ignored: training is in float32", file=sys.stderr)
    return platform.start()


def _allow_files() -> None:
    """As many open files as this user may have: a population has one or more a member."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
