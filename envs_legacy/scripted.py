"""Scripted, random and zero baselines of the PyBullet environments.

python -m envs_legacy.scripted jaxrl/KukaPickPlace-v0 --policy scripted --episodes 50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import envs_legacy  # noqa: F401  registers the environments
from envs_legacy.kuka import FACE, HAND, KukaPickPlace
from envs_legacy.structures import BARS, CONTROL_DT, JOINT_ANGLE, SPHERES, StructureEnv

DOWN = (0.0, 1.0, 0.0, 0.0)  # x, y, z, w: the flange faces the floor
CLEARANCE = 0.1  # m above the cube where the hand goes first
CLOSE = 0.03  # m of sideways error at which the hand starts to descend

Policy = Callable[[np.ndarray], np.ndarray]


class KukaExpert:
    """Fetches the cube from above by inverse kinematics, for the mended task.

    It reads the world through the environment, not the observation.
    """

    def __init__(self, env: KukaPickPlace) -> None:
        self.env = env

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Action [7] that brings the hand nearer to where it should be."""
        angles, _ = self.env.joints()
        wanted = self._angles(self._goal())
        speed = self.env.numbers.speed * self.env.control_dt
        change = (wanted - angles) / speed
        # All joints arrive together, so that the hand's path is nearly straight.
        return (change / max(1.0, np.abs(change).max())).astype(np.float32)

    def _goal(self) -> np.ndarray:
        """[3] where the hand should go now (m)."""
        hand, cube = self.env.hand(), self.env.cube_place()
        if self.env._magnet is not None:
            return hand + self.env.target - cube
        if np.linalg.norm((hand - cube)[:2]) > CLOSE:
            return cube + [0.0, 0.0, CLEARANCE]
        return cube + [0.0, 0.0, 0.02]

    def _angles(self, goal: np.ndarray) -> np.ndarray:
        """[7] joint angles that put the flange's face at `goal`, facing down."""
        origin = goal + [0.0, 0.0, FACE + 0.02]  # the link's frame, which the solver moves
        return np.array(
            self.env.client.calculateInverseKinematics(
                self.env.arm, HAND, list(origin), DOWN, maxNumIterations=100, residualThreshold=1e-5
            )
        )


class Stand:
    """Bar robots get up by folding their bars down, fall over, spread, and get up again.

    Nothing keeps a robot on its two feet, so the robots take turns: one at least should be
    up at any time. The spheres rest. It needs the observation only.
    """

    fold = 1.45  # rad from the bar's rest to nearly straight down
    period, up = 2.0, 1.4  # s, of a turn and of its folded part

    def __init__(self, env: StructureEnv) -> None:
        self.steps = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Action [30]."""
        action = np.zeros(6 * BARS + 3 * SPHERES, np.float32)
        now = self.steps * CONTROL_DT / self.period
        self.steps += 1
        for robot in range(BARS):
            if (now + robot / BARS) % 1.0 >= self.up / self.period:
                continue
            down = _down_in_body(observation[19 * robot + 3 : 19 * robot + 7])
            down[0] = 0.0  # across the bars
            down /= max(float(np.linalg.norm(down)), 1e-6)
            axis = np.cross([1.0, 0.0, 0.0], down) * self.fold / JOINT_ANGLE
            action[6 * robot : 6 * robot + 6] = [*axis, *-axis]
        return action


def _down_in_body(quat: np.ndarray) -> np.ndarray:
    """[3] the world's down in the frame of a body with quaternion [4], w first."""
    w, x, y, z = quat.astype(np.float64)
    return -np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def policy_of(env: gym.Env[np.ndarray, np.ndarray], name: str, seed: int = 0) -> Policy:
    """A policy for one episode.

    Args:
      env: an environment of this package, wrapped or not.
      name: "zero", "random" or "scripted".
    """
    shape, random = env.action_space.shape, np.random.default_rng(seed)
    if name == "zero":
        return lambda _: np.zeros(shape, np.float32)
    if name == "random":
        return lambda _: random.uniform(-1.0, 1.0, shape).astype(np.float32)
    task = env.unwrapped
    return KukaExpert(task) if isinstance(task, KukaPickPlace) else Stand(task)


def episode(env: gym.Env[np.ndarray, np.ndarray], policy: Policy, seed: int) -> dict[str, float]:
    """Return, length in steps, and the numbers of the last info."""
    observation, info = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return {"return": total, "steps": steps} | {k: float(v) for k, v in info.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id", help="such as jaxrl/KukaPickPlace-v0")
    parser.add_argument("--policy", choices=("zero", "random", "scripted"), default="scripted")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    env, rows, start = gym.make(given.id), [], time.perf_counter()
    for seed in range(given.seed, given.seed + given.episodes):
        rows.append(episode(env, policy_of(env, given.policy, seed), seed))
    seconds = time.perf_counter() - start
    env.close()
    print(f"{given.id}, {given.policy}, {given.episodes} episodes")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(
            f"  {name:18} mean {values.mean():9.3f}  sd {values.std():8.3f}"
            f"  least {values.min():9.3f}  most {values.max():9.3f}"
        )
    print(f"  {sum(row['steps'] for row in rows) / seconds:.0f} environment steps per second")


if __name__ == "__main__":
    main()
