"""Encoders: each turns one part of an observation into features.

An installed package can add an encoder through the entry-point group `jaxrl.encoders`: a function
(`ArraySpec` of the part, `NetworkConfig`) -> Flax module, which maps [..., *shape] to [..., F].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.envs.task import ArraySpec
from jaxrl.errors import UserError
from jaxrl.nets.config import NetworkConfig
from jaxrl.nets.convolution import Conv
from jaxrl.nets.mlp import ACTIVATIONS, MLP
from jaxrl.plugins import Registry

ONLY_PART = "observation"  # name of the part, if an observation is a single array


class Flatten(nn.Module):
    """Flattens a part to a vector; has no parameters.

    Attributes:
      axes: number of the part's axes.
    """

    axes: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *S] -> [..., F]."""
        return x if self.axes == 1 else x.reshape(*x.shape[: x.ndim - self.axes], -1)


class CNN(nn.Module):
    """3 x 3 convolutions with stride 2, followed by a dense layer.

    Attributes:
      config: settings of the networks (`image_channels`, `image_features`, `activation`,
        `layer_norm`).
      scale: number by which pixels are divided.
    """

    config: NetworkConfig
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, C] -> [..., F]."""
        c, lead = self.config, x.shape[:-3]
        activation = ACTIVATIONS[c.activation]
        x = _pixels(x, self.scale)
        for channels in c.image_channels:
            x = activation(Conv(channels, kernel_init=_INITIAL)(x))
        x = nn.Dense(c.image_features, kernel_init=_INITIAL)(x.reshape(len(x), -1))
        if c.layer_norm:
            x = nn.LayerNorm()(x)
        return activation(x).reshape(*lead, -1)


class Keypoints(nn.Module):
    """3 x 3 convolutions with stride 2; then, for each channel, the mean place of its softmax over
    the image: where in the image something is. Reads positions more precisely and from fewer
    samples than `CNN`, but knows nothing of sizes and numbers.

    Source: Levine et al. 2016, "End-to-end training of deep visuomotor policies", section 5.1.

    Attributes:
      config: settings of the networks (`image_channels`, `activation`).
      scale: number by which pixels are divided.
    """

    config: NetworkConfig
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, C] -> [..., 2 F], the rows and then the columns of the F keypoints, from -1
        to 1."""
        channels, lead = self.config.image_channels, x.shape[:-3]
        x = 2 * _pixels(x, self.scale) - 1
        for i, count in enumerate(channels):
            x = Conv(count, kernel_init=_INITIAL)(x)
            if i < len(channels) - 1:
                x = ACTIVATIONS[self.config.activation](x)
        sharpness = self.param("sharpness", nn.initializers.constant(10.0), (channels[-1],))
        weights = jax.nn.softmax(x * sharpness, axis=(1, 2))  # [N, H, W, F]
        rows = jnp.linspace(-1.0, 1.0, x.shape[1]) @ weights.sum(2)
        columns = jnp.linspace(-1.0, 1.0, x.shape[2]) @ weights.sum(1)
        return jnp.concatenate([rows, columns], axis=-1).reshape(*lead, -1)


_INITIAL = nn.initializers.orthogonal(2**0.5)


def _pixels(x: jax.Array, scale: float) -> jax.Array:
    """Images [..., H, W, C] as float32 numbers [N, H, W, C] from 0 to 1."""
    return x.reshape(-1, *x.shape[-3:]).astype(jnp.float32) / scale


def _flatten(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
    return Flatten(len(spec.shape))


def _mlp(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
    return nn.Sequential(
        [Flatten(len(spec.shape)), MLP(config.policy_hidden, config.activation, config.layer_norm)]
    )


MakeEncoder = Callable[[ArraySpec, NetworkConfig], nn.Module]


def _of_images(name: str, module: Callable[[NetworkConfig, float], nn.Module]) -> MakeEncoder:
    def make(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
        if not spec.is_image:
            raise UserError(
                f"network.encoders: {name} needs an image [height, width, channels], got a part "
                f"with the shape {list(spec.shape)}"
            )
        if name == "keypoints" and not config.image_channels:
            raise UserError("network.image_channels: keypoints needs at least one layer")
        return module(config, 255.0 if spec.dtype == "uint8" or spec.high == 255 else 1.0)

    return make


ENCODERS: Registry[MakeEncoder] = Registry(
    "jaxrl.encoders",
    {
        "none": _flatten,
        "mlp": _mlp,
        "cnn": _of_images("cnn", CNN),
        "keypoints": _of_images("keypoints", Keypoints),
    },
)


def parts_of(spec: Any) -> dict[str, ArraySpec]:
    """Returns the parts of an observation by name; a single array has the name `ONLY_PART`."""
    return dict(spec) if isinstance(spec, dict) else {ONLY_PART: spec}


def encoder_names(config: NetworkConfig, spec: Any, path: str) -> dict[str, str]:
    """Returns the encoder of each part: the configured one, or the default for its shape.

    Args:
      config: settings of the networks.
      spec: spec of the observation.
      path: path of the network's section, for messages.

    Raises:
      UserError: a part or an encoder is unknown.
    """
    parts = parts_of(spec)
    names = {name: "cnn" if part.is_image else "none" for name, part in parts.items()}
    for item in config.encoders:
        part, _, encoder = item.rpartition("=")
        part = part or ONLY_PART
        if part not in parts or encoder not in ENCODERS:
            raise UserError(
                f"{path}.encoders: got {item!r}, expected PART=ENCODER with the parts "
                f"{', '.join(parts)} and the encoders {', '.join(ENCODERS)}"
            )
        names[part] = encoder
    return names


class Encoder(nn.Module):
    """Encodes parts of an observation, each with its encoder, and concatenates the features.

    Attributes:
      config: settings of the networks.
      spec: parts by name (`parts_of`).
      encoders: name of each part's encoder (`encoder_names`).
      keys: names of the parts to use, in this order; empty: all parts, sorted by name.
    """

    config: NetworkConfig
    spec: dict[str, ArraySpec]
    encoders: dict[str, str]
    keys: tuple[str, ...]

    def setup(self) -> None:
        self.part = {
            key: ENCODERS[self.encoders[key]](self.spec[key], self.config)
            for key in self.keys or sorted(self.spec)
        }

    def __call__(self, obs: Any) -> jax.Array:
        """Arrays [..., *S] by name, or a single array -> features [..., F]."""
        parts = obs if isinstance(obs, dict) else {ONLY_PART: obs}
        features = [encode(parts[key]) for key, encode in self.part.items()]
        return features[0] if len(features) == 1 else jnp.concatenate(features, axis=-1)
