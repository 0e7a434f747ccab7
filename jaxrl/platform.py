"""Which kind of device a program is traced for. CPU and GPU want different forms."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_chosen = threading.local()


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
