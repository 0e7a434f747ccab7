"""MuJoCo Warp: many worlds at once in a GPU's own kernels, which need no compilation by XLA.

The kernels also run on a CPU, one world after the other: slowly, but enough for tests.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable
from typing import Any

import jax
import mujoco
import numpy as np

from envs_mjx.physics.host import PackedPhysics, Shapes, packed, split, width
from envs_mjx.physics.mjx import MJXPhysics, mjx
from jaxrl import devices, platform
from jaxrl.errors import UserError

try:
    import warp as wp
except ImportError as error:
    raise UserError(
        "env.engine, env.renderer: warp is not installed; run `pip install 'jaxrl[warp]'`"
    ) from error

wp.config.log_level = wp.LOG_WARNING  # else a line for each of its hundred modules
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco.mjx._src.collision_driver import geom_pairs
    from mujoco.mjx.third_party import mujoco_warp as mjw
    from mujoco.mjx.third_party.mujoco_warp._src.types import OverflowType

# By name, which is the same in every process: programs in the compile cache find them by it.
_programs: dict[str, _Program] = {}
# What the solver did not finish makes a step less exact; anything else makes it wrong.
_WRONG = int(OverflowType.ALL & ~(OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS))


class WarpPhysics(PackedPhysics):
    """A compiled MuJoCo model, stepped by MuJoCo Warp; arguments as `NamedModel`."""

    engine = "warp"

    def check(self) -> None:
        found = 0
        for program in list(self._used.values()):
            found |= program.overflows()
        if found:
            kinds = ", ".join(str(flag.name) for flag in OverflowType if flag & found)
            raise UserError(
                f"env.engine warp: worlds had more contacts than the {self._sizes['nconmax']} that "
                f"they have room for ({kinds}); make their physics with a larger max_contacts"
            )

    def _constants(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return self._in_mjx._constants(fields)

    @functools.cached_property
    def _in_mjx(self) -> MJXPhysics:
        return MJXPhysics(self.xml, substeps=self.substeps)

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        """Room for contacts, and for constraint rows, of a world."""
        model, most = self.model, self.max_contacts
        if most is None:
            most = self._possible_contacts()
        collides = (model.geom_contype | model.geom_conaffinity) != 0
        dim = max([1, *model.pair_dim, *model.geom_condim[collides]])
        others = 6 * model.neq + 2 * (model.nv + model.ntendon)  # equalities, friction and limits
        return {"nconmax": most, "njmax": int(others + max(2 * (dim - 1), 1) * most)}

    def _possible_contacts(self) -> int:
        """The number of contacts of a world in which all its pairs of geoms touch."""
        spec = mujoco.MjSpec.from_string(self.xml)
        for numeric in list(spec.numerics):  # among them limits, which MJX keeps and Warp does not
            spec.delete(numeric)
        model = spec.compile()
        box = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
        boxes = sum(bool(box[a] and box[b]) for a, b, _ in geom_pairs(model))
        in_mjx = mjx.make_data(model, impl="jax")._impl.contact.dist
        return len(in_mjx) + 4 * boxes  # between two boxes, MJX finds four contacts and Warp eight

    def _results(
        self, inputs: dict[str, jax.Array], steps: int, shapes: Shapes
    ) -> dict[str, jax.Array]:
        layout = {name: x.shape for name, x in inputs.items()}

        advance = over_worlds(lambda rows: self._program(len(rows), steps, layout, shapes)(rows))
        return split(advance(packed(inputs)[None])[0], shapes)

    def _program(self, count: int, steps: int, layout: Shapes, shapes: Shapes) -> _Program:
        places = devices_of_warp()
        facts = self._fingerprint(layout, shapes)
        name = f"jaxrl_{steps}_{count}_{self.max_contacts}_{places[-1]}_{facts}"
        if name not in _programs:
            _programs[name] = _Program(self, name, count, steps, layout, shapes, places)
        self._used[name] = _programs[name]
        return _programs[name]

    @functools.cached_property
    def _used(self) -> dict[str, _Program]:
        return {}


def over_worlds(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A function of rows [N, K], one for each world, under `vmap`: all axes are worlds."""

    @jax.custom_batching.custom_vmap
    def of_rows(rows: jax.Array) -> jax.Array:
        return function(rows)

    @of_rows.def_vmap
    def of_a_batch(axis_size: int, in_batched: Any, rows: jax.Array) -> tuple[jax.Array, bool]:
        results = of_rows(rows.reshape(-1, rows.shape[-1]))
        return results.reshape(*rows.shape[:-1], -1), True

    return of_rows


