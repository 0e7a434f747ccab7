"""The configuration of a run: schema, sources, and their order.

Dataclass defaults < the task's preset for the device and algorithm, or where it has none that of
`algos/defaults.py` < YAML file < command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxrl import assets, envs, strict_yaml
from jaxrl.algos import ALGORITHMS, AlgorithmConfig, PPOConfig, SACConfig, TD3Config
from jaxrl.algos.defaults import GENERIC
from jaxrl.algos.off_policy import OffPolicyConfig
from jaxrl.envs import Task, WrapConfig, Wrapped
from jaxrl.errors import UserError
from jaxrl.files import write_text
from jaxrl.logs import SINKS
from jaxrl.options import MOST_INT, build, describe, merge, option, quote, to_dict

DEFAULT_TASK = "ballbot"
MOST_STEPS = 10**15  # control steps are counted by the host
MOST_EPISODES = 1_000_000
MOST_MEMBERS = 10_000
MOST_BYTES = 1_000_000  # of a configuration file


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training: own worlds, deterministic, frozen statistics."""

    every: int | None = option(
        None,
        "control steps between evaluations; 0: no evaluations; none: about a tenth",
        minimum=0,
        maximum=MOST_STEPS,
    )
    episodes: int = option(100, "episodes of an evaluation", minimum=1, maximum=MOST_EPISODES)
    final_episodes: int = option(
        100, "episodes of the evaluation at the end; 0: none", minimum=0, maximum=MOST_EPISODES
    )
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

    every: int | None = option(
        None,
        "control steps between checkpoints; 0: only the last; none: a tenth",
        minimum=0,
        maximum=MOST_STEPS,
    )
    keep: int = option(2, "how many of the newest to keep", minimum=2)
    replay: bool = option(True, "save past steps too (SAC, TD3); without, a resume refills them")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where numbers go besides progress.csv."""

    tensorboard: bool = option(True, "write TensorBoard files")
    wandb: bool = option(False, "log to Weights & Biases (WANDB_MODE=offline works)")
    sinks: tuple[str, ...] = option((), "other sinks that installed packages have, by name")
    console: bool = option(True, "progress bar and tables")
    table: Literal["short", "full"] = option(
        "short", "numbers on the console at an evaluation: the most important, or all"
    )

    @property
    def all_sinks(self) -> list[str]:
        """Names of the sinks in use, besides progress.csv and the console."""
        own = {"tensorboard": self.tensorboard, "wandb": self.wandb}
        return [*(name for name, used in own.items() if used), *self.sinks]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run, but for the task's own settings."""

    algo: str = option("ppo", "learning algorithm: ppo, sac, td3, or an installed one")
    num_envs: int = option(256, "worlds simulated side by side", minimum=1)
    total_timesteps: int = option(
        1_000_000,
        "control steps of each run, rounded up to whole iterations",
        minimum=1,
        maximum=MOST_STEPS,
    )
    seed: int = option(0, "seed of everything random", minimum=0, maximum=2**32 - 1)
    num_seeds: int = option(
        1, "runs with seeds from `seed` on, in one program", minimum=1, maximum=MOST_MEMBERS
    )
    sweep: tuple[str, ...] = option(
        (),
        "KEY=VALUE,VALUE..: a run for each value, in one program; several: a grid (YAML: a list)",
    )
    chunk: int | None = option(
        None,
        "iterations between two log rows; none: as many as take two seconds",
        minimum=1,
        maximum=1_000_000,
    )
    out: str | None = option(None, "the run's folder; none: checkpoints/<task>, numbered")
    eval: EvalConfig = option(EvalConfig(), "evaluation")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "checkpoints")
    log: LogConfig = option(LogConfig(), "logs")
    ppo: PPOConfig = option(PPOConfig(), "PPO")
    sac: SACConfig = option(SACConfig(), "SAC")
    td3: TD3Config = option(TD3Config(), "TD3")

    @property
    def settings(self) -> AlgorithmConfig:
        """Settings of the algorithm in use."""
        return vars(self)[self.algo]


