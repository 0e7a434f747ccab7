"""Common MJCF parts of the robots' models: sky, ground, lights, materials; arrays as text."""

from __future__ import annotations

from typing import Any

import numpy as np

_MATERIALS = {  # red, green, blue, opacity; whether it shines
    "white": (".92 .93 .95 1", False),
    "grey": (".55 .57 .6 1", False),
    "steel": (".38 .4 .44 1", True),
    "dark": (".14 .15 .17 1", True),
    "orange": (".96 .45 .06 1", False),
    "red": (".9 .25 .15 1", False),
    "blue": (".15 .4 .85 1", False),
    "goal": (".15 .8 .3 .4", False),
    "contact": (".2 .8 .3 .5", False),  # collision shapes of robots that draw other shapes
}
_SHINE = {True: 'specular=".5" shininess=".5"', False: 'specular=".2"'}

# The light that casts the shadows; inside a body, it stays above that body.
LIGHT = (
    '<light mode="trackcom" directional="true" pos=".4 -.8 2.4" dir="-.15 .35 -1" '
    'diffuse=".5 .5 .5"/>'
)

SCENERY = f"""
  <statistic extent="2"/>
  <visual>
    <headlight ambient=".35 .35 .35" diffuse=".45 .45 .45" specular=".1 .1 .1"/>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="4096"/>
    <map znear=".02" shadowclip="2"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".75 .85 .95" rgb2="1 1 1"
             width="128" height="128"/>
    <texture name="ground" type="2d" builtin="checker" rgb1=".82 .83 .84" rgb2=".75 .76 .78"
             width="256" height="256"/>
    <material name="ground" texture="ground" texuniform="true" texrepeat="4 4"/>
    {
    "".join(
        f'<material name="{name}" rgba="{rgba}" {_SHINE[shines]}/>'
        for name, (rgba, shines) in _MATERIALS.items()
    )
}
  </asset>"""


def ground(name: str, *, center: str = "0 0 0", half_size: str = "0 0 1") -> str:
    """The plane z = 0; drawn without end, or up to `half_size` (m) from its centre (m)."""
    return f'<geom name="{name}" type="plane" pos="{center}" size="{half_size}" material="ground"/>'


def with_inset(frames: np.ndarray, images: np.ndarray, zoom: int = 2) -> np.ndarray:
    """Pictures with small images in their upper left corner, in a white frame.

    Args:
      frames: [F, H, W, 3] uint8 pictures.
      images: [F, h, w] grey or [F, h, w, 3] coloured images with values from 0 to 1.
      zoom: pixels of a picture along a side of an image's pixel.
    """
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    images = np.repeat(np.repeat(np.round(255 * images), zoom, axis=1), zoom, axis=2)
    (height, width), edge, frames = images.shape[1:3], 2, frames.copy()
    frames[:, 6 : 6 + height + 2 * edge, 6 : 6 + width + 2 * edge] = 255
    frames[:, 6 + edge : 6 + edge + height, 6 + edge : 6 + edge + width] = images
    return frames


def text(values: Any) -> str:
    """An array of any shape as the value of an MJCF attribute."""
    return " ".join(f"{v:.9g}" for v in np.ravel(values))
