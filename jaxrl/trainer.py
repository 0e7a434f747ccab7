"""The one host loop: a compiled chunk, then log, evaluate, checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from jaxrl import evaluation, files, history
from jaxrl.checkpoint import Checkpointer
from jaxrl.config import RunConfig, write_yaml
from jaxrl.envs.vector import LARGEST
from jaxrl.errors import Stopped, UserError
from jaxrl.logs import Console, CSVSink, Sink, TensorBoardSink, WandbSink
from jaxrl.population import Member, Population, mean_and_std
from jaxrl.runs import EVAL_SEED, MEMBERS, hardware, spaces
from jaxrl.runtime import Evaluator

RHYTHM = 2.0  # seconds of a chunk of iterations, after which the host hears of it
FOLDERS = ("checkpoints", "best", "eval", "tensorboard", "videos", "damaged", "earlier", MEMBERS)
FILES = ("config.yaml", "progress.csv", history.HISTORY)


@dataclasses.dataclass
class Progress:
    """Host-side counters; saved with each checkpoint.

    Attributes:
      timesteps: control steps of each member.
      elapsed: seconds.
      best: score of each member's best model.
    """

    timesteps: int = 0
    elapsed: float = 0.0
    best: list[float | None] = dataclasses.field(default_factory=list)


class _Folder:
    """Where a member's own things lie: RUN itself, or RUN/members/<name>."""

    def __init__(self, run: Path, member: Member):
        self.member = member
        self.path = run / MEMBERS / member.name if member.name else run
        self.best = Checkpointer(self.path / "best", keep=1)