@functools.cache
def train_class(algo: str) -> type[TrainConfig]:
    """`TrainConfig` with a section for the algorithm, which may be an installed one.

    Raises:
      UserError: no such algorithm.
    """
    if algo not in ALGORITHMS:
        close = difflib.get_close_matches(algo, ALGORITHMS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"algo: got {quote(algo)}{hint} (known: {', '.join(ALGORITHMS)})")
    if algo in {field.name for field in dataclasses.fields(TrainConfig)}:
        return TrainConfig
    Config = ALGORITHMS[algo].Config
    section = (algo, Config, option(Config(), f"settings of {algo}"))
    return dataclasses.make_dataclass("TrainConfig", [section], bases=(TrainConfig,), frozen=True)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A resolved run."""

    task: str
    env: Task
    train: TrainConfig
    eval_env: Task  # the task as evaluations play it
    eval_overrides: dict[str, Any]  # what the user wants different there

    @property
    def eval_every(self) -> int:
        """Control steps between evaluations; 0: none. Unless it is given, ten a run, or fewer
        where they would play more than the run itself trains, but no fewer than three."""
        settings, total = self.train.eval, self.train.total_timesteps
        if settings.every is not None:
            return settings.every
        played = 2 * settings.episodes * (self.eval_env.episode_length or 0)
        return max(total // 10, min(played, total // 3), 1)

    @property
    def checkpoint_every(self) -> int:
        """Control steps between checkpoints; 0: only the last."""
        given = self.train.checkpoint.every
        return max(self.train.total_timesteps // 10, 1) if given is None else given

    @property
    def is_population(self) -> bool:
        """Several runs in one program."""
        return self.train.num_seeds > 1 or bool(self.train.sweep)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the layout of a configuration file; not where the run lies, nor
        the settings of algorithms that it does not use."""
        unused = {"out", *ALGORITHMS} - {self.train.algo}
        train = {key: value for key, value in to_dict(self.train).items() if key not in unused}
        overrides = {"eval_overrides": self.eval_overrides} if self.eval_overrides else {}
        return {"env": {"name": self.task, **_env_to_dict(self.env)}, **overrides, **train}

    def describe(self) -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
        """(dotted key, type, value, help) of the task's settings, and of the training's but
        those of algorithms that it does not use."""
        task, wrap = _unwrap(self.env)
        own = [
            *describe(type(task), "env.", task),
            *describe(WrapConfig, "env.wrap.", wrap),
        ]
        return own, _rows(self.train.algo, self.train)


def resolve(*layers: dict[str, Any], platform: str) -> RunConfig:
    """One configuration from layers of nested dictionaries; later layers win.

    Args:
      layers: from files and the command line.
      platform: "cpu" or "gpu"; picks the preset. Any other: no preset.

    Raises:
      UserError: an unknown task or setting, a wrong type, a value out of range.
    """
    layers = tuple(layer | {"env": _env_section(layer.get("env"))} for layer in layers)
    given = merge(*layers)
    task = _task(given.get("env", {}))
    env_class = envs.env_class(task)
    algo = given.get("algo", TrainConfig.algo)
    cls = train_class(algo if isinstance(algo, str) else quote(algo))

    def known() -> list[str]:
        return _known(env_class, algo)

    # By itself first, so that complaints are of what was given and not of the preset.
    build(cls, _training(given), known=known)
    values: dict[str, Any] = {}
    for layer in reversed((_preset(env_class, platform, algo), *layers)):
        values = merge(_without_old_schedule(layer, values), values)
    settings = {k: v for k, v in values.get("env", {}).items() if k not in ("name", "gym")}
    overrides = values.get("eval_overrides") or {}
    if not isinstance(overrides, dict):
        raise UserError(f"eval_overrides: expected a section of the task's, got {quote(overrides)}")
    env = _build_env(env_class, settings, "env.", known)
    at_evaluation = merge(settings, env_class.eval_overrides, overrides, path="eval_overrides.")
    eval_env = env
    if at_evaluation != settings:
        eval_env = _build_env(env_class, at_evaluation, "eval_overrides.")
        if eval_env.observation_spec != env.observation_spec:
            raise UserError("eval_overrides: they change what the policy observes")
    train = build(cls, _training(values), known=known)
    _check_length(train)
    _check_sinks(train.log)
    return RunConfig(
        task=task,
        env=env,
        train=train,
        eval_env=eval_env,
        eval_overrides=_chosen(_env_to_dict(eval_env), overrides),
    )


def _preset(env_class: type[Task], platform: str, algo: str) -> dict[str, Any]:
    """The task's training settings for the device and algorithm, or those of tasks without."""
    own = env_class.presets.get(platform, {}).get(algo)
    return GENERIC.get(platform, {}).get(algo, {}) if own is None else own


def _env_section(section: Any) -> dict[str, Any]:
    """The section `env` of a layer; a text alone is the task's name."""
    if section is None:
        return {}
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, dict):
        raise UserError(f"env: expected a section or a task's name, got {quote(section)}")
    return section


def _task(section: dict[str, Any]) -> str:
    """The task's name, from `env.name` or `env.gym`."""
    for key in ("name", "gym"):
        if key in section and not isinstance(section[key], str):
            raise UserError(f"env.{key}: got {quote(section[key])}, expected text")
    if "gym" not in section:
        return str(section.get("name", DEFAULT_TASK))
    if "name" in section:
        raise UserError(
            f"env.gym: got {quote(section['gym'])}, but env.name is {quote(section['name'])}; give "
            "one of the two"
        )
    return f"gym:{section['gym']}"


