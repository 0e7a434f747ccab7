"""Learning algorithms. Each has `init(key)`, `step(state)` and `policy`."""

from jaxrl.algos.ppo import PPO, PPOConfig

ALGORITHMS = {"ppo": PPO}

__all__ = ["ALGORITHMS", "PPO", "PPOConfig"]
