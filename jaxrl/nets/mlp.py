"""Multilayer perceptron."""

from __future__ import annotations

import jax
from flax import linen as nn

ACTIVATIONS = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "swish": nn.swish,
    "gelu": nn.gelu,
}


class MLP(nn.Module):
    """Dense layers, each followed by an optional layer norm and an activation.

    Initial weights are orthogonal with gain sqrt(2), as usual for on-policy training
    (Andrychowicz et al. 2021, "What matters in on-policy reinforcement learning").

    Attributes:
      hidden: number of units in each layer.
      activation: name of an activation in `ACTIVATIONS`.
      layer_norm: whether there is a layer norm before each activation.
    """

    hidden: tuple[int, ...]
    activation: str = "tanh"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., hidden[-1]]."""
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = ACTIVATIONS[self.activation](x)
        return x
