"""Several devices in one run: the worlds are split over them.

Every device runs the same program on its own worlds (`jax.shard_map`), with the same parameters.
The functions here combine what the devices computed; in a program for one device they change
nothing, so that algorithms need not know how many there are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "devices"


def count() -> int:
    """Number of devices that the program is being traced for."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:
        return 1


def mean(tree: Any) -> Any:
    """Means of the arrays over the devices."""
    return jax.lax.pmean(tree, AXIS) if count() > 1 else tree


def total(tree: Any) -> Any:
    """Sums of the arrays over the devices."""
    return jax.lax.psum(tree, AXIS) if count() > 1 else tree


def index() -> Any:
    """Number of this device, from 0."""
    return jax.lax.axis_index(AXIS) if count() > 1 else 0


def own(key: jax.Array) -> jax.Array:
    """A PRNG key that is different on each device; with one device, the same key."""
    return jax.random.fold_in(key, index()) if count() > 1 else key


def mesh(number: int) -> jax.sharding.Mesh:
    """A row of devices, the first ones of each process."""
    each = number // jax.process_count()
    chosen = [d for i in range(jax.process_count()) for d in jax.local_devices(i)[:each]]
    return jax.sharding.Mesh(np.array(chosen), (AXIS,))


def spec(axis: int) -> jax.P:
    """How an array lies on the devices: split along an axis; -1: a copy on each."""
    return jax.P(*[None] * axis, AXIS) if axis >= 0 else jax.P()


def first(tree: Any) -> Any:
    """Arrays of which every device has a copy, as arrays of the first device alone."""

    def take(x: Any) -> Any:
        is_copied = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
        return x.addressable_data(0) if is_copied else x

    return jax.tree.map(take, tree)


def is_key(x: Any) -> bool:
    """Whether an array or shape has PRNG keys, which only `jax.random` can turn into numbers."""
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def variance(x: jax.Array, axis: Any = None) -> jax.Array:
    """Population variance over an axis and the devices."""
    center = mean(x.mean(axis))
    return mean(jnp.square(x - center).mean(axis))
