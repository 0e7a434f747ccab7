"""jaxrl: reinforcement learning for simulated robots, compiled end to end with JAX."""

import ctypes.util as _libraries
import importlib as _importlib
import os as _os
import sys as _sys
from typing import Any as _Any

from jaxrl import interrupt as _interrupt  # noqa: F401  before what takes seconds to import

# XLA:CPU gives one thread to each core; on two cores, two batched library calls
# that wait for each other's workers can then stall for ever. Eight threads cost
# nothing and cannot stall. Read when the CPU client starts, so set before JAX does.
_os.environ.setdefault("PJRT_NPROC", "8")

# MuJoCo chooses its OpenGL library once, when it is imported, and by default takes one that
# needs a screen.
if _sys.platform == "linux" and "MUJOCO_GL" not in _os.environ:
    for _gl, _library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if _libraries.find_library(_library):
            _os.environ["MUJOCO_GL"] = _gl
            break

from jaxrl.bridge.gym_out import register_all as _register_all

_register_all()

__version__ = "0.1.0"

# Looked up when they are first used: to import JAX and MuJoCo takes seconds.
_LAZY = {
    "jaxrl.api": ("Run", "evaluate", "film", "load", "make", "resume", "tasks", "train"),
    "jaxrl.callbacks": ("Callback",),
    "jaxrl.envs": ("ArraySpec", "State", "Task", "register"),
    "jaxrl.errors": ("UserError",),
    "jaxrl.options": ("option",),
}


def __getattr__(name: str) -> _Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(_importlib.import_module(module), name)
    raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for names in _LAZY.values() for name in names)]
