"""Shared by all tests: one persistent compile cache, small toy tasks."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jaxrl-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Less optimised programs compile in two thirds of the time, and run nearly as fast at these sizes.
QUICK = "--xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"

import jax
import pytest

import jaxrl  # noqa: F401  before JAX
from jaxrl import envs
from tests import toys

jax.config.update("jax_num_cpu_devices", 4)
envs.register("countdown", toys.Countdown)
envs.register("fragile", toys.Fragile)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of a finished file would stay in memory, gigabytes in all."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def small_run():
    """A function that resolves a small, quick run on a toy task."""
    from jaxrl.config import resolve

    def make(*layers):
        base = {
            "env": {"name": "countdown"},
            "num_envs": 8,
            "total_timesteps": 8 * 8 * 8,
            "chunk": 2,
            "ppo": {"num_steps": 8, "network": {"policy_hidden": [8], "value_hidden": [8]}},
            "eval": {"every": 128, "episodes": 4, "final_episodes": 4},
            "checkpoint": {"every": 128},
            "log": {"console": False, "tensorboard": False},
        }
        return resolve(base, *layers, platform="none")

    return make
