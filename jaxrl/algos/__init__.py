"""Learning algorithms.

An installed package adds one with the entry-point group `jaxrl.algorithms`: a subclass of
`Algorithm` whose settings, a subclass of `AlgorithmConfig`, are its `Config`.
"""

from jaxrl.algos.base import Algorithm, AlgorithmConfig
from jaxrl.algos.ppo import PPO, PPOConfig
from jaxrl.algos.sac import SAC, SACConfig
from jaxrl.algos.td3 import TD3, TD3Config
from jaxrl.plugins import Registry

ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "jaxrl.algorithms", {"ppo": PPO, "sac": SAC, "td3": TD3}
)

__all__ = [
    "ALGORITHMS",
    "PPO",
    "SAC",
    "TD3",
    "Algorithm",
    "AlgorithmConfig",
    "PPOConfig",
    "SACConfig",
    "TD3Config",
]
