"""The Python interface: train, resume, load, evaluate and film policies, and make tasks.

import jaxrl

run = jaxrl.train("ballbot", seed=1, ppo={"learning_rate": 1e-3})
policy = jaxrl.load(run.folder)
action = policy(observation)
"""

from __future__ import annotations

import dataclasses
import functools
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import platform, storage
from jaxrl.callbacks import Callback
from jaxrl.config import make_env, read_yaml
from jaxrl.envs import Task, names, register
from jaxrl.errors import UserError
from jaxrl.logs import readable
from jaxrl.options import to_dict
from jaxrl.reporting.pages import data
from jaxrl.reporting.reading import read_rows
from jaxrl.runs import TrainedPolicy, evaluate_policy, load_policy

if TYPE_CHECKING:
    from jaxrl.config import RunConfig
    from jaxrl.training import Trained


def tasks() -> list[str]:
    """Names of all tasks, followed by the families of tasks as "family:<name>"."""
    return names()


def make(task: str, **settings: Any) -> Task:
    """Makes a task from its name and settings: `jaxrl.make("ballbot", max_speed=0.3)`.

    Raises:
      UserError: an unknown task or setting.
    """
    return make_env(task, settings)


def train(
    task: str | type[Task] | Task | None = None,
    *,
    config: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Trains a policy, as `python -m jaxrl.train` does.

    Args:
      task: name, class or instance of the task; None: the configured task, else ballbot.
      config: path of a file of settings (YAML).
      callbacks: called during training.
      progress: whether to show the progress on standard error.
      settings: as in a configuration file, such as `seed=1`, `algo="sac"`,
        `ppo={"learning_rate": 1e-3}`, `env={"max_speed": 0.3}`.

    Raises:
      UserError: settings that cannot be used, or a run that cannot be written.
    """
    layers = [_with_task(settings, task)]
    if config is not None:
        layers.insert(0, read_yaml(config))
    return _train(layers, None, settings, callbacks, progress)


def resume(
    run: str | Path | Run,
    *,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Continues a run from its newest checkpoint; the arguments are those of `train`.

    Raises:
      UserError: the folder holds no run to continue, or a setting cannot be changed.
    """
    folder = run.folder if isinstance(run, Run) else storage.resumed(run)
    return _train([settings], folder, settings, callbacks, progress)


def load(path: str | Path | Run) -> LoadedPolicy:
    """Loads a policy from the folder of a run or of a checkpoint.

    From a run it loads the best model, or the newest checkpoint if there is no best model.

    Raises:
      UserError: there is no policy, or all of its files are damaged.
    """
    platform.start()
    return LoadedPolicy(load_policy(_folder(path)))


def evaluate(
    policy: str | Path | Run | LoadedPolicy,
    *,
    episodes: int = 100,
    seed: int = 0,
    env: dict[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Plays new episodes; returns mean, std, min, max and 95 % interval of the mean by statistic.

    Args:
      policy: a loaded policy, a run, or the path of a run or checkpoint.
      episodes: number of episodes.
      seed: seed of the episodes.
      env: settings of the task that replace those of the run.

    Raises:
      UserError: there is no policy, or the settings do not fit it.
    """
    loaded = policy if isinstance(policy, LoadedPolicy) else load(policy)
    overrides = {"env": env or {}, "eval_overrides": env or {}}
    trained = dataclasses.replace(loaded.trained, overrides=overrides)
    return evaluate_policy(trained, episodes, seed, overrides)["summary"]


def film(policy: str | Path | Run | LoadedPolicy, *, seed: int = 0) -> Film:
    """Films one episode; a notebook shows the result as a video.

    Raises:
      UserError: the task cannot be drawn.
    """
    from jaxrl import video

    loaded = policy if isinstance(policy, LoadedPolicy) else load(policy)
    trained = loaded.trained
    return Film(*video.film(loaded.task, trained.actor, trained.params, seed))


def _train(
    layers: list[dict[str, Any]],
    run: Path | None,
    typed: dict[str, Any],
    callbacks: Sequence[Callback],
    progress: bool,
) -> Run:
    from jaxrl import training

    if not progress:
        layers.append({"log": {"console": False}})
    config = training.configure(layers, platform.start(), resume=run, typed=typed)
    return Run(training.train(config, run, callbacks))


def _with_task(settings: dict[str, Any], task: str | type[Task] | Task | None) -> dict[str, Any]:
    """Adds the task to the section `env` of the settings."""
    if task is None:
        return settings
    env = settings.get("env", {})
    if isinstance(task, Task):
        env, task = to_dict(task.unwrapped) | env, type(task.unwrapped)
    if isinstance(task, type):
        register(task.__name__, task)
        task = task.__name__
    return settings | {"env": env | {"name": task}}


def _folder(run: str | Path | Run) -> Path:
    return run.folder if isinstance(run, Run) else storage.local(run)


class Run:
    """A trained run.

    Attributes:
      folder: the folder of the run.
      config: its configuration.
      status: 0, or 128 + the number of the signal that stopped training.
    """

    def __init__(self, trained: Trained):
        self.folder: Path = trained.folder
        self.config: RunConfig = trained.config
        self.status: int = trained.status
        self._trained = trained

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The logged numbers: one array per column, by the names in `jaxrl.logs.columns`."""
        rows = read_rows(self.folder / "progress.csv")
        columns = dict.fromkeys(name for row in rows for name in row)
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in columns}

    @functools.cached_property
    def policy(self) -> LoadedPolicy:
        """The best policy of the run, or of the population's best member."""
        return load(self._trained.best)

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """The final evaluation of the best model; empty if there was no final evaluation."""
        results = [result for _, path, result in self._trained.finals if path == self._trained.best]
        return results[0]["summary"] if results and results[0] else {}

    def report(self) -> Path:
        """Writes the HTML report of the run; returns its path.

        Raises:
          UserError: Matplotlib is not installed, or there is nothing to show.
        """
        from jaxrl.reporting import run_page

        return run_page.write([self.folder])

    def __repr__(self) -> str:
        steps = self._trained.progress.timesteps
        title = f"{self.config.task} with {self.config.train.algo}"
        return f"<Run {title}, {steps:,} control steps, {self.folder}>"

    def _repr_html_(self) -> str:
        """The final evaluation and the learning curve, for notebooks."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{readable(values['mean'])}</td>"
            f"<td>{readable(values['std'])}</td></tr>"
            for name, values in self.summary.items()
        )
        table = f"<table><tr><th></th><th>mean</th><th>std</th></tr>{rows}</table>" if rows else ""
        return f"<p>{html.escape(repr(self))}</p>{table}{self._curve()}"

    def _curve(self) -> str:
        try:
            from jaxrl.reporting.run_page import curve

            return curve(self.folder)
        except UserError:
            return ""


class LoadedPolicy:
    """A trained policy that maps NumPy observations to actions, deterministically.

    Attributes:
      observation_spec: an `ArraySpec`, or a dictionary of them.
      action_spec: an `ArraySpec`.
    """

    def __init__(self, trained: TrainedPolicy):
        self.trained = trained
        self.observation_spec = trained.policy.observation
        self.action_spec = trained.policy.action
        self._act = jax.jit(trained.policy)
        self._memory: Any = None
        self._count = 0  # number of worlds in the memory

    @property
    def task(self) -> Task:
        """The task that the policy was trained on, with the settings of evaluations."""
        return self.trained.config.eval_env

    def __call__(self, observation: Any) -> np.ndarray:
        """Returns actions in [-1, 1], or the indices of discrete actions.

        Args:
          observation: an array, or a dictionary of arrays, of one world, or of many worlds with a
            leading axis. A policy with a memory remembers earlier observations of the worlds;
            call `reset` when an episode begins.

        Raises:
          UserError: the observation does not have the shape that the policy expects.
        """
        batch = self._check(observation)
        obs = observation
        if batch is None:
            obs = jax.tree.map(lambda x: np.asarray(x)[None], observation)
        count = batch or 1
        if self._memory is None or self._count != count:
            self._memory, self._count = self.trained.policy.memory(count), count
        action, self._memory = self._act(self.trained.params, obs, self._memory)
        return np.array(action if batch is not None else action[0])

    def reset(self, ended: Any = None) -> None:
        """Clears the memory of the policy; does nothing if the policy has no memory.

        Args:
          ended: [N] bool, the worlds in which a new episode begins; None: all worlds.
        """
        if ended is None or self._memory is None:
            self._memory = None
        else:
            self._memory = self.trained.policy.forget(self._memory, jnp.asarray(ended, bool))

    def _check(self, observation: Any) -> int | None:
        """The number of worlds in a batch of observations; None for a single observation."""
        parts = self.trained.policy.parts
        given = observation if isinstance(observation, dict) else {next(iter(parts)): observation}
        expected = {name: tuple(spec.shape) for name, spec in parts.items()}
        shapes = {name: np.shape(x) for name, x in given.items()}
        if isinstance(observation, dict) == isinstance(self.observation_spec, dict):
            if shapes == expected:
                return None
            counts = {shape[0] for shape in shapes.values() if shape}
            count = counts.pop() if len(counts) == 1 else 0
            if count and shapes == {name: (count, *shape) for name, shape in expected.items()}:
                return count
        is_dict = isinstance(self.observation_spec, dict)
        shown = expected if is_dict else next(iter(expected.values()))
        got = shapes if isinstance(observation, dict) else np.shape(observation)
        raise UserError(
            f"observation: got the shape {got}, expected {shown}, or that with a leading axis for "
            "many worlds"
        )


class Film:
    """Pictures of an episode.

    Attributes:
      frames: [F, H, W, 3] uint8.
      fps: pictures per second, at which the video plays at the task's own speed.
    """

    def __init__(self, frames: np.ndarray, fps: float):
        self.frames, self.fps = frames, fps

    def save(self, path: str | Path) -> Path:
        """Writes the pictures as a video (.mp4); returns the path.

        Raises:
          UserError: a library is missing, or the file cannot be written.
        """
        from jaxrl.video import write

        write(Path(path), self.frames, self.fps)
        return Path(path)

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            content = self.save(Path(folder) / "film.mp4").read_bytes()
        address = data(content, "video/mp4")
        return f'<video controls loop autoplay muted src="{address}"></video>'
