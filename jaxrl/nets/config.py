"""Settings of networks."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Settings of the policy network and the value networks."""

    policy_hidden: tuple[int, ...] = option(
        (64, 64), "number of units in each hidden layer of the policy network", minimum=1
    )
    value_hidden: tuple[int, ...] = option(
        (64, 64),
        "number of units in each hidden layer of the value network (SAC, TD3: of each critic)",
        minimum=1,
    )
    activation: Literal["tanh", "relu", "elu", "swish", "gelu"] = option(
        "tanh", "activation function of the networks' hidden layers"
    )
    layer_norm: bool = option(False, "layer normalisation before each activation function")
    shared_trunk: bool = option(
        False, "policy and value share their hidden layers, those of policy_hidden"
    )
    policy_keys: tuple[str, ...] = option(
        (), "parts of the observation that the policy sees; empty: all parts"
    )
    value_keys: tuple[str, ...] = option(
        (), "parts of the observation that the value network sees; empty: all parts"
    )
    encoders: tuple[str, ...] = option(
        (),
        "PART=ENCODER: encoders of parts of the observation (none, mlp, cnn, keypoints, or one "
        "that an installed package adds); parts that are not named here: cnn for images, "
        "none for vectors",
    )
    groups: tuple[str, ...] = option(
        (),
        "PART=NUMBER: the rows of this part, of the shape [rows, features], control NUMBER "
        "components of the action, with the same weights for each row; in the order of the action",
    )
    group_noise: float = option(
        0.0,
        "correlation of the exploration noise of a group's rows: they try the same at once "
        "(PPO only)",
        minimum=0.0,
        maximum=0.99,
    )
    image_channels: tuple[int, ...] = option(
        (16, 32, 32),
        "channels of each layer of the cnn and keypoints encoders; each layer halves the image's "
        "width and height",
        minimum=1,
    )
    image_features: int = option(
        128, "number of features that the cnn encoder computes from an image", minimum=1
    )
    memory: Literal["none", "gru"] = option(
        "none",
        "recurrent layer after the hidden layers, which remembers past observations (PPO only)",
    )
    memory_size: int = option(64, "size of the recurrent layer's memory", minimum=1)
    frozen: tuple[str, ...] = option(
        (), "parts of the networks that training does not change, such as policy_trunk/Dense_0"
    )
    frozen_until: float = option(
        1.0,
        "share of the run (0 to 1) after which the frozen parts learn, too; 1: never",
        minimum=0,
        maximum=1,
    )
    distribution: Literal["normal", "tanh_normal"] = option(
        "normal",
        "distribution of actions: a Gaussian that is clipped (normal) or squashed by "
        "tanh (tanh_normal)",
    )
    state_dependent_std: bool = option(
        False,
        "the policy network computes the standard deviation from the observation; if "
        "false, it is a parameter of its own",
    )
    initial_std: float = option(
        1.0, "standard deviation of actions at the start of training", minimum=0.01, maximum=7.0
    )
