"""Which kind of device a program is traced for. CPU and GPU want different forms."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

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
