"""Tuning of how MJX is compiled.

MJX itself is unchanged. While a step is traced, a few of its helpers are replaced by
functions that return the same values:
* On a CPU, XLA fuses across the levels of a kinematic tree and computes the ancestors of
  every level again: a six-joint arm steps a hundred times slower than necessary. A barrier
  after each level keeps the levels apart. Shallow trees do not need it, and on a GPU it
  would only split kernels.
* Small Cholesky factorisations become plain arithmetic instead of library calls: on a GPU
  they fuse with neighbouring operations, on a CPU they vectorise over the worlds.
* On a GPU, a loop with a computed end waits for the host at each trip. The loops of the solver
  and of its line search therefore make all trips that the model allows, and keep the result of
  the last one that counts. The line search is unrolled too, which needs 40 % fewer kernels; the
  solver is not, which would take half as long again to compile.
* On a GPU, XLA begins a new kernel at each reduction. Sums, dot products, norms and argmins
  of few components therefore become plain arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco.mjx._src import math as _mjx_math
from mujoco.mjx._src import scan as _mjx_scan
from mujoco.mjx._src import solver as _mjx_solver

from jaxrl import platform

# Size of the largest matrix whose Cholesky factor is written out as plain arithmetic.
WRITTEN_OUT_CHOLESKY_MAX = 12
# Length of the longest sum that is written out as additions on a GPU.
WRITTEN_OUT_SUM_MAX = 16
# Largest number of solver iterations that are all made on a GPU.
FIXED_ITERATIONS_MAX = 5
# Kinematic trees at least this deep are compiled with barriers on a CPU.
BARRIER_MIN_DEPTH = 3

_patch_lock = threading.RLock()


def _patches(model: mujoco.MjModel) -> list[tuple[Any, str, Any]]:
    """(owner, name, replacement) of each function that is replaced while a step is traced."""
    linalg = jax.scipy.linalg
    patches = [
        (linalg, "cho_factor", _small_cho_factor(linalg.cho_factor)),
        (linalg, "cho_solve", _small_cho_solve(linalg.cho_solve)),
    ]
    if platform.target() != "cpu":
        patches += _gpu_patches(model)
    elif _tree_depth(model) >= BARRIER_MIN_DEPTH:
        patches += [
            (_mjx_scan, "body_tree", _with_barrier(_mjx_scan.body_tree)),
            (_mjx_scan, "flat", _with_barrier(_mjx_scan.flat)),
        ]
    return patches


@contextlib.contextmanager
def tuned_mjx(model: mujoco.MjModel):
    """Context in which MJX's helpers are replaced; a model's steps are traced in it."""
    with _patch_lock:
        patches = _patches(model)
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
        for (owner, name, value), (_, _, original) in zip(patches, originals, strict=True):
            setattr(owner, name, _in_this_thread(value, original))
        try:
            yield
        finally:
            for owner, name, value in originals:
                setattr(owner, name, value)


def _in_this_thread(replacement, original):
    """The replacement in the thread that traces MJX, the original in others, which may trace
    something else at the same time."""
    thread = threading.get_ident()

    @functools.wraps(original)
    def function(*args, **kwargs):
        chosen = replacement if threading.get_ident() == thread else original
        return chosen(*args, **kwargs)

    return function


def _gpu_patches(model: mujoco.MjModel) -> list[tuple[Any, str, Any]]:
    patches = [
        (_mjx_solver, "_while_loop_scan", _unrolled_while),
        (jnp, "sum", _small_sum(jnp.sum)),
        (jnp, "dot", _small_dot(jnp.dot)),
        (jnp, "argmin", _small_argmin(jnp.argmin)),
        (_mjx_math, "norm", _small_norm(_mjx_math.norm)),
    ]
    if model.opt.iterations <= FIXED_ITERATIONS_MAX:
        fixed = _fixed_solver(jax.lax.while_loop, model.opt.iterations)
        patches.append((jax.lax, "while_loop", fixed))
    return patches


def _tree_depth(model: mujoco.MjModel) -> int:
    depth = np.zeros(model.nbody, int)
    for body in range(1, model.nbody):
        depth[body] = depth[model.body_parentid[body]] + 1
    return int(depth.max())


def _with_barrier(scan):
    """MJX's tree scan with a barrier after each level and after the whole scan."""
    barrier = jax.lax.optimization_barrier

    @functools.wraps(scan)
    def wrapper(model, function, *args, **kwargs):
        level = lambda *inputs: barrier(function(*inputs))  # noqa: E731
        return barrier(scan(model, level, *args, **kwargs))

    return wrapper


