"""Runs on disk: making their algorithm, loading their policies, and evaluating these."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform as host
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import __version__, assets, evaluation, platform
from jaxrl.algos import ALGORITHMS, Algorithm, PPOConfig
from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta
from jaxrl.config import RunConfig, TrainConfig, resolve
from jaxrl.envs import ArraySpec, Task, env_class
from jaxrl.errors import UserError
from jaxrl.files import check_writable, write_text
from jaxrl.nets.encoders import ONLY_PART, parts_of
from jaxrl.options import build
from jaxrl.policy import Policy, PolicyState

EVAL_SEED = 0x5EED  # seed of evaluations, whose random numbers differ from those of training
MIN_WORLDS = 32  # with fewer worlds on each, another device is not used unless it is asked for
MEMBERS = "members"  # folder of a population's runs


def make_algorithm(config: RunConfig, *, members: int = 1) -> Algorithm:
    """The configured algorithm on the configured task; `members` is the number of such runs in the
    program."""
    train, num_devices = config.train, number_of_devices(config)
    iterations = -(-train.total_timesteps // (train.settings.num_steps * train.num_envs))
    worlds = config.env.runtime().worlds(
        train.num_envs // num_devices, members=members, num_devices=num_devices
    )
    return ALGORITHMS[train.algo](train.settings, config.env, worlds, iterations)


def number_of_devices(config: RunConfig) -> int:
    """The number of devices that the worlds of a run are split over.

    Raises:
      UserError: there are not so many devices, or the worlds cannot be split over them.
    """
    train, runtime = config.train, config.env.runtime()
    count, processes = train.devices, jax.process_count()
    if max(count or 1, processes) > 1 and not runtime.trains_on_devices:
        raise UserError(
            f"devices: {config.task} is not compiled, and trains on one device of one process"
        )
    if count is None:
        most = runtime.useful_devices()
        each = range(processes, most + 1, processes)
        count = max(n for n in each if n == processes or _fits(train, n))
    if count % processes:
        raise UserError(
            f"devices: got {count}, must be a multiple of the number of processes, {processes}"
        )
    if count > jax.device_count():
        raise UserError(
            f"devices: got {count}, but JAX finds {jax.device_count()} "
            f"({jax.devices()[0].platform}; on a CPU, each core is one)"
        )
    if train.num_envs % count:
        raise UserError(f"num_envs: {train.num_envs} worlds cannot be split over {count} devices")
    return count


def _fits(train: TrainConfig, count: int) -> bool:
    """Whether the worlds and batches can be split over `count` devices, and are worth it."""
    settings: Any = train.settings
    each = train.num_envs // count
    if train.num_envs % count or each < MIN_WORLDS:
        return False
    if isinstance(settings, PPOConfig):
        samples = each * (1 if settings.network.memory != "none" else settings.num_steps)
        return samples % settings.num_minibatches == 0
    return getattr(settings, "batch_size", count) % count == 0


def hardware() -> dict[str, Any]:
    """Hardware and versions of this process, for checkpoints, reports and benchmarks."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu": _cpu_name(),
        "cpu_cores": platform.cores(),
        "python": host.python_version(),
        "jax": jax.__version__,
        "jaxrl": __version__,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return host.processor() or host.machine()


@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
    """A policy restored from disk.

    Attributes:
      policy: the policy, without its parameters.
      params: network parameters and observation statistics.
      meta: the checkpoint's metadata.
      source: the folder that the policy was read from.
      overrides: settings that replace those of the run that trained the policy.
    """

    policy: Policy
    params: PolicyState
    meta: dict[str, Any]
    source: Path
    overrides: dict[str, Any]

    @functools.cached_property
    def config(self) -> RunConfig:
        """Configuration of the run that trained the policy, with `overrides`; makes the task.

        Raises:
          UserError: a setting is wrong, or the policy does not fit the task.
        """
        constants = self.params.constants
        if constants:
            check_constants(self.meta, self.overrides)
        config = resolve(self.meta["config"], self.overrides, platform="none", constants=constants)
        task = config.eval_env
        for kind, of_policy, of_task in (
            ("observation", self.policy.observation, task.observation_spec),
            ("action", self.policy.action, task.action_spec),
        ):
            if _shapes(of_policy) != _shapes(of_task):
                raise UserError(
                    f"{self.source}: the policy's {kind} has the shape {_shapes(of_policy)}, but "
                    f"that of {config.task} with these settings has {_shapes(of_task)}"
                )
        return config

    @property
    def actor(self) -> evaluation.Actor:
        """An actor that chooses the policy's deterministic actions."""
        return evaluation.Actor.of_policy(self.policy)


