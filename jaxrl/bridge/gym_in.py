"""Gymnasium environments as tasks: `gym:Pendulum-v1`, or a class, `gym:package.module:Class`.

Such a task cannot be compiled: its runtime is that of `jaxrl.runtime.host`.
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
# simulator on the host, and what a control step costs beside it does not shrink with their number.
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
    """A Gymnasium environment. Observations are flattened to float32; actions of a Box are
    scaled to its bounds.

    Raises:
      UserError: it cannot be made, or has spaces that no policy here fits.
    """

    id: ClassVar[str]
    kwargs: dict[str, Any] = option({}, "keyword arguments of the environment")
    success: str | None = option(None, "key of `info` that tells success; none: it has no success")
    metrics: tuple[str, ...] = option(
        (), "keys of `info` whose values at the end of an episode are reported"
    )
    episode_seconds: float | None = option(
        None, "time limit (s) if it is less than the environment's own", greater_than=0
    )
    processes: int | None = option(
        None,
        "most processes that step the worlds; 0: they step in the training's own, and what kills "
        "it ends the training; none: one a core, or 0 where steps are too short to be worth it, or "
        "one a world where worlds in one process disturb each other",
        minimum=0,
    )
    step_timeout: float | None = option(
        60.0,
        "most seconds of a world's step (five times as long to be made or reset); after that the "
        "worlds are started again; none: no limit",
        greater_than=0,
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": PRESETS, "gpu": PRESETS}

    def __post_init__(self) -> None:
        _ = self._probe  # complaints first

    @functools.cached_property
    def _probe(self) -> dict[str, Any]:
        """What one environment says of itself."""
        known_by = (*self._known_by, self.processes == 0)
        if known_by not in _probes:
            try:
                _probes[known_by] = self._ask("describe")
            except Unusable as error:
                raise UserError(f"env.name: gym:{self.id}: {line(error)}") from error
            except Lost as error:
                raise UserError(f"env.name: gym:{self.id}: {error} when it was tried") from error
        return _probes[known_by]

    @property
    def _known_by(self) -> tuple[str, str]:
        return self.id, json.dumps(self.kwargs, default=repr)

    def _ask(self, method: str) -> Any:
        """What `Examiner` answers, in a process of its own, or here where all is to be here."""
        make = functools.partial(Examiner, self.id, dict(self.kwargs))
        place = Here if self.processes == 0 else Processes
        with contextlib.closing(place([make], self.step_timeout)) as there:
            there.send(method, [()])
            return there.answers()[0]

    @functools.cached_property
    def trial(self) -> tuple[float, bool]:
        """`Examiner.trial`, once; of what fails, that steps take for ever."""
        if self._known_by not in _trials:
            try:
                _trials[self._known_by] = self._ask("trial")
            except (Unusable, Lost):  # it is told when training starts
                _trials[self._known_by] = math.inf, True
        return _trials[self._known_by]

    @property
    def control_dt(self) -> float:
        """Seconds of a step, from the environment's frame rate (0.02 if it tells none)."""
        return self._probe["control_dt"]

    @property
    def episode_length(self) -> int | None:
        """Steps of an episode at most; None: it ends when the environment says so."""
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
        """What success means; None if there is none."""
        return self.success and (self._probe["criterion"] or f"info[{self.success!r}] at the end")

    def runtime(self, wrap: WrapConfig | None = None) -> HostRuntime:
        return HostRuntime(self, wrap or WrapConfig())

    @property
    def can_render(self) -> bool:
        """Perhaps: only the environment itself knows."""
        return True


def _spec(space: gymnasium.Space) -> ArraySpec | dict[str, ArraySpec]:
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: ArraySpec(part.shape or ()) for key, part in space.items()}
    return ArraySpec(space.shape or ())


# What is known of environments, by their names and arguments.
_probes: dict[tuple[Any, ...], dict[str, Any]] = {}
_trials: dict[tuple[str, str], tuple[float, bool]] = {}
