"""Settings for a task that has no preset of its own, by device and algorithm."""

from __future__ import annotations

from typing import Any

# One set of settings for each algorithm, after published ones. PPO divides rewards by the standard
# deviation of the return and lowers the learning rate to 0 (Andrychowicz et al. 2021, "What matters
# in on-policy reinforcement learning"); SAC and TD3 have the learning rates of Stable-Baselines3's
# zoo and target networks that follow faster. docs/algorithms.md has the results, and settings that
# were worse.
PPO: dict[str, Any] = {
    "num_steps": 32,
    "num_epochs": 8,
    "num_minibatches": 8,
    "learning_rate": 1e-3,
    "schedule": {"kind": "linear"},
    "normalize_reward": True,
}
OFF_POLICY: dict[str, Any] = {
    "num_steps": 16,
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "schedule": {"kind": "linear", "final": 0.1},
    "buffer_size": 100_000,
    "learning_starts": 2_000,
    "batch_size": 128,
    "gradient_steps": 8,
    "tau": 0.02,
    "network": {"policy_hidden": [128, 128], "value_hidden": [128, 128], "layer_norm": True},
}
SAC = OFF_POLICY | {"temperature_learning_rate": 1e-3}
TD3 = OFF_POLICY
# Many worlds and large batches, to keep a GPU busy. They compile for an H100 (docs/physics.md),
# but were never run on a GPU.
MANY = {"buffer_size": 1_000_000, "batch_size": 2048, "gradient_steps": 16}

GENERIC: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "ppo": {"num_envs": 64, "total_timesteps": 1_500_000, "ppo": PPO},
        "sac": {"num_envs": 16, "total_timesteps": 80_000, "sac": SAC},
        "td3": {"num_envs": 16, "total_timesteps": 80_000, "td3": TD3},
    },
    "gpu": {
        "ppo": {
            "num_envs": 2048,
            "total_timesteps": 20_000_000,
            "ppo": PPO | {"num_epochs": 4, "num_minibatches": 32},
        },
        "sac": {"num_envs": 1024, "total_timesteps": 5_000_000, "sac": SAC | MANY},
        "td3": {"num_envs": 1024, "total_timesteps": 5_000_000, "td3": TD3 | MANY},
    },
}
