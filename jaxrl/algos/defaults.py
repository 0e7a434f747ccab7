"""Settings for a task that has no preset of its own, by device and algorithm."""

from __future__ import annotations

from typing import Any

PPO = {
    "num_steps": 32,
    "num_epochs": 8,
    "num_minibatches": 8,
    "learning_rate": 1e-3,
    "schedule": {"kind": "linear"},
    "normalize_reward": True,
}
OFF_POLICY = {
    "num_steps": 16,
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "buffer_size": 100_000,
    "learning_starts": 2_000,
    "gradient_steps": 8,
    "tau": 0.01,
    "network": {"policy_hidden": [128, 128], "value_hidden": [128, 128]},
}
SAC = OFF_POLICY | {"temperature_learning_rate": 1e-3}
TD3 = OFF_POLICY

GENERIC: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "ppo": {"num_envs": 64, "total_timesteps": 1_500_000, "ppo": PPO},
        "sac": {"num_envs": 16, "total_timesteps": 60_000, "sac": SAC},
        "td3": {"num_envs": 16, "total_timesteps": 60_000, "td3": TD3},
    },
}