def check_constants(meta: dict[str, Any], changed: dict[str, Any]) -> None:
    """Raises a UserError if a setting is changed whose content is part of the policy."""
    setting = env_class(meta["config"]["env"]["name"]).constants_setting
    if setting in (changed.get("env") or {}):
        raise UserError(f"env.{setting}: cannot be changed: its content is part of the policy")


def load_constants(run: Path, changed: dict[str, Any]) -> Any:
    """The task's constants in a run's newest checkpoint; empty if it has none.

    Args:
      run: folder of the run.
      changed: settings that replace the run's own.
    """
    store = Checkpointer(run / "checkpoints")
    for step in reversed(store.steps()):
        with contextlib.suppress(DamagedError):
            meta = read_meta(store.folder / str(step))["meta"]
            if not meta.get("spaces", {}).get("constants"):
                return {}
            check_constants(meta, changed)
            return load_policy(run / "checkpoints").params.constants
    return {}


def _shapes(spec: Any) -> Any:
    return {key: list(part.shape) for key, part in parts_of(spec).items()}


def spaces(policy: Policy) -> dict[str, Any]:
    """The specifications of a policy's observations and actions, for a checkpoint's metadata."""
    return {
        "observation": {key: part.to_dict() for key, part in policy.parts.items()},
        "is_array": not isinstance(policy.observation, dict),
        "action": policy.action.to_dict(),
        "constants": {name: list(value.shape) for name, value in policy.constants.items()},
    }


