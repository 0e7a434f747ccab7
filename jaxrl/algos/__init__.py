"""Learning algorithms.

An installed package can add an algorithm through the entry-point group `jaxrl.algorithms`: a
subclass of `Algorithm` with its settings class, a subclass of `AlgorithmConfig`, as `Config`.
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
