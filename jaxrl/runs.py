"""Runs on disk: the algorithm they used, the policies they left, and their judgement."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import platform as host
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxrl import __version__, assets, evaluation
from jaxrl.algos import ALGORITHMS, Algorithm
from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta
from jaxrl.config import RunConfig, resolve
from jaxrl.envs import ArraySpec, Task
from jaxrl.errors import UserError
from jaxrl.files import check_writable, write_text
from jaxrl.nets.encoders import WHOLE, parts_of
from jaxrl.options import build
from jaxrl.policy import Policy, PolicyState

EVAL_SEED = 0x5EED  # evaluation draws its own random numbers
MEMBERS = "members"  # folder of a population's runs


def make_algorithm(config: RunConfig, *, members: int = 1) -> Algorithm:
    """The configured algorithm on the configured task, one of `members` side by side."""
    train = config.train
    iterations = -(-train.total_timesteps // (train.settings.num_steps * train.num_envs))
    worlds = config.env.runtime().worlds(train.num_envs, members=members)
    return ALGORITHMS[train.algo](train.settings, config.env, worlds, iterations)


def hardware() -> dict[str, Any]:
    """What this runs on, for checkpoints, reports and benchmarks."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
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
      policy: what acts with it.
      params: its parameters and statistics.
      meta: the checkpoint's meta data.
      source: the folder it was read from.
      overrides: settings laid over those of the run that made it.
    """

    policy: Policy
    params: PolicyState
    meta: dict[str, Any]
    source: Path
    overrides: dict[str, Any]

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run that made it. This makes the task, too.

        Raises:
          UserError: settings that do not fit, or another task than the policy is for.
        """
        config = resolve(self.meta["config"], self.overrides, platform="none")
        task = config.eval_env
        for what, own, other in (
            ("observes", self.policy.observation, task.observation_spec),
            ("does", self.policy.action, task.action_spec),
        ):
            if _shapes(own) != _shapes(other):
                raise UserError(
                    f"{self.source}: what the policy {what} has the shape {_shapes(own)}, but with "
                    f"these settings {config.task} has {_shapes(other)}"
                )
        return config

    @property
    def actor(self) -> evaluation.Actor:
        """Acts with it, deterministically."""
        return evaluation.Actor.of_policy(self.policy)


def _shapes(spec: Any) -> Any:
    return {key: list(part.shape) for key, part in parts_of(spec).items()}


def spaces(policy: Policy) -> dict[str, Any]:
    """What a policy observes and does, for a checkpoint's meta data."""
    return {
        "observation": {key: part.to_dict() for key, part in policy.parts.items()},
        "is_array": not isinstance(policy.observation, dict),
        "action": policy.action.to_dict(),
    }


def policy_of(meta: dict[str, Any]) -> tuple[Policy, type[Algorithm]]:
    """The policy that a checkpoint's meta data describe, and the algorithm that trained it.

    Checkpoints from before spaces were kept do not tell them; their task is asked.
    """
    config = meta["config"]
    algorithm = ALGORITHMS[config["algo"]]
    settings = build(algorithm.Config, config[config["algo"]], f"{config['algo']}.")
    if "spaces" in meta:
        found = meta["spaces"]
        parts = {key: ArraySpec.from_dict(part) for key, part in found["observation"].items()}
        observation = parts[WHOLE] if found["is_array"] else parts
        action = ArraySpec.from_dict(found["action"])
    else:
        task = resolve(config, platform="none").env
        observation, action = task.observation_spec, task.action_spec
    policy = Policy(settings.network, observation, action, normalize=settings.normalize_observation)
    return policy, algorithm


def load_policy(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainedPolicy:
    """A policy from a run's folder (its best model, else its newest), or a checkpoint's.

    Args:
      path: RUN, RUN/best, RUN/checkpoints or one step's folder in either; of a population,
        RUN/members/<name> is such a run. Or the name of a policy that the project ships.
      overrides: settings laid over the run's own, such as {"env": {"drive": ...}}.

    Raises:
      UserError: nothing there, damaged, or of another network.
    """
    path = assets.find(Path(path), "checkpoints")
    if (path / MEMBERS).is_dir():
        raise UserError(f"{path}: holds a population; choose a member: {_best_member(path)}")
    folders, only = _where(path)
    for folder in folders:
        store = Checkpointer(folder)
        for step in reversed(store.steps()) if only is None else [only]:
            trained = _load_step(store, step, overrides or {})
            if trained is not None:
                return trained
    raise UserError(f"{path}: no whole checkpoint (expected a run's folder or a checkpoint)")


def is_own(run: Path) -> bool:
    """Whether a run, or its population, can be gone on with: it was trained here, and its
    folder is the user's. What only holds a policy came from elsewhere."""
    folder = run.resolve()
    if folder.parent.name == MEMBERS:
        folder = folder.parent.parent
    return (folder / "checkpoints").is_dir()


def _best_member(path: Path) -> str:
    """A population's best member, in words."""
    scores: dict[Path, float] = {}
    for member in sorted((path / MEMBERS).iterdir()):
        for step in Checkpointer(member / "best").steps():
            with contextlib.suppress(DamagedError):
                meta = read_meta(member / "best" / str(step))["meta"]
                by = meta["config"]["eval"]["best_by"]
                scores[member] = meta["eval"][f"eval/{by}"]
    if not scores:
        return f"{path / MEMBERS}/<name> (none has been evaluated yet)"
    best = max(scores, key=lambda member: scores[member])
    return f"{best} is the best of {len(scores)}"


def _where(path: Path) -> tuple[list[Path], int | None]:
    """The folders of checkpoints that a path names, and the step if it names one."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.name.isdecimal() and not any((path / n).exists() for n in ("best", "checkpoints")):
        return [path.parent], int(path.name)
    if path.name in ("best", "checkpoints") and not (path / "checkpoints").exists():
        return [path], None
    return [path / "best", path / "checkpoints"], None


def _load_step(store: Checkpointer, step: int, overrides: dict) -> TrainedPolicy | None:
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
    most: int | None = None,
) -> dict[str, Any]:
    """The summary of `episodes` fresh episodes, with all that says where it comes from.

    Args:
      trained: the policy.
      episodes: how many.
      seed: of the episodes.
      settings: what was changed against the run's own, for the record.
      task: another one than that of the run.
      most: worlds side by side at the most.

    Raises:
      UserError: too many episodes.
    """
    begun = time.monotonic()
    key = jax.random.fold_in(jax.random.key(EVAL_SEED + 1), seed)
    statistics, table = evaluation.play(
        task or trained.config.eval_env, trained.actor, trained.params, episodes, key, most=most
    )
    return {
        "source": f"{trained.source.parent.name}/{trained.source.name}",
        "settings": settings or {},
        "episodes": episodes,
        "seed": seed,
        "seconds": time.monotonic() - begun,
        "hardware": hardware(),
        "summary": evaluation.summarize(statistics, table),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result file, and makes its folder.

    Raises:
      UserError: it cannot be written.
    """
    check_writable(path)
    write_text(path, json.dumps(content, indent=1) + "\n")
