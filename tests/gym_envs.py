"""Small Gymnasium environments, some of which misbehave. Imported by worker processes."""

import os
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Walk(gymnasium.Env):
    """Moves along a line by its action, in [-2, 6]; over after `limit` steps. Observes the
    place and the step; `info["high"]` beyond 3."""

    metadata = {"render_fps": 10}

    def __init__(self, limit: int = 5, trouble: str = "", at: int = 3, pause: float = 0.0):
        self.limit, self.trouble, self.at, self.pause = limit, trouble, at, pause
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-2.0, 6.0, (1,), np.float32)
        self.place, self.steps = 0.0, 0

    def _obs(self):
        return np.array([self.place, self.steps], np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(), 0
        if self.trouble == "born broken":
            raise OSError("no device")
        return self._obs(), {}

    def step(self, action):
        self.place, self.steps = self.place + float(action[0]), self.steps + 1
        obs, reward = self._obs(), float(action[0])
        if self.pause:
            time.sleep(self.pause)
        if self.steps == self.at:
            if self.trouble == "raises":
                raise ZeroDivisionError("lost contact\nwith the robot")
            if self.trouble == "nan":
                obs = obs * np.nan
            if self.trouble == "shape":
                obs = obs[:1]
            if self.trouble == "type":
                obs = obs.astype(str)
            if self.trouble == "dies":
                os._exit(1)
        over = self.steps >= self.limit
        return (
            obs,
            reward,
            False,
            over,
            {"high": self.place > 3, "place": self.place, "name": "walk"},
        )


class Shared(Walk):
    """All worlds of a process are at one place, as with a simulator that has one world."""

    place = property(lambda self: _places[0], lambda self, place: _places.__setitem__(0, place))


_places = [0.0]


class Choices(gymnasium.Env):
    """Pays 1 for the choice that its observation shows."""

    def __init__(self):
        self.observation_space = Dict({"shown": Discrete(3), "noise": Box(-1, 1, (2, 2))})
        self.action_space = Discrete(3)

    def _obs(self):
        self.shown = int(self.np_random.integers(3))
        return {"shown": self.shown, "noise": self.np_random.uniform(-1, 1, (2, 2))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        reward, self.steps = float(action == self.shown), self.steps + 1
        return self._obs(), reward, self.steps >= 10, False, {}


class Unbounded(Walk):
    def __init__(self):
        super().__init__()
        self.action_space = Box(-np.inf, np.inf, (1,))


class Anything(Walk):
    """Takes any keyword arguments."""

    def __init__(self, **kwargs):
        super().__init__()