class Trainer:
    """Trains one run, or a population of them, into one folder.

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
        self.population = Population(config)
        self.algo = self.population.algo
        self.training = self.population.runtime.training(self.population)
        self._lock = self._prepare_folder()
        try:
            self._load(resume)
        except BaseException:
            self.close()
            raise

    def _load(self, resume: bool) -> None:
        """Starts anew, or from the newest whole checkpoint."""
        train = self.config.train
        self.checkpoints = Checkpointer(self.folder / "checkpoints", keep=train.checkpoint.keep)
        self.folders = [_Folder(self.folder, member) for member in self.population.members]
        self.progress = Progress(best=[None] * len(self.folders))
        self.console = Console(train.total_timesteps, enabled=False)
        self._stop_signal: int | None = None
        self._diverged: set[int] = set()
        self._told_of_range = False
        self._own_sinks: list[Sink] = []  # of a population's members
        self._changed: dict[str, list[Any]] = {}  # settings, against those of the checkpoint
        if resume and self.checkpoints.steps():
            state = self._restore(jax.eval_shape(self.population.init))
            self.state = self.training.resume(state)
        else:  # new, or killed before its first checkpoint: the same seed gives the same bits
            for folder in self.folders:
                folder.best.discard_after(-1)
            self.state = self.training.init()

    @property
    def finished(self) -> bool:
        """Nothing is left to train."""
        return self.progress.timesteps >= self.config.train.total_timesteps

    def close(self) -> None:
        """Gives the run's folder free for other processes."""
        if self._lock:
            self._lock.close()

    def _prepare_folder(self) -> IO[str] | None:
        """Makes the run's folder, and claims it for this process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"out: cannot write to {self.folder}: {error.strerror} (choose another with --out)"
            ) from error
        for names, kind, fits in ((FOLDERS, "folder", Path.is_dir), (FILES, "file", Path.is_file)):
            for path in (self.folder / name for name in names):
                if path.exists() and not fits(path):
                    raise UserError(f"{path}: a {kind} belongs here; move what is there away")
        return files.lock(self.folder)

    def _restore(self, shapes: Any) -> Any:
        expected = self._split(shapes)
        restored = self.checkpoints.restore(
            expected, optional=("replay",), warn=lambda text: print(text, file=sys.stderr)
        )
        self.progress = Progress(**restored.meta["progress"])
        self._changed = history.differences(restored.meta["config"], self.config.to_dict())
        if self.finished and self._changed:
            raise UserError(
                f"--resume {self.folder}: its {self.progress.timesteps:,} control steps have been "
                f"trained, so another {next(iter(self._changed))} would change nothing; give a "
                "larger --total_timesteps too"
            )
        self.checkpoints.discard_after(restored.step)
        self._begin_new_record(restored.step)
        for i, folder in enumerate(self.folders):
            folder.best.discard_after(restored.step)
            if not folder.best.steps():
                self.progress.best[i] = None
        self._tell_of_schedule()
        saved_with = restored.meta["hardware"]["jax"]
        if saved_with != jax.__version__:
            print(
                f"warning: saved with jax {saved_with}, going on with {jax.__version__}: "
                "right, but not bit for bit",
                file=sys.stderr,
            )
        # Numbers changed on the command line count from here on.
        state = restored.items["train"].replace(
            policy=restored.items["policy"], hyper=self.population.hyperparameters()
        )
        if "replay" in restored.items:
            return state.replace(replay=restored.items["replay"])
        if jax.tree.leaves(shapes.replay):
            print(
                "the checkpoint holds no replay buffer: the policy plays "
                f"{self.algo.start_rows * self.algo.num_envs:,} control steps to refill it "
                "before learning goes on",
                file=sys.stderr,
            )
        return state.replace(replay=jax.jit(lambda: self.population.init().replay)())

    def _begin_new_record(self, step: int) -> None:
        """Lets the best model of another task be, since its score says nothing of this one."""
        kinds = ("env.", "eval_overrides.", "eval.best_by")
        changed = [key for key in self._changed if key.startswith(kinds)]
        if not changed:
            return
        for i, folder in enumerate(self.folders):
            folder.best.discard_after(-1, folder.path / "earlier" / "best")
            self.progress.best[i] = None
        old, new = self._changed[changed[0]]
        kept = self.folders[0].path / "earlier" / "best"
        more = f" (and {len(changed) - 1} more settings)" if len(changed) > 1 else ""
        print(
            f"{changed[0]} is {new} and no longer {old}{more}: a new record of the best model "
            f"begins at {step:,} control steps; the one before lies in {kept}",
            file=sys.stderr,
        )

    def _tell_of_schedule(self) -> None:
        train = self.config.train
        if "total_timesteps" in self._changed and (train.settings.schedule.kind != "constant"):
            print(
                f"{train.algo}.schedule now goes over {train.total_timesteps:,} control steps: the "
                "rest is not what a run of that length from the start would have done",
                file=sys.stderr,
            )

    # -- the loop ---------------------------------------------------------------------

    def run(self) -> int:
        """Trains to the end; returns the exit status (0, or 128 + a signal's number).

        SIGINT and SIGTERM end the running chunk, save and return; a second one kills. Any
        other exception saves first, where the state is still there.
        """
        train = self.config.train
        begun = time.monotonic() - self.progress.elapsed
        self.console = Console(
            train.total_timesteps,
            start=self.progress.timesteps,
            enabled=train.log.console,
            table=train.log.table,
        )
        sinks: list[Sink] = []
        with _SignalGuard(self._on_signal):
            try:
                evaluator = self._evaluator()
                sinks = self._sinks(evaluator)
                self._begin()
                try:
                    self._loop(evaluator, sinks, begun)
                except Stopped as stopped:  # while it waited for a world
                    self.state = stopped.state or self.state
                self._save()
                self.checkpoints.wait()
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
                self.training.close()
                for sink in [*sinks, *self._own_sinks]:
                    with contextlib.suppress(OSError):
                        sink.close()
                self.close()
        return 0 if self._stop_signal is None else 128 + self._stop_signal

    def _begin(self) -> None:
        """Writes what will be trained with."""
        write_yaml(self.config, self.folder / "config.yaml")
        for folder in self.folders:
            write_yaml(folder.member.config, folder.path / "config.yaml")
        history.record(self.folder, self.progress.timesteps, self._changed)

    def _loop(self, evaluator: Evaluator | None, sinks: list[Sink], begun: float) -> None:
        train, progress = self.config.train, self.progress
        eval_every, save_every = self.config.eval_every, self.config.checkpoint_every
        for part in (self.training, evaluator):
            if part:
                part.stopped = lambda: self._stop_signal is not None
        rhythm = _Rhythm(train.chunk)
        compiling = None
        while not self.finished and self._stop_signal is None:
            most = min(train.total_timesteps, self._next(eval_every), self._next(save_every))
            left = math.ceil((most - progress.timesteps) / self.algo.batch_size)
            started, before, count = time.monotonic(), progress.timesteps, rhythm.next(left)
            self.state, output = self.training.run(self.state, count)
            metrics, episodes, finite = jax.device_get(output)
            progress.timesteps += count * self.algo.batch_size
            progress.elapsed = time.monotonic() - begun
            seconds = time.monotonic() - started
            rhythm.took(seconds)
            self._watch(finite)
            rows = self._rows(metrics, episodes, (progress.timesteps - before) / seconds)
            if evaluator and compiling is None:  # beside the next chunks
                shapes = jax.eval_shape(lambda x: x, self.state.policy)
                compiling = threading.Thread(target=evaluator.compile, args=(shapes,))
                compiling.start()
            if evaluator and (self.finished or _crossed(before, progress.timesteps, eval_every)):
                compiling.join()
                for own, judged in zip(rows, self._evaluate(evaluator), strict=True):
                    own |= judged
                progress.elapsed = time.monotonic() - begun
            row = self._write(sinks, rows)
            if _crossed(before, progress.timesteps, save_every):
                self._save()
            if self._reached(row):
                self.console.say(f"{train.eval.stop_metric} reached {train.eval.stop_at}")
                break
        if compiling:
            compiling.join()
        if self._stop_signal is not None:
            self.console.say("stopped after a whole iteration; saving")

    def _next(self, every: int) -> float:
        """The next multiple of `every` control steps; of 0 there is none."""
        return math.inf if not every else (self.progress.timesteps // every + 1) * every

    def _evaluator(self) -> Evaluator | None:
        settings = self.config.train.eval
        if not self.config.eval_every:
            if settings.stop_at is not None:
                raise UserError("eval.stop_at: needs evaluations, but eval.every is 0")
            if self.config.is_population:
                raise UserError(
                    "eval.every: got 0, must be above 0 for several runs at once (each member "
                    "keeps its best model)"
                )
            return None
        evaluator = self.population.evaluator(self.config)
        if "success" not in evaluator.statistics:
            for key in ("best_by", "stop_metric"):
                used = key == "best_by" or settings.stop_at is not None
                if used and vars(settings)[key] == "success_rate":
                    raise UserError(f"eval.{key}: task {self.config.task!r} reports no success")
        return evaluator

    def _watch(self, finite: np.ndarray) -> None:
        """Notes members whose numbers are no longer finite.

        Raises:
          UserError: there is none left.
        """
        steps, train = self.progress.timesteps, self.config.train
        new = set(np.flatnonzero(~finite)) - self._diverged
        self._diverged |= new
        if len(self._diverged) == len(self.folders):
            what = "training" if len(self.folders) == 1 else "every member"
            raise UserError(
                f"{what} diverged at {steps:,} control steps: lower "
                f"{train.algo}.learning_rate and go on with --resume {self.folder}"
            )
        for i in sorted(new):
            self.console.say(
                f"member {self.folders[i].member.name} diverged at {steps:,} control steps; "
                "the others go on"
            )

    def _evaluate(self, evaluator: Evaluator) -> list[dict[str, float]]:
        """Judges the members' policies; keeps each that is its best so far."""
        train = self.config.train
        steps, policy = self.progress.timesteps, self.state.policy

        def key(seed):
            key = jax.random.fold_in(jax.random.key(EVAL_SEED), seed)
            for word in _words(steps):
                key = jax.random.fold_in(key, word)
            return key

        seeds = np.array([f.member.config.train.seed for f in self.folders], np.uint32)
        keys = jax.vmap(key)(seeds) if self.config.is_population else key(seeds[0])
        tables = self.population.split(evaluator(policy, keys))
        rows = [evaluation.scalars(evaluator.statistics, table) for table in tables]
        policies = self.population.split(policy)
        for i, (folder, row) in enumerate(zip(self.folders, rows, strict=True)):
            score, best = row.get(f"eval/{train.eval.best_by}", math.nan), self.progress.best[i]
            if i not in self._diverged and (best is None or score > best):
                self.progress.best[i] = score
                own = {"policy": policies[i]}
                folder.best.save(steps, own, self._meta(folder.member.config) | {"eval": row})
        return rows

    def _write(self, sinks: list[Sink], rows: list[dict[str, float]]) -> dict[str, float]:
        """Sends the members' rows, and of a population the mean and spread; returns that."""
        steps = self.progress.timesteps
        if not self.config.is_population:
            row = rows[0]
        else:
            row = mean_and_std([own for i, own in enumerate(rows) if i not in self._diverged])
            for sink, own in zip(self._own_sinks, rows, strict=True):
                sink.write(steps, own)
        for sink in sinks:
            sink.write(steps, row)
        if row["rollout/out_of_range"] and not self._told_of_range:
            self._told_of_range = True
            self.console.say(
                f"observations or rewards beyond {LARGEST:,.0f} were cut to it, first before "
                f"{steps:,} control steps (rollout/out_of_range counts them): scale them in the "
                "task, or end episodes that go astray"
            )
        return row

    def _reached(self, row: dict[str, float]) -> bool:
        settings = self.config.train.eval
        value = row.get(f"eval/{settings.stop_metric}", -math.inf)
        return settings.stop_at is not None and value >= settings.stop_at

    def _rows(self, metrics: dict, episodes: Any, fps: float) -> list[dict[str, float]]:
        """What to log of a chunk, for each member."""
        return [self._row(*own, fps) for own in self.population.split((metrics, episodes))]

    def _row(self, metrics: dict, episodes: Any, fps: float) -> dict[str, float]:
        row = {name: float(value) for name, value in metrics.items()}
        count = int(episodes.count)
        means = episodes.sums / count if count else np.full(episodes.sums.shape, np.nan)
        names = {
            "return": "rollout/ep_rew_mean",
            "length": "rollout/ep_len_mean",
            "success": "rollout/success_rate",
        }
        for name, mean in zip(self.algo.worlds.statistics, means, strict=True):
            row[names.get(name, f"rollout/{name}")] = float(mean)
        return row | {
            "rollout/episodes": count,
            "rollout/nan_resets": int(episodes.nonfinite),
            "rollout/out_of_range": int(episodes.out_of_range),
            **self.training.counters(),
            "time/fps": fps,
            "time/iterations": self.progress.timesteps // self.algo.batch_size,
            "time/time_elapsed": self.progress.elapsed,
            "time/total_timesteps": self.progress.timesteps,
        }

    def _sinks(self, evaluator: Evaluator | None) -> list[Sink]:
        start, log = self.progress.timesteps, self.config.train.log
        later: list[str] = []
        if evaluator:
            width = len(evaluator.statistics)
            later = list(evaluation.scalars(evaluator.statistics, np.zeros((1, width))))

        def csv(folder: Path, later: list[str]) -> CSVSink:
            folder.mkdir(parents=True, exist_ok=True)
            return CSVSink(folder / "progress.csv", later, resume_step=start)

        if self.config.is_population:
            self._own_sinks = [csv(folder.path, later) for folder in self.folders]
            later = list(mean_and_std([dict.fromkeys(later, 0.0)]))
        sinks: list[Sink] = [self.console, csv(self.folder, later)]
        if log.tensorboard:
            sinks.append(TensorBoardSink(self.folder / "tensorboard", resume_step=start))
        if log.wandb:
            sinks.append(WandbSink(self.folder, self.folder.name, self.config.to_dict()))
        return sinks

    def best_folder(self) -> Path:
        """The folder of the run, or of the population's best member."""
        scores = [-math.inf if x is None else x for x in self.progress.best]
        return self.folders[int(np.argmax(scores))].path

    # -- saving -----------------------------------------------------------------------

    def _meta(self, config: RunConfig) -> dict[str, Any]:
        return {
            "config": config.to_dict(),
            "progress": dataclasses.asdict(self.progress),
            "hardware": hardware(),
            "spaces": spaces(self.algo.policy),
        }

    def _split(self, state: Any) -> dict[str, Any]:
        """A training state as checkpoint items: the policy apart, so that it loads alone,
        and the replay, which may be left out."""
        items = {"policy": state.policy, "train": state.replace(policy=None, replay=None)}
        if self.config.train.checkpoint.replay and jax.tree.leaves(state.replay):
            items["replay"] = state.replay
        return items

    def _save(self) -> None:
        for folder in self.folders:
            folder.best.wait()  # a checkpoint never claims a best model that is not on disk
        self.checkpoints.save(
            self.progress.timesteps, self._split(self.state), self._meta(self.config)
        )

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


class _Rhythm:
    """How many iterations the next chunk has: after the first, which is compiled, and one that
    is timed, as many as take `RHYTHM` seconds.

    Args:
      fixed: so many each time.
    """

    def __init__(self, fixed: int | None):
        self._fixed, self._count, self._chunks = fixed, 1, 0

    def next(self, most: int) -> int:
        """Iterations of the next chunk, `most` at the most."""
        self._count = min(self._fixed or self._count, most)
        return self._count

    def took(self, seconds: float) -> None:
        """How long they took."""
        self._chunks += 1
        if self._chunks > 1:
            wanted = RHYTHM / max(seconds, 1e-6) * self._count
            self._count = max(1, min(round(wanted), 8 * self._count))


def _words(number: int) -> list[int]:
    """A number's 32-bit words from the lowest on; zero has one."""
    words = [number & 0xFFFFFFFF]
    return words if number < 2**32 else [*words, *_words(number >> 32)]


def _crossed(before: int, now: int, every: int) -> bool:
    """A multiple of `every` lies in (before, now]."""
    return bool(every) and now // every > before // every
