"""Scripted, random and zero baselines of the PyBullet environments.

python -m envs_legacy.scripted KukaPickPlace-v0 --policy scripted --episodes 50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import envs_legacy  # noqa: F401  registers the environments
from envs_legacy.kuka import FACE, HAND, KukaPickPlace
from envs_legacy.structures import (
    BARS,
    CONTROL_DT,
    JOINT_ANGLE,
    SPHERES,
    StructureCrush,
    StructureEnv,
)
from jaxrl import cli
from jaxrl.errors import UserError

DOWN = (0.0, 1.0, 0.0, 0.0)  # x, y, z, w: the flange faces the floor
CLEARANCE = 0.1  # m, height above the cube to which the hand moves first
CLOSE = 0.03  # m of sideways error at which the hand starts to descend

Policy = Callable[[np.ndarray], np.ndarray]


class KukaExpert:
    """Fetches the cube from above by inverse kinematics.

    It reads the state from the environment, not from the observation. In the published task it
    only reaches for the cube: this is enough for "final", and "guide" has no time even for this.
    """

    def __init__(self, env: KukaPickPlace) -> None:
        self.env = env

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Action [7] that moves the hand towards its goal."""
        angles, _ = self.env.joints()
        goal = self._angles(self._goal())
        speed = self.env.numbers.speed * self.env.control_dt
        change = (goal - angles) / speed
        # All joints arrive together, so that the hand's path is nearly straight.
        return (change / max(1.0, np.abs(change).max())).astype(np.float32)

    def _goal(self) -> np.ndarray:
        """[3] the point to which the hand should move now (m)."""
        hand, cube = self.env.hand(), self.env.cube_place()
        if self.env._magnet is not None:
            return hand + self.env.target - cube
        if self.env.mended and np.linalg.norm((hand - cube)[:2]) > CLOSE:
            return cube + [0.0, 0.0, CLEARANCE]
        return cube + [0.0, 0.0, 0.02]

    def _angles(self, goal: np.ndarray) -> np.ndarray:
        """[7] joint angles that put the hand at `goal`.

        The flange faces down in the mended task; the published cube is too near for that.
        """
        # The solver moves the link's frame, 20 mm above its centre of mass.
        above = 0.02 + FACE
        facing = [DOWN] if self.env.mended else []
        return np.array(
            self.env.client.calculateInverseKinematics(
                self.env.arm,
                HAND,
                list(goal + [0.0, 0.0, above]),
                *facing,
                maxNumIterations=100,
                residualThreshold=1e-5,
            )
        )


class Stand:
    """Bar robots get up by folding their bars down, fall over, spread, and get up again.

    A robot cannot keep its balance on two feet, so the robots get up one after another. Under a
    press they begin when the press starts. The spheres do not move. Only the observation is used.
    """

    fold = 1.45  # rad from the bar's rest to nearly straight down
    fallen = 0.2  # m, a folded robot with a lower hub lies on its side
    spread_time, rise_time = 0.8, 0.8  # s, shortest time for lying flat, and for coming up
    aim_time = 0.15  # s, time at the beginning of a rise in which the fold is kept upright
    turn = 1.1  # s, from one robot's first rise to that of the next
    lead = 1.2  # s, the first rise begins `lead - spread_time` before the press starts

    def __init__(self, env: StructureEnv) -> None:
        start = env.build_steps if isinstance(env, StructureCrush) else 0
        # Steps since the robot began to spread or fold.
        self.clock = -start + np.rint(
            (self.lead - self.turn * np.arange(BARS)) / CONTROL_DT
        ).astype(int)
        self.folded = np.zeros(BARS, bool)
        self.axis = np.zeros((BARS, 3))  # of the fold, in the hub's frame

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Action [30]."""
        action = np.zeros(6 * BARS + 3 * SPHERES, np.float32)
        for robot in range(BARS):
            self._turn(robot, observation[19 * robot : 19 * robot + 19])
            if self.folded[robot]:
                axis = self.axis[robot] * self.fold / JOINT_ANGLE
                action[6 * robot : 6 * robot + 6] = [*axis, *-axis]
        return action

    def _turn(self, robot: int, state: np.ndarray) -> None:
        """Switches a robot between spread and folded when it is time; `state` [19] is observed."""
        self.clock[robot] += 1
        seconds = self.clock[robot] * CONTROL_DT
        if self.folded[robot] and seconds > self.rise_time and state[2] < self.fallen:
            self.folded[robot], self.clock[robot] = False, 0
        elif not self.folded[robot] and seconds > self.spread_time:
            self.folded[robot], self.clock[robot] = True, 0
            seconds = 0.0
        if self.folded[robot] and seconds < self.aim_time:
            down = _down_in_body(state[3:7])
            down[0] = 0.0  # across the bars
            down /= max(float(np.linalg.norm(down)), 1e-6)
            self.axis[robot] = np.cross([1.0, 0.0, 0.0], down)


def _down_in_body(quat: np.ndarray) -> np.ndarray:
    """[3] the world's downward direction in the frame of a body with quaternion [4], w first."""
    w, x, y, z = quat.astype(np.float64)
    return -np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def policy_of(env: gym.Env[np.ndarray, np.ndarray], name: str, seed: int = 0) -> Policy:
    """A policy for one episode.

    Args:
      env: an environment of this package, wrapped or not.
      name: "zero", "random" or "scripted".

    Raises:
      UserError: there is no scripted policy for the environment.
    """
    shape, random = env.action_space.shape, np.random.default_rng(seed)
    if name == "zero":
        return lambda _: np.zeros(shape, np.float32)
    if name == "random":
        return lambda _: random.uniform(-1.0, 1.0, shape).astype(np.float32)
    task = env.unwrapped
    if not isinstance(task, (KukaPickPlace, StructureEnv)):
        raise UserError(f"{type(task).__name__} has no script; choose --policy zero or random")
    return KukaExpert(task) if isinstance(task, KukaPickPlace) else Stand(task)


def episode(env: gym.Env[np.ndarray, np.ndarray], policy: Policy, seed: int) -> dict[str, float]:
    """Return, length in steps, and the numbers of the last info."""
    observation, info = env.reset(seed=seed)
    total, steps, ended = 0.0, 0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    return {"return": total, "steps": steps} | {k: float(v) for k, v in info.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id", help="such as KukaPickPlace-v0")
    parser.add_argument("--policy", choices=("zero", "random", "scripted"), default="scripted")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.episodes < 1 or args.seed < 0:
        raise UserError("--episodes: expected at least 1, and --seed at least 0")
    try:
        env, rows = gym.make(args.id), []
    except gym.error.Error as error:
        raise UserError(f"{args.id}: {error}") from error
    start, start_cpu = time.perf_counter(), time.process_time()
    for seed in range(args.seed, args.seed + args.episodes):
        rows.append(episode(env, policy_of(env, args.policy, seed), seed))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    env.close()
    print(f"{args.id}, {args.policy}, {args.episodes} episodes")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(
            f"  {name:18} mean {values.mean():9.3f}  sd {values.std():8.3f}"
            f"  min {values.min():9.3f}  max {values.max():9.3f}"
        )
    steps = sum(row["steps"] for row in rows)
    print(
        f"  {steps / seconds:.0f} environment steps per second, "
        f"{steps / cpu_seconds:.0f} per CPU-second"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