def policy_of(meta: dict[str, Any]) -> tuple[Policy, type[Algorithm]]:
    """The policy that a checkpoint's metadata describe, and the algorithm that trained it.

    Old checkpoints have no `spaces`; then the observations and actions are those of their task.
    """
    config = meta["config"]
    algorithm = ALGORITHMS[config["algo"]]
    settings = build(algorithm.Config, config[config["algo"]], f"{config['algo']}.")
    if "spaces" in meta:
        saved = meta["spaces"]
        parts = {key: ArraySpec.from_dict(part) for key, part in saved["observation"].items()}
        observation = parts[ONLY_PART] if saved["is_array"] else parts
        action = ArraySpec.from_dict(saved["action"])
    else:
        task = resolve(config, platform="none").env
        observation, action = task.observation_spec, task.action_spec
    shapes = meta.get("spaces", {}).get("constants", {})
    policy = Policy(
        settings.network,
        observation,
        action,
        normalize=settings.normalize_observation,
        constants={name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
    )
    return policy, algorithm


def load_policy(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainedPolicy:
    """Loads a policy from a run's folder (its best model, else its newest) or from a checkpoint.

    Args:
      path: RUN, RUN/best, RUN/checkpoints or the folder of one step in either; for a population,
        RUN is RUN/members/<name>. Or the name of a policy that comes with the project.
      overrides: settings that replace the run's own, such as {"env": {"drive": ...}}.

    Raises:
      UserError: there is no policy, it is damaged, or it is of another network.
    """
    path = assets.find(Path(path), "checkpoints")
    if (path / MEMBERS).is_dir():
        raise UserError(f"{path}: holds a population; choose a member: {_best_member(path)}")
    folders, single_step = _checkpoint_folders(path)
    for folder in folders:
        store = Checkpointer(folder)
        for step in reversed(store.steps()) if single_step is None else [single_step]:
            trained = _load_step(store, step, overrides or {})
            if trained is not None:
                return trained
    raise UserError(f"{path}: no undamaged checkpoint (expected a run's folder or a checkpoint)")


def is_resumable(run: Path) -> bool:
    """Whether training of a run, or of its population, can be continued: its folder has training
    checkpoints. Then the folder belongs to the user. A folder with only a policy may be one that
    comes with the project."""
    folder = run.resolve()
    if folder.parent.name == MEMBERS:
        folder = folder.parent.parent
    return (folder / "checkpoints").is_dir()


def _best_member(path: Path) -> str:
    """The folder of a population's best member, as text for a message."""
    scores: dict[Path, float] = {}
    for member in sorted((path / MEMBERS).iterdir()):
        for step in Checkpointer(member / "best").steps():
            with contextlib.suppress(DamagedError):
                meta = read_meta(member / "best" / str(step))["meta"]
                metric = meta["config"]["eval"]["best_by"]
                scores[member] = meta["eval"][f"eval/{metric}"]
    if not scores:
        return f"{path / MEMBERS}/<name> (no member has been evaluated yet)"
    best = max(scores, key=lambda member: scores[member])
    return f"{best} is the best of {len(scores)}"


def _checkpoint_folders(path: Path) -> tuple[list[Path], int | None]:
    """The folders of checkpoints at a path, and the step if the path is that of one step."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.name.isdecimal() and not any((path / n).exists() for n in ("best", "checkpoints")):
        return [path.parent], int(path.name)
    if path.name in ("best", "checkpoints") and not (path / "checkpoints").exists():
        return [path], None
    return [path / "best", path / "checkpoints"], None


def _load_step(store: Checkpointer, step: int, overrides: dict) -> TrainedPolicy | None:
    """The policy of one checkpoint; None, with a warning, if the checkpoint is damaged."""
    folder = store.folder / str(step)
    try:
        meta = read_meta(folder)["meta"]
        if meta["config"].get("num_seeds", 1) > 1 or meta["config"].get("sweep"):
            raise UserError(f"{folder}: holds a population's state; choose one of its members")
        policy, algorithm = policy_of(meta)
        shapes = jax.eval_shape(
            lambda key: policy.state(algorithm.init_params(policy, key)), jax.random.key(0)
        )
        restored = store.restore_step(step, {"policy": shapes})
    except DamagedError as error:
        print(f"warning: checkpoint {folder} is damaged ({error})", file=sys.stderr)
        return None
    return TrainedPolicy(policy, restored.items["policy"], meta, folder, overrides)


def evaluate_policy(
    trained: TrainedPolicy,
    episodes: int,
    seed: int,
    settings: dict[str, Any] | None = None,
    *,
    task: Task | None = None,
    max_worlds: int | None = None,
) -> dict[str, Any]:
    """Plays `episodes` new episodes; returns their summary, and how it was measured.

    Args:
      trained: the policy.
      episodes: number of episodes.
      seed: seed of the episodes.
      settings: settings that differ from those of the run; only added to the result.
      task: the task to play; None: the run's own.
      max_worlds: largest number of worlds side by side; None: no limit but the memory.

    Raises:
      UserError: there are too many episodes for the memory.
    """
    start_time = time.monotonic()
    key = jax.random.fold_in(jax.random.key(EVAL_SEED + 1), seed)
    env = task or trained.config.eval_env
    statistics, table = evaluation.play(
        env,
        trained.actor,
        trained.params,
        episodes,
        key,
        max_worlds=max_worlds,
    )
    return {
        "source": f"{trained.source.parent.name}/{trained.source.name}",
        "settings": settings or {},
        "episodes": episodes,
        "seed": seed,
        "seconds": time.monotonic() - start_time,
        "hardware": hardware(),
        "failure": evaluation.failures(statistics, table, env),
        "summary": evaluation.summarize(statistics, table),
    }


def final_summary(run: Path) -> dict[str, Any]:
    """The summary of a run's final evaluation; empty if there is none."""
    try:
        summary: dict[str, Any] = json.loads((run / "eval" / "final.json").read_text())["summary"]
        return summary
    except (OSError, ValueError, KeyError):
        return {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result file, and makes its folder.

    Raises:
      UserError: the file cannot be written.
    """
    check_writable(path)
    write_text(path, json.dumps(content, indent=1) + "\n")
