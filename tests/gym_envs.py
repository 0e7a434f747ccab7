"""Small Gymnasium environments, some of which misbehave. Imported by worker processes."""

import ctypes
import os
import sys
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Text


class Walk(gymnasium.Env):
    """Moves along a line by its action, in [-2, 6]; over after `limit` steps. Observes the
    place and the step; `info["high"]` beyond 3. Of its resets the share `unlucky` fails."""

    metadata = {"render_fps": 10}

    def __init__(
        self,
        limit: int = 5,
        trouble: str = "",
        at: int = 3,
        pause: float = 0.0,
        unlucky: float = 0.0,
    ):
        self.limit, self.trouble, self.at, self.pause = limit, trouble, at, pause
        self.unlucky = unlucky
        if trouble == "sleeps when made":
            time.sleep(1000)
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
        if self.trouble == "sleeps in reset":
            time.sleep(1000)
        if self.np_random.uniform() < self.unlucky:
            if self.np_random.uniform() < 0.5:
                raise OSError("no contact")
            self.place = np.nan
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
            if self.trouble == "absurd":
                obs, reward = obs * 1e30, -1e30
            if self.trouble == "shape":
                obs = obs[:1]
            if self.trouble == "type":
                obs = obs.astype(str)
            if self.trouble == "dies":
                os._exit(1)
            if self.trouble == "exits":
                sys.exit("enough")
            if self.trouble == "sleeps":
                time.sleep(1000)
            if self.trouble == "sleeps in C":  # and keeps Python from running
                ctypes.PyDLL(None).sleep(1000)
            if self.trouble == "no dictionary":
                return obs, reward, False, True, None
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


class Painted(Walk):
    """The first pixel of its picture is ten times its place, and ten times its step."""

    def __init__(self, render_mode=None, **kwargs):
        super().__init__(**kwargs)
        self.render_mode = render_mode

    def render(self):
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[0, 0] = [round(10 * self.place), 10 * self.steps, 0]
        return picture if self.trouble != "paints nothing" else None


class Choices(gymnasium.Env):
    """Pays 1 for the choice that its observation shows; choices count from `first` on."""

    def __init__(self, first: int = 0):
        shown, noise = Discrete(3, start=first), Box(-1, 1, (2, 2))
        self.observation_space = Dict({"shown": shown, "noise": noise})
        self.action_space = Discrete(3, start=first)

    def _obs(self):
        self.shown = int(self.np_random.integers(3) + self.action_space.start)
        return {"shown": self.shown, "noise": self.np_random.uniform(-1, 1, (2, 2))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        reward, self.steps = float(action == self.shown), self.steps + 1
        return self._obs(), reward, self.steps >= 10, False, {}


class Pixels(gymnasium.Env):
    """Pays 1 for the choice of the half of the image that is bright, left (0) or right (1)."""

    def __init__(self, channels_first: bool = False):
        self.first, shape = channels_first, (1, 8, 8) if channels_first else (8, 8, 1)
        self.observation_space = Dict(
            {"camera": Box(0, 255, shape, np.uint8), "clock": Box(0, 1, (1,))}
        )
        self.action_space = Discrete(2)

    def _obs(self):
        self.side = int(self.np_random.integers(2))
        image = np.zeros((8, 8, 1), np.uint8)
        image[:, 4 * self.side : 4 * self.side + 4] = 255
        image = image.transpose(2, 0, 1) if self.first else image
        return {"camera": image, "clock": np.array([self.steps / 10], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        reward, self.steps = float(action == self.side), self.steps + 1
        return self._obs(), reward, False, self.steps >= 10, {}


SPACES = {
    "unbounded": Box(-np.inf, np.inf, (1,)),
    "empty": Box(0.0, 1.0, (0,)),
    "text": Text(5),
    "sequence": Dict({"fine": Discrete(2), "odd": Sequence(Discrete(3))}),
    "number": Dict({1: Discrete(2)}),
    "none": None,
}


class Odd(Walk):
    """Has the named spaces, and the frame rate, whatever it is."""

    def __init__(self, actions: str = "", observations: str = "", fps: float | str | None = 10):
        super().__init__()
        self.metadata = {"render_fps": fps}
        self.action_space = SPACES.get(actions, self.action_space)
        self.observation_space = SPACES.get(observations, self.observation_space)


class Anything(Walk):
    """Takes any keyword arguments."""

    def __init__(self, **kwargs):
        super().__init__()
