"""Pictures by MuJoCo Warp: meshes, textures and lights too; in kernels of a GPU, or on a CPU."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs_mjx.physics.warp import callable_of, devices_of_warp, mjw, over_worlds, wp
from envs_mjx.vision import SKY, Attached

_programs: dict[str, _Program] = {}


class WarpPictures:
    """What a model's cameras, which do not move, see of it.

    Args:
      model: the compiled model, with the cameras.
      frames: as for `vision.Scene`.
      height, width: size of the pictures (pixels).
    """

    def __init__(self, model: mujoco.MjModel, frames: Sequence[str], *, height: int, width: int):
        self.model, self.height, self.width = model, height, width
        self._shapes = Attached(model, range(model.ngeom), frames)
        self.frames = self._shapes.frames

    def __call__(self, positions: jax.Array, rotations: jax.Array) -> jax.Array:
        """[C, H, W, 3] colours (0 to 1) that the C cameras see of one world.

        Args:
          positions: [B, 3] positions of the bodies `frames` (m).
          rotations: [B, 3, 3] their rotations to the world.
        """
        at, turn = self._shapes.poses(positions, rotations)
        row = jnp.concatenate([at.ravel(), turn.ravel()]).astype(jnp.float32)

        draw = over_worlds(lambda rows: self._program(len(rows))(rows))
        return draw(row[None])[0].reshape(self.model.ncam, self.height, self.width, 3)

    def _program(self, count: int) -> _Program:
        places = devices_of_warp()
        name = f"jaxrl_pictures_{count}_{places[-1]}_{self._fingerprint}"
        if name not in _programs:
            _programs[name] = _Program(self, name, count, places)
        return _programs[name]

    @functools.cached_property
    def _fingerprint(self) -> str:
        size = mujoco.mj_sizeModel(self.model)
        content = np.zeros(size, np.uint8)
        mujoco.mj_saveModel(self.model, None, content)
        facts = f"{self.height} {self.width} {self.frames}".encode()
        return hashlib.sha256(content.tobytes() + facts).hexdigest()[:16]


class _Program:
    """The pictures of `count` worlds as a function of the poses of their shapes, in rows."""

    def __init__(self, pictures: WarpPictures, name: str, count: int, places: list[str]):
        self.count, model = count, pictures.model
        self.numbers = 3 * model.ncam * pictures.height * pictures.width
        self._arrays = {}
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        for place in places:
            with wp.ScopedDevice(place):
                context = mjw.create_render_context(
                    model,
                    nworld=count,
                    cam_res=(pictures.width, pictures.height),
                    render_rgb=True,
                    render_depth=False,
                    background_color=(*SKY.tolist(), 1.0),
                )
                worlds = mjw.put_data(model, data, nworld=count)
                self._arrays[wp.get_device(place).alias] = mjw.put_model(model), worlds, context

        def draw(rows: wp.array2d[float], colors: wp.array2d[float]):
            with wp.ScopedDevice(rows.device):
                self._draw(rows, colors)

        self._call = callable_of(draw, name, places)

    def __call__(self, rows: jax.Array) -> jax.Array:
        return self._call(rows, output_dims={"colors": (self.count, self.numbers)})[0]

    def _draw(self, rows: wp.array, colors: wp.array) -> None:
        model, worlds, context = self._arrays[rows.device.alias]
        places = [worlds.geom_xpos, worlds.geom_xmat]
        wp.launch(_place, (self.count, model.ngeom), [rows, model.ngeom], places)
        mjw.refit_bvh(model, worlds, context)
        mjw.render(model, worlds, context)
        wp.launch(_unpack, (self.count, self.numbers // 3), [context.rgb_data], [colors])


@wp.kernel
def _place(
    rows: wp.array2d[float],
    count: int,
    positions: wp.array2d[wp.vec3],
    rotations: wp.array2d[wp.mat33],
):
    world, geom = wp.tid()
    i = 3 * geom
    positions[world, geom] = wp.vec3(rows[world, i], rows[world, i + 1], rows[world, i + 2])
    i = 3 * count + 9 * geom
    rotations[world, geom] = wp.mat33(
        rows[world, i],
        rows[world, i + 1],
        rows[world, i + 2],
        rows[world, i + 3],
        rows[world, i + 4],
        rows[world, i + 5],
        rows[world, i + 6],
        rows[world, i + 7],
        rows[world, i + 8],
    )


@wp.kernel
def _unpack(packed: wp.array2d[wp.uint32], colors: wp.array2d[float]):
    """Red, green and blue of each pixel, from its 32 bits."""
    world, pixel = wp.tid()
    bits = packed[world, pixel]
    for i in range(3):
        shift = wp.uint32(16 - 8 * i)
        colors[world, 3 * pixel + i] = float((bits >> shift) & wp.uint32(255)) / 255.0
