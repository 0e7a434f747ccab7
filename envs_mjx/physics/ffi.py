"""Calls of Python functions from compiled programs on the CPU.

`jax.pure_callback` does the same, but JAX never stores a program that contains one in its
persistent compilation cache. A foreign function is known to a program by its name alone, so that
such a program is stored; and it needs no compiler if ctypes makes the function from Python.

Source: XLA's `xla/ffi/api/c_api.h`, which comes with jaxlib (`jax.ffi.include_dir()`).
"""

from __future__ import annotations

import atexit
import ctypes
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL
_registered: dict[str, Any] = {}  # handlers by name: XLA keeps only pointers to them
_ending = False  # the interpreter is about to end


@atexit.register
def _wait_for_programs() -> None:
    """Lets programs end that still run: they cannot call Python once the interpreter has ended.
    Nobody reads their results, so that the calls return at once."""
    global _ending
    _ending = True
    jax.effects_barrier()


class _Extension(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p)]


class _Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _Api(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)),
    ]


class _Error(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _CallFrame(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
    ]


def call(name: str, function: Function, rows: jax.Array, size: int) -> jax.Array:
    """The result of a Python function of the rows of an array, in a compiled program.

    Args:
      name: name of the function, the same in every process: stored programs find it by its name.
      function: [B, K] float32 -> [B, size]; B is the product of all axes that `jax.vmap` adds.
      rows: [K] float32 of one world.
      size: number of values in the result.

    Returns:
      [size] float32 of one world.
    """
    if name not in _registered:
        _registered[name] = _handler(function)
        address = ctypes.cast(_registered[name], ctypes.c_void_p)
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(address), platform="cpu")
    result = jax.ShapeDtypeStruct((size,), np.float32)
    # With an effect, JAX keeps account of the programs that still run.
    call = jax.ffi.ffi_call(name, result, vmap_method="broadcast_all", has_side_effect=True)
    return call(rows)


def _handler(function: Function) -> Any:
    """The function as XLA calls it."""

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
    def handler(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.type == _METADATA:
            extension = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension))
            metadata = extension.contents.metadata.contents
            metadata.version.major = frame.api.contents.version.major
            metadata.version.minor = frame.api.contents.version.minor
            metadata.traits = 0
            return None
        try:
            rows, result = _view(frame.arguments), _view(frame.results)
            result[...] = math.nan if _ending else function(rows)
        except BaseException as error:
            return _error(frame, f"{type(error).__name__}: {error}")
        return None

    return handler


def _view(buffers: _Buffers) -> np.ndarray:
    """The only buffer as an array [B, K] float32, which shares its memory."""
    buffer = buffers.buffers[0].contents
    *batch, width = buffer.dims[: buffer.rank]
    count = math.prod(batch)
    if not count * width:
        return np.empty((count, width), np.float32)
    cells = (ctypes.c_float * (count * width)).from_address(buffer.data)
    return np.frombuffer(cells, np.float32).reshape(count, width)


def _error(frame: _CallFrame, message: str) -> int:
    """An error of XLA, which the program raises with this message."""
    error = _Error(ctypes.sizeof(_Error), None, message.encode(), _INTERNAL)
    return frame.api.contents.create_error(ctypes.addressof(error))
