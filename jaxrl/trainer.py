"""The one host loop: a compiled chunk, then log, evaluate, checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform as host
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import __version__, evaluation
from jaxrl.algos import ALGORITHMS
from jaxrl.checkpoint import Checkpointer, DamagedError, read_meta
from jaxrl.config import RunConfig, resolve, write_yaml
from jaxrl.errors import UserError
from jaxrl.evaluation import Evaluator, policy_actor
from jaxrl.files import write_text
from jaxrl.logs import Console, CSVSink, Sink, TensorBoardSink, WandbSink

EVAL_SEED = 0x5EED  # evaluation draws its own random numbers


def make_algorithm(config: RunConfig) -> Any:
    """The configured algorithm on the configured task."""
    train = config.train
    settings = getattr(train, train.algo)
    batch = settings.num_steps * train.num_envs
    iterations = math.ceil(train.total_timesteps / batch)
    iterations = math.ceil(iterations / train.chunk) * train.chunk
    return ALGORITHMS[train.algo](settings, config.env, train.num_envs, iterations)


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


@dataclasses.dataclass
class Progress:
    """Host-side counters; saved with each checkpoint."""

    timesteps: int = 0
    elapsed: float = 0.0
    best: float | None = None


class Trainer:
    """Trains one run into one folder.

    Args:
      config: the run.
      folder: where it is written.
      resume: go on from the newest whole checkpoint in `folder`.

    Raises:
      UserError: the folder cannot be written, or the checkpoint does not fit.
    """

    def __init__(self, config: RunConfig, folder: Path, *, resume: bool = False):
        self.config = config
        self.folder = Path(folder)
        train = config.train
        self.algo = make_algorithm(config)
        self.chunk = train.chunk
        self.checkpoints = Checkpointer(self.folder / "checkpoints", keep=train.checkpoint.keep)
        self.best = Checkpointer(self.folder / "best", keep=1)
        self.progress = Progress()
        self.console = Console(train.total_timesteps, enabled=False)
        self._stop_signal: int | None = None
        self._prepare_folder()
        key = jax.random.key(train.seed)
        if resume and self.checkpoints.steps():
            self.state = self._restore(jax.eval_shape(self.algo.init, key))
        else:  # new, or killed before its first checkpoint: the same seed gives the same bits
            self.best.discard_after(-1)
            self.state = jax.jit(self.algo.init)(key)
        write_yaml(config, self.folder / "config.yaml")

    @property
    def _steps_per_chunk(self) -> int:
        return self.chunk * self.algo.batch_size

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"out: cannot write to {self.folder}: {error.strerror} (choose another with --out)"
            ) from error

    def _restore(self, shapes: Any) -> Any:
        restored = self.checkpoints.restore(
            _split(shapes), warn=lambda text: print(text, file=sys.stderr)
        )
        self.checkpoints.discard_after(restored.step)
        self.progress = Progress(**restored.meta["progress"])
        self.best.discard_after(restored.step)
        if not self.best.steps():
            self.progress.best = None
        saved_with = restored.meta["hardware"]["jax"]
        if saved_with != jax.__version__:
            print(
                f"warning: saved with jax {saved_with}, going on with {jax.__version__}: "
                "right, but not bit for bit",
                file=sys.stderr,
            )
        # Numbers changed on the command line count from here on.
        return _join(restored.items).replace(hyper=self.algo.hyperparameters())

    # -- the loop ---------------------------------------------------------------------

    def run(self) -> int:
        """Trains to the end; returns the exit status (0, or 128 + a signal's number).

        SIGINT and SIGTERM end the running chunk, save and return; a second one kills. Any
        other exception saves first, where the state is still there.
        """
        train = self.config.train
        begun = time.monotonic() - self.progress.elapsed
        self.console = Console(
            train.total_timesteps, start=self.progress.timesteps, enabled=train.log.console
        )
        sinks: list[Sink] = []
        with _SignalGuard(self._on_signal):
            try:
                evaluator = self._evaluator()
                sinks = self._sinks(evaluator)
                self._loop(evaluator, sinks, begun)
                self._save()
                self.checkpoints.wait()
                self.best.wait()
            except (UserError, OSError) as error:
                with contextlib.suppress(UserError):
                    self.checkpoints.wait()  # let a save that is under way finish
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"cannot write to {self.folder}: {error.strerror or error} (checkpoints saved "
                    "before are untouched; free space or mend the folder, then --resume)"
                ) from error
            except BaseException as error:
                self._emergency(error)
                raise
            finally:
                self.console.close()
                for sink in sinks:
                    with contextlib.suppress(OSError):
                        sink.close()
        return 0 if self._stop_signal is None else 128 + self._stop_signal

    def _loop(self, evaluator: Evaluator | None, sinks: list[Sink], begun: float) -> None:
        train, progress = self.config.train, self.progress
        run_chunk = self._compiled_chunk()
        compiling = None
        while progress.timesteps < train.total_timesteps and self._stop_signal is None:
            started, before = time.monotonic(), progress.timesteps
            self.state, output = run_chunk(self.state)
            metrics, episodes = jax.device_get(output)
            progress.timesteps += self._steps_per_chunk
            progress.elapsed = time.monotonic() - begun
            fps = self._steps_per_chunk / (time.monotonic() - started)
            row = self._row(metrics, episodes, fps)
            if not math.isfinite(row["train/loss"]):
                raise UserError(
                    f"training diverged at {progress.timesteps:,} control steps: lower "
                    f"{train.algo}.learning_rate and go on with --resume {self.folder}"
                )
            if evaluator and compiling is None:  # beside the next chunks
                shapes = jax.eval_shape(lambda x: x, self.state.policy)
                compiling = threading.Thread(target=evaluator.compile, args=(shapes,))
                compiling.start()
            done = progress.timesteps >= train.total_timesteps
            if evaluator and (done or _crossed(before, progress.timesteps, train.eval.every)):
                compiling.join()
                row |= self._evaluate(evaluator)
                progress.elapsed = time.monotonic() - begun
            for sink in sinks:
                sink.write(progress.timesteps, row)
            if _crossed(before, progress.timesteps, train.checkpoint.every):
                self._save()
            if self._reached(row):
                self.console.say(f"{train.eval.stop_metric} reached {train.eval.stop_at}")
                break
        if compiling:
            compiling.join()
        if self._stop_signal is not None:
            self.console.say("stopped after a whole chunk; saving")

    def _compiled_chunk(self):
        """`chunk` iterations as one program; the state's buffers are reused."""

        def chunk(state):
            return jax.lax.scan(lambda s, _: self.algo.step(s), state, length=self.chunk)

        # A restored or first state may share buffers; donation needs them apart.
        self.state = jax.tree.map(lambda x: x.copy(), self.state)
        return jax.jit(chunk, donate_argnums=0)

    def _evaluator(self) -> Evaluator | None:
        settings = self.config.train.eval
        if not settings.every:
            if settings.stop_at is not None:
                raise UserError("eval.stop_at: needs evaluations, but eval.every is 0")
            return None
        evaluator = Evaluator(self.config.env, policy_actor(self.algo.policy), settings.episodes)
        if "success" not in evaluator.statistics:
            for key in ("best_by", "stop_metric"):
                used = key == "best_by" or settings.stop_at is not None
                if used and getattr(settings, key) == "success_rate":
                    raise UserError(f"eval.{key}: task {self.config.task!r} reports no success")
        return evaluator

    def _evaluate(self, evaluator: Evaluator) -> dict[str, float]:
        """Judges the policy; keeps it when it is the best so far."""
        train = self.config.train
        key = jax.random.fold_in(jax.random.key(EVAL_SEED), train.seed)
        key = jax.random.fold_in(key, self.progress.timesteps)
        row = evaluation.scalars(evaluator.statistics, evaluator(self.state.policy, key))
        score = row.get(f"eval/{train.eval.best_by}", -math.inf)
        if self.progress.best is None or score > self.progress.best:
            self.progress.best = score
            self.best.save(
                self.progress.timesteps, {"policy": self.state.policy}, self._meta() | {"eval": row}
            )
        return row

    def _reached(self, row: dict[str, float]) -> bool:
        settings = self.config.train.eval
        value = row.get(f"eval/{settings.stop_metric}", -math.inf)
        return settings.stop_at is not None and value >= settings.stop_at

    def _row(self, metrics: dict, episodes: Any, fps: float) -> dict[str, float]:
        row = {name: float(np.mean(values)) for name, values in metrics.items()}
        count = int(episodes.count.sum())
        means = episodes.sums.sum(0) / count if count else np.full(episodes.sums.shape[-1], np.nan)
        names = {
            "return": "rollout/ep_rew_mean",
            "length": "rollout/ep_len_mean",
            "success": "rollout/success_rate",
        }
        for name, mean in zip(self.algo.vector.statistics, means, strict=True):
            row[names.get(name, f"rollout/{name}")] = float(mean)
        return row | {
            "rollout/episodes": count,
            "rollout/nan_resets": int(episodes.nonfinite.sum()),
            "time/fps": fps,
            "time/iterations": self.progress.timesteps // self.algo.batch_size,
            "time/time_elapsed": self.progress.elapsed,
            "time/total_timesteps": self.progress.timesteps,
        }

    def _sinks(self, evaluator: Evaluator | None) -> list[Sink]:
        start, log = self.progress.timesteps, self.config.train.log
        output = jax.eval_shape(self.algo.step, self.state)[1]
        blank = jax.tree.map(lambda x: np.zeros((1, *x.shape)), output)
        columns = ["time/total_timesteps", *self._row(*blank, fps=0.0)]
        if evaluator:
            width = len(evaluator.statistics)
            columns += evaluation.scalars(evaluator.statistics, np.zeros((1, width)))
        columns = list(dict.fromkeys(columns))
        sinks: list[Sink] = [
            self.console,
            CSVSink(self.folder / "progress.csv", columns, resume_step=start),
        ]
        if log.tensorboard:
            sinks.append(TensorBoardSink(self.folder / "tensorboard", resume_step=start))
        if log.wandb:
            sinks.append(WandbSink(self.folder, self.folder.name, self.config.to_dict()))
        return sinks

    # -- saving -----------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "progress": dataclasses.asdict(self.progress),
            "hardware": hardware(),
        }

    def _save(self) -> None:
        self.best.wait()  # a checkpoint never claims a best model that is not on disk
        self.checkpoints.save(self.progress.timesteps, _split(self.state), self._meta())

    def _emergency(self, error: BaseException) -> None:
        """Saves what there is when training fails."""
        if any(x.is_deleted() for x in jax.tree.leaves(self.state)):
            saved = self.checkpoints.steps()
            last = f"the newest checkpoint is {saved[-1]}" if saved else "there is none yet"
            print(f"the state was lost inside a compiled chunk; {last}", file=sys.stderr)
            return
        try:
            self._save()
            self.checkpoints.wait()
            print(
                f"saved an emergency checkpoint after {type(error).__name__}; go on with "
                f"--resume {self.folder}",
                file=sys.stderr,
            )
        except UserError as failed:
            print(f"no emergency checkpoint: {failed}", file=sys.stderr)

    def _on_signal(self, number: int) -> None:
        if self._stop_signal is not None:
            self.console.close()
            os._exit(128 + number)
        self._stop_signal = number


