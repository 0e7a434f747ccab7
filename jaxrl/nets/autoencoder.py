"""Autoencoders of images, and their encoders as parts of tasks that are never trained further."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl.errors import UserError
from jaxrl.files import replacing
from jaxrl.nets.convolution import Conv


class Encoder(nn.Module):
    """3 x 3 convolutions with stride 2, and a code between -1 and 1.

    Attributes:
      channels: channels of each convolution.
      code_size: size K of the code.
    """

    channels: tuple[int, ...]
    code_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] normalised images -> [N, K] codes."""
        for i, channels in enumerate(self.channels):
            x = nn.relu(Conv(channels, name=f"conv_{i}")(x))
        return jnp.tanh(nn.Dense(self.code_size, name="code")(x.reshape(len(x), -1)))


class Decoder(nn.Module):
    """Dense layers from a code to a patch for each cell of the encoder's last convolution.

    Transposed convolutions would take three times as long to train on a CPU.

    Attributes:
      channels: channels of the encoder's convolutions.
      shape: shape of an image [H, W, C].
    """

    channels: tuple[int, ...]
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        """[N, K] codes -> [N, H, W, C] normalised images."""
        height, width, depth = self.shape
        side = 2 ** len(self.channels)  # pixels along a side of a patch
        rows, columns, last = -(-height // side), -(-width // side), self.channels[-1]
        x = nn.relu(nn.Dense(rows * columns * last)(code)).reshape(-1, rows, columns, last)
        x = nn.Dense(side * side * depth)(nn.relu(nn.Dense(2 * last)(x)))
        x = x.reshape(-1, rows, columns, side, side, depth).swapaxes(2, 3)
        return x.reshape(-1, rows * side, columns * side, depth)[:, :height, :width]


class Autoencoder(nn.Module):
    """An encoder and a decoder; attributes as theirs."""

    channels: tuple[int, ...]
    code_size: int
    shape: tuple[int, int, int]

    def setup(self) -> None:
        self.encoder = Encoder(self.channels, self.code_size)
        self.decoder = Decoder(self.channels, self.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] normalised images -> what their codes say about them."""
        return self.decoder(self.encoder(x))


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """A trained encoder, whose parameters never change.

    Attributes:
      arrays: parameters by name, such as "conv_0/kernel"; "mean" [H, W, C] and "std" [], by which
        images (with values from 0 to 1) are normalised.
    """

    arrays: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image [H, W, C]."""
        return tuple(self.arrays["mean"].shape)

    @property
    def code_size(self) -> int:
        return int(self.arrays["code/bias"].shape[0])

    @functools.cached_property
    def _network(self) -> Encoder:
        kernels = [self.arrays[f"conv_{i}/kernel"] for i in range(len(self.arrays)) if self._has(i)]
        return Encoder(tuple(kernel.shape[-1] for kernel in kernels), self.code_size)

    def _has(self, layer: int) -> bool:
        return f"conv_{layer}/kernel" in self.arrays

    def __call__(self, images: jax.Array) -> jax.Array:
        """[..., H, W, C] images with values from 0 to 1 -> [..., K] codes."""
        arrays = {name: jnp.asarray(value) for name, value in self.arrays.items()}
        lead = images.shape[:-3]
        images = (images.reshape(-1, *self.shape) - arrays.pop("mean")) / arrays.pop("std")
        params = unflatten_dict(arrays, sep="/")
        codes: Any = self._network.apply({"params": params}, images)
        return codes.reshape(*lead, -1)

    @classmethod
    def of(cls, params: Any, mean: Any, std: Any) -> FrozenEncoder:
        """The encoder of an `Autoencoder` with these parameters; mean and std as in `arrays`."""
        arrays = flatten_dict(params["params"]["encoder"], sep="/") | {"mean": mean, "std": std}
        return cls({name: np.asarray(value) for name, value in sorted(arrays.items())})

    def save(self, path: Path) -> None:
        """Writes the encoder to an .npz file."""
        with replacing(path) as part, part.open("wb") as file:
            arrays: dict[str, Any] = {n: np.asarray(value) for n, value in self.arrays.items()}
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> FrozenEncoder:
        """Reads an encoder.

        Args:
          path: file of an encoder, or the folder in which pretraining wrote encoder.npz.

        Raises:
          UserError: there is no encoder.
        """
        file = path / "encoder.npz" if path.is_dir() else path
        try:
            with np.load(file, allow_pickle=False) as arrays:
                encoder = cls({name: arrays[name] for name in sorted(arrays.files)})
            if len(encoder.shape) != 3 or not encoder.code_size or not encoder._has(0):
                raise KeyError("conv_0/kernel")
        except FileNotFoundError as error:
            raise UserError(
                f"{file}: no such file; python -m jaxrl.pretrain makes an encoder"
            ) from error
        except Exception as error:  # a damaged or foreign file fails in many ways
            raise UserError(f"{file}: is not an encoder that jaxrl.pretrain has written") from error
        return encoder
