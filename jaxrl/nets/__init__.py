"""Flax modules."""

from jaxrl.nets.actor_critic import ActorCritic, NetworkConfig
from jaxrl.nets.mlp import MLP

__all__ = ["MLP", "ActorCritic", "NetworkConfig"]
