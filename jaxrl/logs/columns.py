"""Names of all logged numbers: columns of progress.csv and tags in TensorBoard.

Numbers that Stable-Baselines3 logs too have the same names as there.
"""

from __future__ import annotations

# Counters; the same for all members of a population.
TIME = "time/"
STEPS = "time/total_timesteps"  # control steps of a member
ITERATIONS = "time/iterations"
ELAPSED = "time/time_elapsed"  # s
SPEED = "time/fps"  # control steps per second

# Episodes that ended in training, and problems in the worlds during training.
ROLLOUT = "rollout/"
ROLLOUT_RETURN = "rollout/ep_rew_mean"
ROLLOUT_LENGTH = "rollout/ep_len_mean"
ROLLOUT_SUCCESS = "rollout/success_rate"
EPISODES = "rollout/episodes"
NAN_RESETS = "rollout/nan_resets"
OUT_OF_RANGE = "rollout/out_of_range"
RESTARTS = "rollout/restarts"
LEVEL = "rollout/level"

# Evaluations.
EVAL = "eval/"
EVAL_RETURN = "eval/mean_reward"
EVAL_RETURN_STD = "eval/std_reward"
EVAL_LENGTH = "eval/mean_ep_length"
EVAL_SUCCESS = "eval/success_rate"

# Updates.
TRAIN = "train/"
LEARNING_RATE = "train/learning_rate"
LOSS = "train/loss"
POLICY_LOSS = "train/policy_gradient_loss"
VALUE_LOSS = "train/value_loss"
ENTROPY_LOSS = "train/entropy_loss"
KL = "train/approx_kl"
CLIP_FRACTION = "train/clip_fraction"
STD = "train/std"
EXPERT_LOSS = "train/expert_loss"
EXPLAINED_VARIANCE = "train/explained_variance"
CRITIC_LOSS = "train/critic_loss"
ACTOR_LOSS = "train/actor_loss"
Q_VALUE = "train/q_value"
ENTROPY = "train/entropy"
TEMPERATURE = "train/ent_coef"
TEMPERATURE_LOSS = "train/ent_coef_loss"

_ROLLOUT = {"return": ROLLOUT_RETURN, "length": ROLLOUT_LENGTH, "success": ROLLOUT_SUCCESS}
_EVAL = {"return": EVAL_RETURN, "length": EVAL_LENGTH, "success": EVAL_SUCCESS}


def rollout(statistic: str) -> str:
    """The column of a statistic of episodes in training, such as "return" or a task's metric."""
    return _ROLLOUT.get(statistic, ROLLOUT + statistic)


def evaluation(statistic: str) -> str:
    """The column of a statistic of episodes in an evaluation."""
    return _EVAL.get(statistic, EVAL + statistic)


def std(key: str) -> str:
    """The column of a number's standard deviation over the members of a population."""
    return f"{key}_std"
