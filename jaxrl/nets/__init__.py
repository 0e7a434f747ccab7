"""Networks, as Flax modules."""

from jaxrl.nets.actor_critic import ActorCritic
from jaxrl.nets.config import NetworkConfig
from jaxrl.nets.critics import critic_ensemble
from jaxrl.nets.encoders import ENCODERS
from jaxrl.nets.mlp import MLP

__all__ = ["ENCODERS", "MLP", "ActorCritic", "NetworkConfig", "critic_ensemble"]
