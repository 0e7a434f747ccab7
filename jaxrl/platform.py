"""The device that compiled programs run on, and the cache that they are kept in."""

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
    """Finds the devices, and sets the folder of the compile cache; returns "cpu" or "gpu".

    The cores of a CPU are devices of their own.

    The cache lies in the user's own cache folder, since cached programs are executable code; set
    JAX_COMPILATION_CACHE_DIR to move it. If the folder cannot be written, there is no cache.

    Raises:
      UserError: there is no device.
    """
    chosen = jax.config.values.get("jax_compilation_cache_dir")
    if chosen in (None, os.environ.get("JAX_COMPILATION_CACHE_DIR")):  # else set by user code
        jax.config.update("jax_compilation_cache_dir", _cache_folder())
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has begun already, with its own number
            jax.config.update("jax_num_cpu_devices", cores())
    try:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    except Exception as error:  # each backend has its own type
        requested = os.environ.get("JAX_PLATFORMS")
        condition = f" with JAX_PLATFORMS={requested}" if requested else ""
        message = str(error).strip() or "no such device (for a GPU: pip install 'jaxrl[gpu]')"
        raise UserError(f"JAX finds no device{condition}: {message.splitlines()[0]}") from error


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache_folder() -> str | None:
    """The folder of the compile cache; None if it cannot be written."""
    try:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        base = os.environ.get("XDG_CACHE_HOME") or ("" if folder else Path.home() / ".cache")
        path = Path(folder or Path(base) / "jaxrl" / "xla")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return str(path)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None


def target() -> str:
    """The backend that programs are compiled for, such as "cpu".

    It is JAX's default backend, unless `compile_for` sets another one.
    """
    return getattr(_chosen, "platform", None) or jax.default_backend()


@contextlib.contextmanager
def compile_for(platform: str) -> Iterator[None]:
    """Programs traced inside are for `platform` ("cpu" or "gpu"), not JAX's default backend."""
    before = getattr(_chosen, "platform", None)
    _chosen.platform = platform
    try:
        yield
    finally:
        _chosen.platform = before


def free_bytes() -> int | None:
    """Free memory of the device in bytes; None if it is unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {name: value for name, _, value in (line.partition(":") for line in lines)}
        available = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max": no limit
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        available = min(available, int(limit) - int(used))
    return available


def tree_bytes(tree: Any) -> int:
    """Memory in bytes of a tree of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def sizes(parts: dict[str, int]) -> str:
    """Bytes by part as text: their sum, and the parts from the largest one."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    each = ", ".join(f"{name} {size(count)}" for name, count in ordered)
    return f"{size(sum(parts.values()))} ({each})"


def size(count: int) -> str:
    """A number of bytes in a unit that suits it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
