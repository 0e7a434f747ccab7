"""Learning algorithms. Each has `init(key)`, `step(state)` and `policy`."""

from jaxrl.algos.base import Algorithm
from jaxrl.algos.ppo import PPO, PPOConfig
from jaxrl.algos.sac import SAC, SACConfig
from jaxrl.algos.td3 import TD3, TD3Config

ALGORITHMS: dict[str, type[Algorithm]] = {"ppo": PPO, "sac": SAC, "td3": TD3}

__all__ = ["ALGORITHMS", "PPO", "SAC", "TD3", "Algorithm", "PPOConfig", "SACConfig", "TD3Config"]
