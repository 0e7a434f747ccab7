"""Tasks with cameras: images that are part of the observation, and slower than control."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs_mjx.physics import PhysicsState, Simulated
from envs_mjx.scenery import with_inset
from envs_mjx.vision import Camera, Scene, moving_bodies
from jaxrl.envs import ArraySpec, State
from jaxrl.errors import UserError
from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class Sighted(Simulated):
    """A task whose observation can have images from cameras.

    With `sight` the observation is a dictionary: the vector "body", whose last component is the age
    of the images (s), and the images. A task calls `first_look` at the end of `reset` and `look` at
    the end of `step`, and defines `views` and `images`.
    """

    sight: Any = option("none", "whether cameras are part of the observation")
    camera_rate: float = option(
        25.0, "images per second of each camera, at most one in a control step", greater_than=0
    )

    @property
    def sense_every(self) -> int:
        """Control steps from one image to the next; 0 without cameras."""
        if self.sight == "none":
            return 0
        return max(round(1 / (self.camera_rate * self.control_dt)), 1)

    def views(self, physics: PhysicsState) -> jax.Array:
        """[C, H, W] or [C, H, W, 3] what each camera sees of one world, in grey or in colours, from
        0 to 1."""
        raise NotImplementedError

    def images(self, views: jax.Array) -> dict[str, jax.Array]:
        """The parts of the observation that are made from the views."""
        raise NotImplementedError

    def first_look(self, state: State) -> State:
        """The start of an episode, with images."""
        return state if self.sight == "none" else self.sense(_aged(state, 0.0))

    def look(self, before: State, state: State) -> State:
        """The state after a control step, with the images of the state before it."""
        if self.sight == "none":
            return state
        new = _aged(state, before.obs["body"][-1] + self.control_dt)
        return new.replace(obs=before.obs | new.obs)

    def sense(self, state: State) -> State:
        """The state with new images in its observation."""
        new = {"body": state.obs["body"].at[-1].set(0.0)}
        return state.replace(obs=state.obs | new | self.images(self.views(state.physics)))

    def with_views(self, frames: np.ndarray, states: PhysicsState, stride: int) -> np.ndarray:
        """Pictures [F, H, W, 3] of every `stride`-th of the states [T, ...]; with `sight`, what the
        cameras see is in a corner."""
        if self.sight == "none":
            return frames
        picked = jax.tree.map(lambda x: jnp.asarray(x[::stride]), states)
        views = np.asarray(jax.jit(lambda states: jax.lax.map(self.views, states))(picked))
        images = np.concatenate(list(views.swapaxes(0, 1)), axis=2)
        step = -(-max(images.shape[1] * 2, images.shape[2]) // frames.shape[2])  # leave out pixels
        images = images[:, ::step, ::step]
        return with_inset(frames, images, zoom=2 if 4 * images.shape[2] < frames.shape[2] else 1)


def _aged(state: State, age: jax.Array | float) -> State:
    """The state, whose observation has no images yet, with the age of the images (s)."""
    obs = state.obs if isinstance(state.obs, dict) else {"body": state.obs}
    return state.replace(obs=obs | {"body": jnp.append(obs["body"], age)})


@dataclasses.dataclass(frozen=True)
class Pictured(Sighted):
    """A task that can be seen in colours.

    With `sight` the observation has "image", bytes [H, W, 3 C], from C cameras side by side in the
    last axis, and "body" lacks the parts `shown`, which the images show. With `privileged`, these
    parts are in the observation too, as the vector "state".
    """

    sight: Literal["none", "rgb"] = option(
        "none",
        "rgb: images of cameras are observed, instead of the positions of targets and objects",
    )
    camera_rate: float = option(
        10.0, "images per second of each camera, at most one in a control step", greater_than=0
    )
    image_size: int = option(64, "height and width of the images (pixels)", minimum=8, maximum=1024)
    renderer: Literal["rays", "warp"] = option(
        "rays",
        "what draws the images: rays in JAX (rays), or MuJoCo Warp, with meshes, textures and "
        "lights (warp)",
    )
    privileged: bool = option(
        False,
        "with sight, what the images show is also observed as numbers, in the part state: for a "
        "value network alone (network.value_keys: [body, state], policy_keys: [body, image])",
    )

    CAMERAS: ClassVar[tuple[Camera, ...]]

    def __post_init__(self) -> None:
        if self.privileged and self.sight == "none":
            raise UserError("env.privileged: has no effect without env.sight=rgb")

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the parts of the observation that the images show."""
        raise NotImplementedError

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        if self.sight == "none":
            return super().observation_spec
        parts, spec = self.observation_parts, {}
        seen = {name: size for name, size in parts.items() if name in self.shown}
        felt = {name: size for name, size in parts.items() if name not in self.shown}
        spec["body"] = ArraySpec.of_parts(felt | {"image_age": 1})
        shape = (self.image_size, self.image_size, 3 * len(self.CAMERAS))
        spec["image"] = ArraySpec(shape, 0, 255, dtype="uint8")
        if self.privileged:
            spec["state"] = ArraySpec.of_parts(seen)
        return spec

    def observe(self, **parts: jax.Array) -> Any:
        """As `Task.observe`; with `sight` a dictionary, without the images and their age."""
        vector = super().observe(**parts)
        if self.sight == "none":
            return vector
        names, sizes = zip(*self.observation_parts.items(), strict=True)
        shown = np.repeat([name in self.shown for name in names], sizes)
        body = {"body": vector[~shown]}
        return body | {"state": vector[shown]} if self.privileged else body

    def seen_bodies(self, xml: str) -> tuple[str, ...]:
        """Names of the bodies of a model (MJCF) whose poses the cameras need."""
        if self.sight == "none":
            return ()
        return moving_bodies(mujoco.MjModel.from_xml_string(xml))

    @functools.cached_property
    def scene(self) -> Scene:
        """The shapes that rays meet."""
        return Scene(self.physics.model, frames=moving_bodies(self.physics.model))

    @functools.cached_property
    def _draw(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Positions [B, 3] and rotations [B, 3, 3] of the bodies -> pictures [C, H, W, 3]."""
        size = {"height": self.image_size, "width": self.image_size}
        if self.renderer == "warp":
            from envs_mjx.warp_vision import WarpPictures

            return WarpPictures(self.physics.model, moving_bodies(self.physics.model), **size)
        cameras = [dataclasses.replace(camera, **size) for camera in self.CAMERAS]
        return lambda *poses: jnp.stack([self.scene.picture(c, *poses) for c in cameras])

    def views(self, physics: PhysicsState) -> jax.Array:
        names = moving_bodies(self.physics.model)
        poses = [self.physics.body_pose(physics, name) for name in names]
        positions, rotations = (jnp.stack(x) for x in zip(*poses, strict=True))
        return self._draw(positions, rotations)

    def images(self, views: jax.Array) -> dict[str, jax.Array]:
        image = jnp.concatenate(list(views), axis=2)
        return {"image": jnp.round(255 * image).astype(jnp.uint8)}