class _SignalGuard:
    """Sends SIGINT and SIGTERM to a handler while inside; only in the main thread."""

    def __init__(self, handler):
        self._handler = handler
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda n, _: self._handler(n))

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _crossed(before: int, now: int, every: int) -> bool:
    """A multiple of `every` lies in (before, now]."""
    return bool(every) and now // every > before // every


def _split(state: Any) -> dict[str, Any]:
    """A training state as checkpoint items: the policy apart, so that it loads alone."""
    return {"policy": state.policy, "train": state.replace(policy=None)}


def _join(items: dict[str, Any]) -> Any:
    return items["train"].replace(policy=items["policy"])


# -- finished runs ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
    """A policy restored from disk.

    Attributes:
      config: the run that made it.
      actor: acts with it, deterministically.
      params: what the actor takes.
      meta: the checkpoint's meta data.
      source: the folder it was read from.
    """

    config: RunConfig
    actor: evaluation.Actor
    params: Any
    meta: dict[str, Any]
    source: Path


def load_policy(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainedPolicy:
    """A policy from a run's folder (its best model, else its newest), or a checkpoint's.

    Args:
      path: RUN, RUN/best, RUN/checkpoints or one step's folder in either.
      overrides: settings laid over the run's own, such as {"env": {"drive": ...}}.

    Raises:
      UserError: nothing there, damaged, or of another network.
    """
    path = Path(path)
    folders, only = _where(path)
    for folder in folders:
        store = Checkpointer(folder)
        for step in reversed(store.steps()) if only is None else [only]:
            trained = _load_step(store, step, overrides or {})
            if trained is not None:
                return trained
    raise UserError(f"{path}: no whole checkpoint (expected a run's folder or a checkpoint)")


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
        config = resolve(meta["config"], overrides, platform="none")
        algo = make_algorithm(config)
        shapes = jax.eval_shape(algo.init, jax.random.key(0)).policy
        restored = store.restore_step(step, {"policy": shapes})
    except DamagedError as error:
        print(f"warning: checkpoint {folder} is damaged ({error})", file=sys.stderr)
        return None
    return TrainedPolicy(
        config=config,
        actor=policy_actor(algo.policy),
        params=restored.items["policy"],
        meta=meta,
        source=folder,
    )


def evaluate_policy(
    trained: TrainedPolicy, episodes: int, seed: int, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The summary of `episodes` fresh episodes, with all that says where it comes from.

    Args:
      trained: the policy.
      episodes: how many.
      seed: of the episodes.
      settings: what was changed against the run's own, for the record.
    """
    begun = time.monotonic()
    evaluator = Evaluator(trained.config.env, trained.actor, episodes)
    key = jax.random.fold_in(jax.random.key(EVAL_SEED + 1), seed)
    table = evaluator(trained.params, key)
    return {
        "source": f"{trained.source.parent.name}/{trained.source.name}",
        "settings": settings or {},
        "episodes": episodes,
        "seed": seed,
        "seconds": time.monotonic() - begun,
        "hardware": hardware(),
        "summary": evaluation.summarize(evaluator.statistics, table),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
