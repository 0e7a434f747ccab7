"""Flax modules."""

from jaxrl.nets.actor_critic import ActorCritic, NetworkConfig
from jaxrl.nets.critics import critic_ensemble
from jaxrl.nets.mlp import MLP

__all__ = ["MLP", "ActorCritic", "NetworkConfig", "critic_ensemble"]
