"""Settings of networks."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Networks of an actor-critic."""

    policy_hidden: tuple[int, ...] = option((64, 64), "widths of the policy's layers", minimum=1)
    value_hidden: tuple[int, ...] = option((64, 64), "widths of the value's layers", minimum=1)
    activation: Literal["tanh", "relu", "elu", "swish", "gelu"] = option(
        "tanh", "activation function"
    )
    layer_norm: bool = option(False, "normalise before each activation")
    shared_trunk: bool = option(False, "one trunk (policy_hidden) for policy and value")
    policy_keys: tuple[str, ...] = option((), "observation keys the policy sees; all if empty")
    value_keys: tuple[str, ...] = option((), "observation keys the value sees; all if empty")
    encoders: tuple[str, ...] = option(
        (),
        "PART=ENCODER: how parts of the observation are encoded (none, mlp, cnn, or an installed "
        "one); the others by their shape: images by a cnn, vectors not at all",
    )
    image_channels: tuple[int, ...] = option(
        (16, 32, 32), "channels of the cnn's layers, each of which halves the image", minimum=1
    )
    image_features: int = option(128, "features that the cnn makes of an image", minimum=1)
    memory: Literal["none", "gru"] = option(
        "none", "memory between the trunk and the heads (ppo only)"
    )
    memory_size: int = option(64, "numbers that the memory holds", minimum=1)
    frozen: tuple[str, ...] = option(
        (), "parts of the networks that do not learn, such as policy_trunk/Dense_0"
    )
    distribution: Literal["normal", "tanh_normal"] = option(
        "normal", "action distribution: clipped or tanh-squashed Gaussian"
    )
    state_dependent_std: bool = option(False, "the policy outputs its std for each state")
    initial_std: float = option(1.0, "standard deviation at the start", minimum=0.01, maximum=7.0)