def _training(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in ("env", "eval_overrides")}


def _rows(algo: str, train: TrainConfig | None = None) -> list[tuple[str, str, str, str]]:
    """What `describe` says of the training, without the algorithms that are not in use."""
    unused = {*ALGORITHMS} - {algo}
    rows = describe(train_class(algo), default=train)
    return [row for row in rows if row[0].partition(".")[0] not in unused]


def _known(env_class: type, algo: str) -> list[str]:
    """Dotted keys of all settings of a run."""
    rows = [*describe(env_class, "env."), *describe(WrapConfig, "env.wrap."), *_rows(algo)]
    return ["env.name", "env.gym", *(row[0] for row in rows)]


def _without_old_schedule(layer: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`layer` without the learning-rate schedules in whose place `above` puts another kind."""

    def schedule(of: dict[str, Any], algo: str) -> dict[str, Any]:
        return (of.get(algo) or {}).get("schedule") or {}

    for algo in ALGORITHMS:
        old, new = (schedule(x, algo).get("kind") for x in (layer, above))
        if old and new and new != old:
            layer = layer | {algo: {k: v for k, v in layer[algo].items() if k != "schedule"}}
    return layer


def _check_sinks(log: LogConfig) -> None:
    for name in log.sinks:
        if name not in SINKS:
            raise UserError(f"log.sinks: got {quote(name)} (known: {', '.join(SINKS)})")


def _check_length(train: TrainConfig) -> None:
    """Refuses a run with more steps than its counters, int32, can count."""
    settings: Any = train.settings
    batch = settings.num_steps * train.num_envs
    iterations = -(-train.total_timesteps // batch)
    steps = f"num_envs x {train.algo}.num_steps, {train.num_envs:,} x {settings.num_steps:,}"
    if batch > MOST_INT:
        raise UserError(
            f"num_envs: {steps}, are more control steps an iteration than {MOST_INT:,}: lower them"
        )
    if iterations > MOST_INT:
        raise UserError(
            f"total_timesteps: {train.total_timesteps:,} in iterations of {steps}, are "
            f"{iterations:,} iterations, must be at most {MOST_INT:,}"
        )
    if not isinstance(settings, OffPolicyConfig):
        return
    steps = iterations * settings.num_steps
    for key, count, what in (
        ("total_timesteps", steps, "control steps of a world"),
        (f"{train.algo}.gradient_steps", steps * settings.gradient_steps, "updates in the run"),
    ):
        if count > MOST_INT:
            raise UserError(f"{key}: {count:,} {what}, must be at most {MOST_INT:,}")


def make_env(name: str, settings: dict[str, Any] | None = None) -> Task:
    """A task by its name, with its settings.

    Raises:
      UserError: an unknown task or setting.
    """
    return _build_env(envs.env_class(name), settings or {}, "")


def _build_env(
    env_class: type,
    settings: dict[str, Any],
    path: str,
    known: Callable[[], list[str]] | None = None,
) -> Task:
    """The task with its settings, behind delay, noise and history if there are any."""
    settings = dict(settings)
    wrap = build(WrapConfig, settings.pop("wrap", None) or {}, f"{path}wrap.")
    try:
        task: Task = build(env_class, settings, path, known=known)
        length = task.episode_length
    except OverflowError as error:
        where = path or "env."
        raise UserError(f"{where.rstrip('.')}: its numbers are too far apart: {error}") from error
    if length is not None and not 1 <= length <= MOST_INT:
        raise UserError(
            f"{path or 'env.'}episode_length: an episode has {length:,} control steps, must be "
            f"between 1 and {MOST_INT:,}"
        )
    return task if wrap.is_off else Wrapped(task, wrap)


def _unwrap(env: Task) -> tuple[Task, WrapConfig]:
    return (env.task, env.wrap) if isinstance(env, Wrapped) else (env, WrapConfig())


def _env_to_dict(env: Task) -> dict[str, Any]:
    """The task's settings as plain values."""
    task, wrap = _unwrap(env)
    return to_dict(task) | ({} if wrap.is_off else {"wrap": to_dict(wrap)})


def _chosen(values: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Those of the nested values whose keys are there."""
    return {
        key: _chosen(values[key], below) if isinstance(below, dict) else values[key]
        for key, below in keys.items()
        if key in values
    }


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file as a nested dictionary.

    Raises:
      UserError: no such file, not YAML, or not a mapping.
    """
    try:
        with open(assets.find(Path(path), "configs"), "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"config {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"config {path}: more than {MOST_BYTES:,} bytes, which no settings take")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not valid YAML: no text in UTF-8") from error
    values = strict_yaml.load(text, f"config {path}")
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected settings as `key: value`, got {quote(values)}")
    return values


def write_yaml(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration."""
    write_text(path, strict_yaml.dump(config.to_dict()))