def _small_cho_factor(library):
    def cho_factor(a: jax.Array, lower: bool = False):
        n = a.shape[-1]
        if a.ndim != 2 or n > WRITTEN_OUT_CHOLESKY_MAX or lower:
            return library(a, lower)
        u = [[jnp.zeros(())] * n for _ in range(n)]
        for i in range(n):
            for j in range(i, n):
                remainder = a[i, j] - sum(u[k][i] * u[k][j] for k in range(i))
                u[i][j] = jnp.sqrt(remainder) if i == j else remainder / u[i][i]
        return jnp.stack([jnp.stack(row) for row in u]), False

    return cho_factor


def _small_cho_solve(library):
    def cho_solve(factor, b: jax.Array):
        u, lower = factor
        n = u.shape[-1]
        if u.ndim != 2 or b.ndim != 1 or n > WRITTEN_OUT_CHOLESKY_MAX or lower:
            return library(factor, b)
        y: list = []
        for i in range(n):
            y.append((b[i] - sum(u[k, i] * y[k] for k in range(i))) / u[i, i])
        x: list = [None] * n
        for i in reversed(range(n)):
            x[i] = (y[i] - sum(u[i, k] * x[k] for k in range(i + 1, n))) / u[i, i]
        return jnp.stack(x)

    return cho_solve


def _unrolled_while(cond_fun, body_fun, init_val, max_iter):
    carry = init_val, cond_fun(init_val)
    for _ in range(max_iter):
        carry = _trip(cond_fun, body_fun, carry)
    return carry[0]


def _fixed_solver(library, iterations: int):
    def while_loop(cond_fun, body_fun, init_val):
        if not isinstance(init_val, _mjx_solver.Context):
            return library(cond_fun, body_fun, init_val)
        trip = lambda _, carry: _trip(cond_fun, body_fun, carry)  # noqa: E731
        return jax.lax.fori_loop(0, iterations, trip, (init_val, cond_fun(init_val)))[0]

    return while_loop


def _trip(cond_fun, body_fun, carry):
    """One trip of a loop; it changes nothing once the condition was false."""
    value, running = carry
    value = jax.tree.map(lambda a, b: jnp.where(running, b, a), value, body_fun(value))
    return value, running & cond_fun(value)


def _small_sum(library):
    def total(a, axis=None, **kwargs):
        is_float_array = (
            isinstance(a, jax.Array) and a.ndim and jnp.issubdtype(a.dtype, jnp.floating)
        )
        if kwargs or not is_float_array or not (axis is None or isinstance(axis, int)):
            return library(a, axis, **kwargs)
        rows = a.ravel() if axis is None else jnp.moveaxis(a, axis, 0)
        if not 0 < len(rows) <= WRITTEN_OUT_SUM_MAX:
            return library(a, axis)
        return functools.reduce(operator.add, [rows[i] for i in range(len(rows))])

    return total


def _small_dot(library):
    def dot(a, b, **kwargs):
        vectors = jnp.ndim(a) in (1, 2) and jnp.ndim(b) == 1
        if kwargs or not vectors or len(b) > WRITTEN_OUT_SUM_MAX:
            return library(a, b, **kwargs)
        return jnp.sum(a * b, axis=-1)

    return dot


def _small_argmin(library):
    def argmin(a, axis=None, **kwargs):
        if kwargs or axis is not None or jnp.ndim(a) != 1 or len(a) > WRITTEN_OUT_SUM_MAX:
            return library(a, axis, **kwargs)
        index, smallest = jnp.zeros((), jnp.int32), a[0]
        for i in range(1, len(a)):
            index = jnp.where(a[i] < smallest, i, index)
            smallest = jnp.minimum(a[i], smallest)
        return index

    return argmin


def _small_norm(library):
    def norm(x: jax.Array, axis: int | None = None):
        if x.ndim != 1 or not 0 < len(x) <= WRITTEN_OUT_SUM_MAX:
            return library(x, axis)
        # MJX treats a vector as zero if |x| <= 1e-8 in every component.
        largest = functools.reduce(jnp.maximum, [jnp.abs(x[i]) for i in range(len(x))])
        is_zero = largest <= 1e-8
        square = jnp.sum(jnp.square(jnp.where(is_zero, 1.0, x)))
        return jnp.where(is_zero, 0.0, jnp.sqrt(square))

    return norm
