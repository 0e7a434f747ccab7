"""jaxrl: reinforcement learning for simulated robots, compiled end to end with JAX."""

import ctypes.util as _libraries
import importlib as _importlib
import os as _os
import sys as _sys
from typing import Any as _Any

from jaxrl import interrupt as _interrupt  # noqa: F401  before slow imports

# By default XLA:CPU starts one thread for each core. With two threads, two batched library calls
# may wait for each other's workers for ever; eight threads cost nothing and prevent this. JAX
# reads the variable when its CPU client starts, so it must be set before.
_os.environ.setdefault("PJRT_NPROC", "8")

# MuJoCo chooses its OpenGL library when it is imported; its default needs a screen. Choose one
# that is installed and needs no screen.
if _sys.platform == "linux" and "MUJOCO_GL" not in _os.environ:
    for _gl, _library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if _libraries.find_library(_library):
            _os.environ["MUJOCO_GL"] = _gl
            break

from jaxrl.bridge.gym_out import register_all as _register_all

_register_all()

__version__ = "0.1.0"

# Names that are imported at their first use, since importing JAX and MuJoCo takes seconds.
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
