"""The configuration of a run: schema, sources, and their order.

Dataclass defaults < the task's preset for the device < YAML file < command line.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxrl import envs
from jaxrl.algos import ALGORITHMS, PPOConfig, SACConfig, TD3Config
from jaxrl.envs import Env, WrapConfig, Wrapped
from jaxrl.errors import UserError
from jaxrl.files import write_text
from jaxrl.options import build, merge, option, to_dict

DEFAULT_TASK = "ballbot"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training: own worlds, deterministic, frozen statistics."""

    every: int = option(500_000, "control steps between evaluations; 0: none", least=0)
    episodes: int = option(100, "episodes of an evaluation", least=1)
    final_episodes: int = option(100, "episodes of the evaluation at the end; 0: none", least=0)
    best_by: Literal["mean_reward", "success_rate"] = option(
        "mean_reward", "what makes a model the best one"
    )
    stop_metric: Literal["mean_reward", "success_rate"] = option(
        "success_rate", "what stop_at looks at"
    )
    stop_at: float | None = option(
        None, "end training when stop_metric (of several runs the mean) reaches this"
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the whole training state."""

    every: int = option(1_000_000, "control steps between checkpoints; 0: only the last", least=0)
    keep: int = option(2, "how many of the newest to keep", least=2)
    replay: bool = option(True, "save past steps too (SAC, TD3); without, a resume refills them")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where numbers go besides progress.csv."""

    tensorboard: bool = option(True, "write TensorBoard files")
    wandb: bool = option(False, "log to Weights & Biases (WANDB_MODE=offline works)")
    console: bool = option(True, "progress bar and tables")
    table: Literal["short", "full"] = option(
        "short", "numbers on the console at an evaluation: the most important, or all"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run, but for the task's own settings."""

    algo: Literal["ppo", "sac", "td3"] = option("ppo", "learning algorithm")
    num_envs: int = option(256, "worlds simulated side by side", least=1)
    total_timesteps: int = option(
        1_000_000, "control steps of each run, rounded up to whole chunks", least=1
    )
    seed: int = option(0, "seed of everything random", least=0, most=2**32 - 1)
    num_seeds: int = option(1, "runs with seeds from `seed` on, in one program", least=1)
    sweep: tuple[str, ...] = option(
        (),
        "KEY=VALUE,VALUE..: a run for each value, in one program; several: a grid (YAML: a list)",
    )
    chunk: int = option(10, "iterations in one compiled call; one log row each", least=1)
    out: str | None = option(None, "the run's folder; none: checkpoints/<task>, numbered")
    eval: EvalConfig = option(EvalConfig(), "evaluation")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "checkpoints")
    log: LogConfig = option(LogConfig(), "logs")
    ppo: PPOConfig = option(PPOConfig(), "PPO")
    sac: SACConfig = option(SACConfig(), "SAC")
    td3: TD3Config = option(TD3Config(), "TD3")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A resolved run."""

    task: str
    env: Env
    train: TrainConfig
    eval_env: Env  # the task as evaluations play it
    eval_overrides: dict[str, Any]  # what the user wants different there

    @property
    def is_population(self) -> bool:
        """Several runs in one program."""
        return self.train.num_seeds > 1 or bool(self.train.sweep)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the layout of a configuration file; not where the run lies, nor
        the settings of algorithms that it does not use."""
        unused = {"out", *ALGORITHMS} - {self.train.algo}
        train = {key: value for key, value in to_dict(self.train).items() if key not in unused}
        env = {"name": self.task, **to_dict(self.env)}
        if isinstance(self.env, Wrapped):
            env = {"name": self.task, **to_dict(self.env.task), "wrap": to_dict(self.env.wrap)}
        overrides = {"eval_overrides": self.eval_overrides} if self.eval_overrides else {}
        return {"env": env, **overrides, **train}


def resolve(*layers: dict[str, Any], platform: str) -> RunConfig:
    """One configuration from layers of nested dictionaries; later layers win.

    Args:
      layers: from files and the command line.
      platform: "cpu" or "gpu"; picks the task's preset.

    Raises:
      UserError: an unknown task or setting, a wrong type, a value out of range.
    """
    values = merge(*layers)
    section = values.get("env", {})
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, dict):
        raise UserError(f"env: expected a section or a task's name, got {section!r}")
    if "gym" in section:
        section = {**section, "name": f"gym:{section['gym']}"}
        del section["gym"]
    task = str(section.get("name", DEFAULT_TASK))
    env_class = envs.env_class(task)
    presets = getattr(env_class, "presets", {}).get(platform, {})
    preset = presets.get(str(values.get("algo", TrainConfig.algo)), {})
    values = merge(preset, {**values, "env": {}}, {"env": section})
    settings = {k: v for k, v in values.pop("env").items() if k != "name"}
    overrides = values.pop("eval_overrides", None) or {}
    if not isinstance(overrides, dict):
        raise UserError(f"eval_overrides: expected a section of the task's, got {overrides!r}")
    env = _build_env(env_class, settings, "env.")
    at_evaluation = merge(settings, getattr(env_class, "eval_overrides", {}), overrides)
    eval_env = env
    if at_evaluation != settings:
        eval_env = _build_env(env_class, at_evaluation, "eval_overrides.")
    if eval_env.observation_spec != env.observation_spec:
        raise UserError("eval_overrides: they change what the policy observes")
    return RunConfig(
        task=task,
        env=env,
        train=build(TrainConfig, values),
        eval_env=eval_env,
        eval_overrides=overrides,
    )


def make_env(name: str, settings: dict[str, Any] | None = None) -> Env:
    """A task by its name, with its settings.

    Raises:
      UserError: an unknown task or setting.
    """
    return _build_env(envs.env_class(name), settings or {}, "")


def _build_env(env_class: type, settings: dict[str, Any], path: str) -> Env:
    """The task with its settings, behind delay, noise and history if there are any."""
    settings = dict(settings)
    wrap = build(WrapConfig, settings.pop("wrap", None) or {}, f"{path}wrap.")
    task = build(env_class, settings, path)
    return task if wrap.is_off else Wrapped(task, wrap)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file as a nested dictionary.

    Raises:
      UserError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"config {path}: not valid YAML{where}") from error
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected settings as `key: value`, got {values!r}")
    return values


def write_yaml(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration."""
    write_text(path, yaml.safe_dump(config.to_dict(), sort_keys=False))
