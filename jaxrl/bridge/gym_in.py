"""Gymnasium environments as tasks: `gym:Pendulum-v1`, or a class, `gym:package.module:Class`.

Such a task cannot be compiled: it uses the runtime of `jaxrl.runtime.host`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from typing import Any, ClassVar

import gymnasium
import numpy as np

from jaxrl.algos.defaults import GENERIC
from jaxrl.bridge.processes import Here, Lost, Processes
from jaxrl.bridge.worker import Examiner, Unusable, line
from jaxrl.envs import ArraySpec, Task, WrapConfig
from jaxrl.errors import UserError
from jaxrl.options import merge, option
from jaxrl.runtime.host import HostRuntime

# Fewer worlds and longer iterations than the defaults of compiled tasks: each world is one more
# simulator on the host, and the other costs of a control step do not shrink with more worlds.
HOST = {
    "ppo": {"num_envs": 16, "total_timesteps": 1_000_000, "ppo": {"num_steps": 128}},
    "sac": {"num_envs": 4, "sac": {"num_steps": 250, "gradient_steps": 2}},
    "td3": {"num_envs": 4, "td3": {"num_steps": 250, "gradient_steps": 2}},
}
PRESETS = {algo: merge(GENERIC["cpu"][algo], settings) for algo, settings in HOST.items()}


@functools.cache
def gym_class(name: str) -> type:
    """The task class of a Gymnasium id, or of "package.module:Class"."""
    return type("GymTask", (GymTask,), {"id": name, "__doc__": GymTask.__doc__})


@dataclasses.dataclass(frozen=True)
class GymTask(Task):
    """A Gymnasium environment. Observations are flattened to float32; actions in [-1, 1] are
    scaled to the bounds of a Box.

    Raises:
      UserError: the environment cannot be made, or no policy supports its spaces.
    """

    id: ClassVar[str]
    kwargs: dict[str, Any] = option({}, "keyword arguments for making the environment")
    success: str | None = option(
        None,
        "key of `info` whose value at the end of an episode is its success (true or false); "
        "none: the task has no success",
    )
    metrics: tuple[str, ...] = option(
        (), "keys of `info` whose values at the end of an episode are logged"
    )
    episode_seconds: float | None = option(
        None,
        "time limit of an episode (s), if it is shorter than the environment's own; "
        "none: the environment's own",
        greater_than=0,
    )
    processes: int | None = option(
        None,
        "largest number of processes that step the worlds; 0: the worlds step in the training "
        "process, and a crash of a world ends the training; none: one process for each core, "
        "but 0 if steps are too short for processes to help, and one process for each world "
        "if worlds in one process disturb each other",
        minimum=0,
    )
    step_timeout: float | None = option(
        60.0,
        "time limit of a world's step (s), and five times that to make or reset the world; "
        "after that the worlds are restarted; none: no limit",
        greater_than=0,
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": PRESETS, "gpu": PRESETS}

    def __post_init__(self) -> None:
        _ = self._probe  # raises errors early

    @functools.cached_property
    def _probe(self) -> dict[str, Any]:
        """The result of `Examiner.describe`: spaces, time limit, control step, success."""
        cache_key = (*self._cache_key, self.processes == 0)
        if cache_key not in _probes:
            try:
                _probes[cache_key] = self._examine("describe")
            except Unusable as error:
                raise UserError(f"env.name: gym:{self.id}: {line(error)}") from error
            except Lost as error:
                raise UserError(
                    f"env.name: gym:{self.id}: {error} while the environment was tried out"
                ) from error
        return _probes[cache_key]

    @property
    def _cache_key(self) -> tuple[str, str]:
        return self.id, json.dumps(self.kwargs, default=repr)

    def _examine(self, method: str) -> Any:
        """The result of a method of `Examiner`. It runs in a separate process, or in this one if
        the worlds step in this one (`processes` is 0)."""
        make = functools.partial(Examiner, self.id, dict(self.kwargs))
        runner = Here if self.processes == 0 else Processes
        with contextlib.closing(runner([make], self.step_timeout)) as examiner:
            examiner.send(method, [()])
            return examiner.answers()[0]

    @functools.cached_property
    def trial(self) -> tuple[float, bool]:
        """The result of `Examiner.trial`, cached; if it fails, (inf, True)."""
        if self._cache_key not in _trials:
            try:
                _trials[self._cache_key] = self._examine("trial")
            except (Unusable, Lost):  # the error is reported when training starts
                _trials[self._cache_key] = math.inf, True
        return _trials[self._cache_key]

    @property
    def control_dt(self) -> float:
        """Seconds of a control step, from the environment's frame rate (0.02 without one)."""
        return self._probe["control_dt"]

    @property
    def episode_length(self) -> int | None:
        """Time limit in control steps; None: only the environment itself ends episodes."""
        if self.episode_seconds is not None:
            return max(round(self.episode_seconds / self.control_dt), 1)
        return self._probe["limit"]

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        return _spec(self._probe["observation_space"])

    @property
    def action_spec(self) -> ArraySpec:
        space = self._probe["action_space"]
        if isinstance(space, gymnasium.spaces.Discrete):
            return ArraySpec((int(space.n),), 0, 1, discrete=True)
        return ArraySpec((int(np.prod(space.shape)),), -1.0, 1.0)

    @property
    def success_criterion(self) -> str | None:
        """Description of success; None: the task has no success."""
        return self.success and (self._probe["criterion"] or f"info[{self.success!r}] at the end")

    def runtime(self, wrap: WrapConfig | None = None) -> HostRuntime:
        return HostRuntime(self, wrap or WrapConfig())

    @property
    def can_render(self) -> bool:
        """Always true: only the environment itself knows whether it can render."""
        return True


def _spec(space: gymnasium.Space) -> ArraySpec | dict[str, ArraySpec]:
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _array_spec(part) for key, part in space.items()}
    return _array_spec(space)


def _array_spec(space: Any) -> ArraySpec:
    if space.dtype == np.uint8:
        return ArraySpec(space.shape, 0, 255, dtype="uint8")
    return ArraySpec(space.shape)


# Cached results of `_probe` and `trial`, by the environment's name and arguments.
_probes: dict[tuple[Any, ...], dict[str, Any]] = {}
_trials: dict[tuple[str, str], tuple[float, bool]] = {}
