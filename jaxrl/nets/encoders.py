"""Encoders: each turns one part of an observation into features.

An installed package adds one with the entry-point group `jaxrl.encoders`: a function
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
from jaxrl.nets.mlp import ACTIVATIONS, MLP
from jaxrl.plugins import Registry

WHOLE = "observation"  # name of the only part of an observation that is one array


class Flatten(nn.Module):
    """A part as it is, as a vector; without parameters.

    Attributes:
      axes: number of the part's axes.
    """

    axes: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *S] -> [..., F]."""
        return x if self.axes == 1 else x.reshape(*x.shape[: x.ndim - self.axes], -1)


class CNN(nn.Module):
    """Convolutions of 3 x 3 with stride 2, and a dense layer.

    Attributes:
      config: networks (`image_channels`, `image_features`, `activation`).
      scale: what pixels are divided by.
    """

    config: NetworkConfig
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, C] -> [..., F]."""
        c, initial = self.config, nn.initializers.orthogonal(2**0.5)
        activation = ACTIVATIONS[c.activation]
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:]).astype(jnp.float32) / self.scale
        for channels in c.image_channels:
            x = activation(nn.Conv(channels, (3, 3), strides=2, kernel_init=initial)(x))
        x = nn.Dense(c.image_features, kernel_init=initial)(x.reshape(len(x), -1))
        if c.layer_norm:
            x = nn.LayerNorm()(x)
        return activation(x).reshape(*lead, -1)


def _flatten(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
    return Flatten(len(spec.shape))


def _mlp(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
    return nn.Sequential(
        [Flatten(len(spec.shape)), MLP(config.policy_hidden, config.activation, config.layer_norm)]
    )


def _cnn(spec: ArraySpec, config: NetworkConfig) -> nn.Module:
    if not is_image(spec):
        raise UserError(
            f"network.encoders: cnn needs an image [height, width, channels], got a part of the "
            f"shape {list(spec.shape)}"
        )
    return CNN(config, 255.0 if spec.dtype == "uint8" or spec.high == 255 else 1.0)


MakeEncoder = Callable[[ArraySpec, NetworkConfig], nn.Module]
ENCODERS: Registry[MakeEncoder] = Registry(
    "jaxrl.encoders", {"none": _flatten, "mlp": _mlp, "cnn": _cnn}
)


def is_image(spec: ArraySpec) -> bool:
    """Whether a part of an observation is an image [height, width, channels]."""
    return len(spec.shape) == 3


def parts_of(spec: Any) -> dict[str, ArraySpec]:
    """The parts of an observation by name; `WHOLE` if it is one array."""
    return dict(spec) if isinstance(spec, dict) else {WHOLE: spec}


def encoder_names(config: NetworkConfig, spec: Any, path: str) -> dict[str, str]:
    """The encoder of each part: the configured one, or the one that fits its shape.

    Args:
      config: networks.
      spec: of the observation.
      path: of the network's section, for messages.

    Raises:
      UserError: an unknown part or encoder.
    """
    parts = parts_of(spec)
    names = {part: "cnn" if is_image(own) else "none" for part, own in parts.items()}
    for item in config.encoders:
        part, _, encoder = item.rpartition("=")
        part = part or WHOLE
        if part not in parts or encoder not in ENCODERS:
            raise UserError(
                f"{path}.encoders: got {item!r}, expected PART=ENCODER with the parts "
                f"{', '.join(parts)} and the encoders {', '.join(ENCODERS)}"
            )
        names[part] = encoder
    return names


class Encoder(nn.Module):
    """Some parts of an observation, each through its encoder, side by side.

    Attributes:
      config: networks.
      spec: parts by name (`parts_of`).
      encoders: name of each part's encoder (`encoder_names`).
      keys: parts, in this order; all of them, sorted, if empty.
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
        """Arrays [..., *S] by name, or the only one, -> [..., F]."""
        parts = obs if isinstance(obs, dict) else {WHOLE: obs}
        features = [encode(parts[key]) for key, encode in self.part.items()]
        return features[0] if len(features) == 1 else jnp.concatenate(features, axis=-1)