def devices_of_warp() -> list[str]:
    """Warp's names of the devices that a program runs on."""
    if platform.target() == "cpu":
        return ["cpu"]
    return [f"cuda:{i}" for i in range(devices.count() // jax.process_count())]


def callable_of(function: Any, name: str, places: list[str]) -> Any:
    """A function of Warp's arrays as one of JAX's.

    Args:
      function: launches kernels.
      name: the same in every process, since programs in the compile cache find it by its name.
      places: `devices_of_warp`.
    """
    function.__qualname__ = name
    mode = wp.JaxCallableGraphMode
    graph = mode.NONE if places == ["cpu"] else mode.WARP
    call = wp.jax_callable(function, graph_mode=graph, vmap_method=None)

    def numbered(*arrays: jax.Array, output_dims: dict[str, tuple[int, ...]]) -> list[jax.Array]:
        call.call_id = 0  # Warp counts the calls, and a program in the cache has its number
        return call(*arrays, output_dims=output_dims)

    return numbered


class _Program:
    """`steps` physics steps of `count` worlds, as a function of rows in compiled programs.

    A program on a GPU is captured as one CUDA graph. It keeps its arrays between calls, but what
    it computes depends only on the rows.
    """

    def __init__(
        self,
        physics: WarpPhysics,
        name: str,
        count: int,
        steps: int,
        layout: Shapes,
        shapes: Shapes,
        places: list[str],
    ):
        self.physics, self.count, self.steps = physics, count, steps
        self.layout, self.shapes = layout, shapes
        self._arrays = {}
        for place in places:
            with wp.ScopedDevice(place):
                self._arrays[wp.get_device(place).alias] = _Arrays(self)

        def advance(rows: wp.array2d[float], results: wp.array2d[float]):
            with wp.ScopedDevice(rows.device):
                self._advance(rows, results)

        self._call = callable_of(advance, name, places)

    def __call__(self, rows: jax.Array) -> jax.Array:
        return self._call(rows, output_dims={"results": (self.count, width(self.shapes))})[0]

    def sources(self) -> dict[str, np.ndarray]:
        """For each result, the columns that it is taken from among all numbers of its field."""
        columns = {}
        for name, shape in self.shapes.items():
            index = np.arange(math.prod(shape), dtype=np.int32)
            if name in self.physics.pose_rows:
                row = self.physics.pose_rows[name][:, None]
                index = (row * shape[1] + np.arange(shape[1])).ravel().astype(np.int32)
            columns[name] = index
        return columns

    def _advance(self, rows: wp.array, results: wp.array) -> None:
        """Launches the kernels: `results` of the worlds from `rows`."""
        arrays, count = self._arrays[rows.device.alias], self.count
        model, data = arrays.model, arrays.data
        results.zero_()
        data.overflow.zero_()
        start = 0
        for name, shape in self.layout.items():
            size = math.prod(shape)
            if size:
                field = arrays.field(name)
                kernel = _take_flags if field.dtype == wp.bool else _take
                wp.launch(kernel, (count, size), [rows, start], [field])
            start += size
        for _ in range(self.steps):
            mjw.step(model, data)
        if self.physics.pose_rows:
            mjw.kinematics(model, data)
            mjw.com_pos(model, data)
        start = 0
        for name, shape in self.shapes.items():
            if name == "touch":
                contact = data.contact
                facts = [data.nacon, contact.worldid, contact.geom, contact.efc_address]
                facts += [data.efc.force, arrays.pairs, start]
                shape_of_launch = (data.naconmax * min(self.steps, 1), len(arrays.pairs))
                wp.launch(_give_touch, shape_of_launch, facts, [results])
            else:
                values = [arrays.field(name), arrays.columns[name], start]
                wp.launch(_give, (count, math.prod(shape)), values, [results])
            start += math.prod(shape)
        wp.launch(_give_overflows, count, [data.overflow, _WRONG], [arrays.found, results])

    def overflows(self) -> int:
        """The overflows since the last call, as flags."""
        found = 0
        for arrays in self._arrays.values():
            found |= int(arrays.found.numpy()[0])
            arrays.found.zero_()
        return found


class _Arrays:
    """The arrays of a program on one device.

    Attributes:
      model, data: the worlds, and their models.
      columns: see `_Program.sources`.
      pairs: [K] the watched pairs of geoms.
      found: [1] the overflows so far.
    """

    def __init__(self, program: _Program):
        physics, count = program.physics, program.count
        own = [n.removeprefix("model/") for n in program.layout if n.startswith("model/")]
        batch_sizes = {name: count for name in own if "." not in name}
        self.model = mjw.put_model(physics.model, batch_sizes)
        self.model.opt.warn_overflow = 0  # counted in `found`
        for name in own:
            if "." in name:
                field = name.removeprefix("opt.")
                one = getattr(self.model.opt, field)
                setattr(self.model.opt, field, wp.zeros((count, *one.shape[1:]), dtype=one.dtype))
        self.data = mjw.make_data(physics.model, nworld=count, **physics._sizes)
        self.columns = {name: wp.array(x, dtype=int) for name, x in program.sources().items()}
        self.pairs = wp.array(physics.watch.astype(np.int32), dtype=wp.vec2i)
        self.found = wp.zeros(1, dtype=int)

    def field(self, name: str) -> wp.array:
        """A field of the worlds or of their models as [N, K] numbers, which shares its memory."""
        if name.startswith("model/opt."):
            field = getattr(self.model.opt, name.removeprefix("model/opt."))
        elif name.startswith("model/"):
            field = getattr(self.model, name.removeprefix("model/"))
        else:
            field = getattr(self.data, name)
        if field.dtype == wp.bool:
            return field
        assert field.is_contiguous
        count = len(field)
        shape = (count, field.size * wp.types.type_size(field.dtype) // count)
        return wp.array(ptr=field.ptr, dtype=float, shape=shape, device=field.device)


@wp.kernel
def _take(rows: wp.array2d[float], start: int, field: wp.array2d[float]):
    world, i = wp.tid()
    field[world, i] = rows[world, start + i]


@wp.kernel
def _take_flags(rows: wp.array2d[float], start: int, field: wp.array2d[bool]):
    world, i = wp.tid()
    field[world, i] = rows[world, start + i] != 0.0


@wp.kernel
def _give(field: wp.array2d[float], columns: wp.array[int], start: int, results: wp.array2d[float]):
    world, i = wp.tid()
    results[world, start + i] = field[world, columns[i]]


@wp.kernel
def _give_touch(
    count: wp.array[int],
    worlds: wp.array[int],
    geoms: wp.array[wp.vec2i],
    rows: wp.array2d[int],
    force: wp.array2d[float],
    pairs: wp.array[wp.vec2i],
    start: int,
    results: wp.array2d[float],
):
    """Adds the normal force of a contact to that of its pair of geoms."""
    contact, pair = wp.tid()
    if contact >= count[0] or rows[contact, 0] < 0:
        return
    a = geoms[contact]
    b = pairs[pair]
    if (a[0] == b[0] and a[1] == b[1]) or (a[0] == b[1] and a[1] == b[0]):
        world = worlds[contact]
        total = float(0.0)  # noqa: UP018  (a variable for Warp)
        for edge in range(4):  # the edges of the friction pyramid add up to the normal force
            total += force[world, rows[contact, edge]]
        wp.atomic_add(results, world, start + pair, total)


@wp.kernel
def _give_overflows(
    overflow: wp.array[int], wrong: int, found: wp.array[int], results: wp.array2d[float]
):
    """Notes overflows, and marks their worlds as not finite."""
    world = wp.tid()
    if (overflow[world] & wrong) != 0:
        wp.atomic_or(found, 0, overflow[world] & wrong)
        results[world, 0] = wp.nan
