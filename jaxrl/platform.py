"""The device that programs run on, and where compiled ones are kept."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrl.errors import UserError

_chosen = threading.local()


def start() -> str:
    """Finds the device, and a folder for compiled programs; returns "cpu" or "gpu".

    The folder is the user's own cache folder, since a cached program is code; set
    JAX_COMPILATION_CACHE_DIR to move it. Where it cannot be written there is none.

    Raises:
      UserError: there is no device.
    """
    chosen = jax.config.values.get("jax_compilation_cache_dir")
    if chosen in (None, os.environ.get("JAX_COMPILATION_CACHE_DIR")):  # else by the user's code
        jax.config.update("jax_compilation_cache_dir", _cache_folder())
    try:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    except Exception as error:  # each backend has its own
        asked = os.environ.get("JAX_PLATFORMS")
        why = f" with JAX_PLATFORMS={asked}" if asked else ""
        said = str(error).strip() or "none of that kind (for a GPU: pip install 'jaxrl[gpu]')"
        raise UserError(f"JAX finds no device{why}: {said.splitlines()[0]}") from error


def _cache_folder() -> str | None:
    """Where compiled programs are kept; None where nothing can be written."""
    try:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        base = os.environ.get("XDG_CACHE_HOME") or ("" if folder else Path.home() / ".cache")
        path = Path(folder or Path(base) / "jaxrl" / "xla")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return str(path)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def target() -> str:
    """ "cpu", "gpu" or another backend's name: JAX's default, or what `compile_for` says."""
    return getattr(_chosen, "platform", None) or jax.default_backend()


@contextlib.contextmanager
def compile_for(platform: str) -> Iterator[None]:
    """Traces programs for `platform` ("cpu" or "gpu") instead of JAX's default backend."""
    before = getattr(_chosen, "platform", None)
    _chosen.platform = platform
    try:
        yield
    finally:
        _chosen.platform = before


def free_bytes() -> int | None:
    """Memory of the device that arrays may still take; None where it cannot be known."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {name: value for name, _, value in (line.partition(":") for line in lines)}
        available = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max": none
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        available = min(available, int(limit) - int(used))
    return available


def tree_bytes(tree: Any) -> int:
    """Memory of a tree of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
