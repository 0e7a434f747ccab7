"""The configuration of a run: its settings, and where their values come from.

Sources, of which later ones win: the defaults of the dataclasses; the preset for the device and
algorithm, from the task or, if it has none, from `algos/defaults.py`; a YAML file; the command
line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
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
from jaxrl.options import MAX_INT, build, default_values, describe, merge, option, quote, to_dict
from jaxrl.pbt import PBTConfig

DEFAULT_TASK = "ballbot"
MAX_STEPS = 10**15  # more than int32 can hold: control steps are counted on the host
MAX_EPISODES = 1_000_000
MAX_MEMBERS = 10_000
MAX_BYTES = 1_000_000  # size of a configuration file


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training: separate worlds, deterministic actions, and
    observation statistics that stay as they are."""

    every: int | None = option(
        None,
        "control steps between two evaluations; 0: no evaluations; none: about a tenth of the run",
        minimum=0,
        maximum=MAX_STEPS,
    )
    episodes: int = option(
        100,
        "number of episodes in each evaluation during training",
        minimum=1,
        maximum=MAX_EPISODES,
    )
    final_episodes: int = option(
        100,
        "number of episodes in the evaluation after training; 0: no such evaluation",
        minimum=0,
        maximum=MAX_EPISODES,
    )
    best_by: Literal["mean_reward", "success_rate"] = option(
        "mean_reward", "the metric by which evaluations choose the best model"
    )
    stop_metric: Literal["mean_reward", "success_rate"] = option(
        "success_rate", "the metric of evaluations that eval.stop_at is compared with"
    )
    stop_at: float | None = option(
        None,
        "training ends when eval.stop_metric reaches this value (of several runs: their"
        " mean); none: it trains to the end",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the whole training state."""

    every: int | None = option(
        None,
        "control steps between two checkpoints; 0: only one at the end; none: a tenth of the run",
        minimum=0,
        maximum=MAX_STEPS,
    )
    keep: int = option(2, "number of checkpoints to keep; older ones are deleted", minimum=2)
    replay: bool = option(
        True,
        "checkpoints include the replay buffer (SAC, TD3); if false, a resumed run "
        "first fills the buffer again",
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logs in addition to progress.csv."""

    tensorboard: bool = option(True, "write the log for TensorBoard")
    wandb: bool = option(False, "write the log to Weights & Biases; WANDB_MODE=offline is possible")
    sinks: tuple[str, ...] = option(
        (), "names of further sinks for the log, which installed packages add"
    )
    console: bool = option(True, "show a progress bar and tables of results in the terminal")
    table: Literal["short", "full"] = option(
        "short",
        "numbers that the terminal shows after an evaluation: the most important ones, or all",
    )

    @property
    def all_sinks(self) -> list[str]:
        """Names of the sinks in use, besides progress.csv and the console."""
        builtin = {"tensorboard": self.tensorboard, "wandb": self.wandb}
        return [*(name for name, used in builtin.items() if used), *self.sinks]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a run, except those of its task."""

    algo: str = option(
        "ppo", "learning algorithm: ppo, sac, td3, or one that an installed package adds"
    )
    num_envs: int = option(256, "number of worlds that are simulated in parallel", minimum=1)
    devices: int | None = option(
        None,
        "number of devices (GPUs, or cores of the CPU) that the worlds are split over; none: all "
        "that make the run faster",
        minimum=1,
    )
    total_timesteps: int = option(
        1_000_000,
        "control steps that a run trains, summed over its worlds; rounded up to whole iterations",
        minimum=1,
        maximum=MAX_STEPS,
    )
    seed: int = option(0, "seed of all random numbers of the run", minimum=0, maximum=2**32 - 1)
    num_seeds: int = option(
        1,
        "number of runs that train at once in one program, with the seeds `seed`, `seed` + 1, ...",
        minimum=1,
        maximum=MAX_MEMBERS,
    )
    sweep: tuple[str, ...] = option(
        (),
        "KEY=VALUE,VALUE,..: trains one run for each value, all in one program; several"
        " of these make a grid (in YAML: a list); KEY:KEY=VALUE:VALUE,.. changes settings together",
    )
    pbt: PBTConfig = option(PBTConfig(), "population-based training")
    chunk: int | None = option(
        None,
        "iterations between two rows of the log; none: as many as take about two seconds",
        minimum=1,
        maximum=1_000_000,
    )
    init_from: str | None = option(
        None,
        "a run, a checkpoint or a policy of the project that the run begins with; its observations "
        "and actions are matched by the names of their components",
    )
    init_parts: tuple[
        Literal["policy", "value", "encoder", "normalizer", "std", "optimizer"], ...
    ] = option(
        ("policy", "value", "normalizer"),
        "what the run takes over from init_from: policy (network), value (network, or critics), "
        "encoder (the image encoders of both alone), normalizer (statistics of observations), std "
        "(noise of the actions), optimizer",
    )
    out: str | None = option(
        None, "folder that the run is written to; none: checkpoints/<task>-<number>"
    )
    storage: str | None = option(
        None,
        "folder, or s3://bucket/prefix, in which a mirror of the run's folder is kept; it is "
        "brought up to date after each checkpoint",
    )
    eval: EvalConfig = option(EvalConfig(), "evaluation")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "checkpoints")
    log: LogConfig = option(LogConfig(), "logs")
    ppo: PPOConfig = option(PPOConfig(), "PPO")
    sac: SACConfig = option(SACConfig(), "SAC")
    td3: TD3Config = option(TD3Config(), "TD3")

    @property
    def settings(self) -> AlgorithmConfig:
        """The settings of the algorithm that the run uses."""
        return vars(self)[self.algo]


@functools.cache
def train_class(algo: str) -> type[TrainConfig]:
    """`TrainConfig`, with an additional section if an installed package adds the algorithm.

    Raises:
      UserError: there is no such algorithm.
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
    """The resolved configuration of a run."""

    task: str
    env: Task
    train: TrainConfig
    eval_env: Task  # the task as evaluations play it
    eval_overrides: dict[str, Any]  # task settings that the user changes in evaluations

    @property
    def eval_every(self) -> int:
        """Control steps between evaluations; 0: no evaluations. By default ten evaluations per
        run; fewer, but at least three, if ten would play more than half as many control steps
        as the run trains."""
        settings, total = self.train.eval, self.train.total_timesteps
        if settings.every is not None:
            return settings.every
        played = 2 * settings.episodes * (self.eval_env.episode_length or 0)
        return max(total // 10, min(played, total // 3), 1)

    @property
    def checkpoint_every(self) -> int:
        """Control steps between checkpoints; 0: only one at the end."""
        given = self.train.checkpoint.every
        return max(self.train.total_timesteps // 10, 1) if given is None else given

    @property
    def is_population(self) -> bool:
        """Whether several runs train in one program."""
        return self.train.num_seeds > 1 or bool(self.train.sweep)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the layout of a configuration file, without the run's folder and
        without settings of algorithms that the run does not use."""
        unused = {"out", *ALGORITHMS} - {self.train.algo}
        train = {key: value for key, value in to_dict(self.train).items() if key not in unused}
        overrides = {"eval_overrides": self.eval_overrides} if self.eval_overrides else {}
        return {"env": {"name": self.task, **_env_to_dict(self.env)}, **overrides, **train}

    def defaults(self) -> dict[str, Any]:
        """The default values of the settings, by dotted key."""
        task, _ = _unwrap(self.env)
        env = {f"env.{key}": value for key, value in default_values(type(task)).items()}
        return env | default_values(type(self.train))

    def describe(self) -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
        """Rows (dotted key, type, value, help): those of the task's settings; those of the
        training settings, without algorithms that the run does not use."""
        task, wrap = _unwrap(self.env)
        task_rows = [
            *describe(type(task), "env.", task),
            *describe(WrapConfig, "env.wrap.", wrap),
        ]
        return task_rows, _rows(self.train.algo, self.train)


def resolve(
    *layers: dict[str, Any], platform: str, constants: Mapping[str, Any] | None = None
) -> RunConfig:
    """Makes a configuration from nested dictionaries of settings; later ones win.

    Args:
      layers: settings from files and from the command line.
      platform: "cpu" or "gpu", to choose the preset; any other name: no preset.
      constants: the task's `constants` from a checkpoint; None or empty: its own.

    Raises:
      UserError: an unknown task or setting, a wrong type, a value out of range.
    """
    layers = tuple(layer | {"env": _env_section(layer.get("env"))} for layer in layers)
    given = merge(*layers)
    task, algo = _task(given.get("env", {})), given.get("algo", TrainConfig.algo)
    env_class = envs.env_class(task)
    cls = train_class(algo if isinstance(algo, str) else quote(algo))
    known = functools.partial(_known, env_class, algo)
    # First without the preset, so that errors are about settings that the user gave.
    build(cls, _training(given), known=known)
    values = _merge_schedules(_preset(env_class, platform, algo), *layers)
    return _run_config(task, env_class, cls, values, known, constants)


def _run_config(
    task: str,
    env_class: type[Task],
    cls: type[TrainConfig],
    values: dict[str, Any],
    known: Callable[[], list[str]],
    constants: Mapping[str, Any] | None,
) -> RunConfig:
    """The run that plain values describe, which must fit the schema.

    Args:
      task: name of the task.
      env_class: class of the task.
      cls: class of the training settings.
      values: settings, nested as in a configuration file; the preset is among them.
      known: returns the dotted keys of all settings, for messages.
      constants: as for `resolve`.
    """
    settings = {k: v for k, v in values.get("env", {}).items() if k not in ("name", "gym")}
    overrides = values.get("eval_overrides") or {}
    if not isinstance(overrides, dict):
        raise UserError(f"eval_overrides: expected a section of settings, got {quote(overrides)}")
    env = _with(constants, _build_env(env_class, settings, "env.", known))
    at_evaluation = merge(settings, env_class.eval_overrides, overrides, path="eval_overrides.")
    eval_env = env
    if at_evaluation != settings:
        eval_env = _with(constants, _build_env(env_class, at_evaluation, "eval_overrides."))
        if eval_env.observation_spec != env.observation_spec:
            raise UserError(
                "eval_overrides: the settings change what the policy observes, which must be the "
                "same as in training"
            )
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
    """The task's preset for the device and algorithm, or the general one if it has none."""
    preset = env_class.presets.get(platform, {}).get(algo)
    return GENERIC.get(platform, {}).get(algo, {}) if preset is None else preset


def _env_section(section: Any) -> dict[str, Any]:
    """The section `env` of a layer; a string in its place is the name of the task."""
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
    """The settings without those of the task."""
    return {k: v for k, v in values.items() if k not in ("env", "eval_overrides")}


def _rows(algo: str, train: TrainConfig | None = None) -> list[tuple[str, str, str, str]]:
    """Rows of `describe` for the training settings, without the algorithms that are not used."""
    unused = {*ALGORITHMS} - {algo}
    rows = describe(train_class(algo), default=train)
    return [row for row in rows if row[0].partition(".")[0] not in unused]


def _known(env_class: type, algo: str) -> list[str]:
    """Dotted keys of all settings of a run."""
    rows = [*describe(env_class, "env."), *describe(WrapConfig, "env.wrap."), *_rows(algo)]
    return ["env.name", "env.gym", *(row[0] for row in rows)]


def _merge_schedules(*layers: dict[str, Any]) -> dict[str, Any]:
    """`merge`, except that a learning-rate schedule of another kind replaces the whole schedule
    of the layers below: their other settings are not for this kind."""

    def schedule(settings: dict[str, Any], algo: str) -> dict[str, Any]:
        return (settings.get(algo) or {}).get("schedule") or {}

    values: dict[str, Any] = {}
    for layer in reversed(layers):
        for algo in ALGORITHMS:
            lower, upper = (schedule(x, algo).get("kind") for x in (layer, values))
            if lower and upper and lower != upper:
                layer = layer | {algo: {k: v for k, v in layer[algo].items() if k != "schedule"}}
        values = merge(layer, values)
    return values


def _check_sinks(log: LogConfig) -> None:
    for name in log.sinks:
        if name not in SINKS:
            raise UserError(f"log.sinks: got {quote(name)} (known: {', '.join(SINKS)})")


def _check_length(train: TrainConfig) -> None:
    """Refuses a run with more steps than its int32 counters can hold."""
    settings: Any = train.settings
    batch = settings.num_steps * train.num_envs
    iterations = -(-train.total_timesteps // batch)
    steps = f"num_envs x {train.algo}.num_steps = {train.num_envs:,} x {settings.num_steps:,}"
    if batch > MAX_INT:
        raise UserError(
            f"num_envs: {steps} control steps in an iteration, must be at most {MAX_INT:,}: lower "
            f"num_envs or {train.algo}.num_steps"
        )
    if iterations > MAX_INT:
        raise UserError(
            f"total_timesteps: {train.total_timesteps:,} control steps, with {steps} in an "
            f"iteration, take {iterations:,} iterations, must be at most {MAX_INT:,}: lower "
            "total_timesteps"
        )
    if not isinstance(settings, OffPolicyConfig):
        return
    steps = iterations * settings.num_steps
    for key, count, unit in (
        ("total_timesteps", steps, "control steps of a world"),
        (f"{train.algo}.gradient_steps", steps * settings.gradient_steps, "updates in the run"),
    ):
        if count > MAX_INT:
            raise UserError(f"{key}: {count:,} {unit}, must be at most {MAX_INT:,}")


def make_env(name: str, settings: dict[str, Any] | None = None) -> Task:
    """Makes a task from its name and its settings.

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
    """The task with its settings, wrapped with delay, noise and history if any is set."""
    settings = dict(settings)
    wrap = build(WrapConfig, settings.pop("wrap", None) or {}, f"{path}wrap.")
    try:
        task: Task = build(env_class, settings, path, known=known)
        length = task.episode_length
    except OverflowError as error:
        section = (path or "env.").rstrip(".")
        raise UserError(f"{section}: the settings differ too much in size: {error}") from error
    if length is not None and not 1 <= length <= MAX_INT:
        raise UserError(
            f"{path or 'env.'}episode_length: an episode has {length:,} control steps, must be "
            f"between 1 and {MAX_INT:,}"
        )
    return task if wrap.is_off else Wrapped(task, wrap)


def _with(constants: Mapping[str, Any] | None, task: Task) -> Task:
    return task.with_constants(constants) if constants else task


def _unwrap(env: Task) -> tuple[Task, WrapConfig]:
    return (env.task, env.wrap) if isinstance(env, Wrapped) else (env, WrapConfig())


def _env_to_dict(env: Task) -> dict[str, Any]:
    """The task's settings as plain values."""
    task, wrap = _unwrap(env)
    return to_dict(task) | ({} if wrap.is_off else {"wrap": to_dict(wrap)})


def _chosen(values: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """The nested `values`, without those that have no entry in `keys`."""
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
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"config {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"config {path}: more than {MAX_BYTES:,} bytes, too many for settings")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not valid YAML: not UTF-8 text") from error
    values = strict_yaml.load(text, f"config {path}")
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected settings as `key: value`, got {quote(values)}")
    return values


def write_yaml(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration."""
    write_text(path, strict_yaml.dump(config.to_dict()))
