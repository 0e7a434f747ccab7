"""The one host loop: a chunk of training, then log, evaluate, save."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import evaluation
from jaxrl.callbacks import Callback
from jaxrl.config import RunConfig
from jaxrl.envs.vector import LARGEST
from jaxrl.errors import Stopped, UserError
from jaxrl.logs import SINKS, Console, CSVSink, Sink, columns
from jaxrl.logs.rows import episode_row, mean_and_std
from jaxrl.population import Population
from jaxrl.rhythm import Rhythm
from jaxrl.run_folder import RunFolder
from jaxrl.runs import EVAL_SEED
from jaxrl.runtime import Evaluator
from jaxrl.signals import SignalGuard


class Trainer:
    """Trains one run, or a population of them, into one folder.

    Args:
      config: the run.
      folder: where it is written.
      resume: go on from the newest whole checkpoint in `folder`.
      callbacks: called while it trains.

    Raises:
      UserError: the folder cannot be written, or the checkpoint does not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
    ):
        self.config = config
        self.callbacks = list(callbacks)
        self.population = Population(config)
        self.algo = self.population.algo
        self.training = self.population.runtime.training(self.population)
        self.folder = RunFolder(Path(folder), config, self.population.members)
        self.console = Console(config.train.total_timesteps, enabled=False)
        self._signal = SignalGuard(self.console.close)
        self._stop_reason: str | None = None
        self._diverged: set[int] = set()
        self._warned_of_range = False
        self._changed: dict[str, list[Any]] = {}  # settings, against those of the checkpoint
        try:
            if resume and self.folder.checkpoints.steps():
                self.state = self.training.resume(self._restore())
            else:  # new, or killed before its first checkpoint: the same seed gives the same bits
                self.progress = self.folder.begin()
                self.state = self.training.init()
        except BaseException:
            self.close()
            raise

    def _restore(self) -> Any:
        """The state of the newest whole checkpoint, and its counters."""
        shapes = jax.eval_shape(self.population.init)
        restored, self.progress, self._changed = self.folder.restore(shapes)
        # Numbers changed on the command line count from here on.
        state = restored.items["train"].replace(
            policy=restored.items["policy"], hyper=self.population.hyperparameters()
        )
        if "replay" in restored.items:
            return state.replace(replay=restored.items["replay"])
        if jax.tree.leaves(shapes.replay):
            print(
                "the checkpoint holds no replay buffer: the policy plays "
                f"{self.algo.refill_steps:,} control steps to refill it "
                "before learning goes on",
                file=sys.stderr,
            )
        return state.replace(replay=jax.jit(lambda: self.population.init().replay)())

    @property
    def finished(self) -> bool:
        """Nothing is left to train."""
        return self.progress.timesteps >= self.config.train.total_timesteps

    def stop(self, reason: str) -> None:
        """Ends training after this chunk, as at its end."""
        self._stop_reason = reason

    def close(self) -> None:
        """Gives the run's folder free for other processes."""
        self.folder.close()

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
        self._signal = SignalGuard(self.console.close)
        with self._signal, contextlib.ExitStack() as stack, self._saving_what_fails():
            stack.callback(self.close)
            stack.callback(self.training.close)
            stack.callback(self.console.close)
            evaluator = self._evaluator()
            sinks, member_sinks = self._sinks(stack)
            self.folder.write_configuration(self.progress, self._changed)
            try:
                self._loop(evaluator, sinks, member_sinks, begun)
            except Stopped as stopped:  # while it waited for a world
                self.state = stopped.state or self.state
            self._save()
            self.folder.checkpoints.wait()
        return 0 if self._signal.number is None else 128 + self._signal.number

    def _loop(
        self,
        evaluator: _Evaluations | None,
        sinks: list[Sink],
        member_sinks: list[Sink],
        begun: float,
    ) -> None:
        progress, rhythm = self.progress, Rhythm(self.config.train.chunk)
        self.training.stopped = lambda: self._signal.number is not None
        while not self.finished and self._signal.number is None and self._stop_reason is None:
            before, started = progress.timesteps, time.monotonic()
            count = rhythm.next(self._iterations_left())
            self.state, output = self.training.run(self.state, count)
            metrics, episodes, finite = jax.device_get(output)
            progress.timesteps += count * self.algo.batch_size
            progress.elapsed = time.monotonic() - begun
            rhythm.took(seconds := time.monotonic() - started)
            self._watch(finite)
            rows = self._rows(metrics, episodes, (progress.timesteps - before) / seconds)
            is_due = self.finished or _crossed(before, progress.timesteps, self.config.eval_every)
            if evaluator:
                evaluator.compile(self.state.policy)  # beside the next chunks
                if is_due:
                    self._evaluate(evaluator, rows)
                    progress.elapsed = time.monotonic() - begun
            self._write(sinks, member_sinks, rows, evaluated=bool(evaluator and is_due))
            if _crossed(before, progress.timesteps, self.config.checkpoint_every):
                self._save()
        if evaluator:
            evaluator.wait()
        if self._signal.number is not None:
            self.console.say("stopped after a whole iteration; saving")
        elif self._stop_reason is not None:
            self.console.say(self._stop_reason)

    def _iterations_left(self) -> int:
        """Iterations up to the next evaluation, checkpoint or the end."""
        steps = self.progress.timesteps
        ends = [self.config.train.total_timesteps]
        for every in (self.config.eval_every, self.config.checkpoint_every):
            if every:
                ends.append((steps // every + 1) * every)
        return math.ceil((min(ends) - steps) / self.algo.batch_size)

    def _watch(self, finite: np.ndarray) -> None:
        """Notes members whose numbers are no longer finite.

        Raises:
          UserError: there is none left.
        """
        steps, train, members = self.progress.timesteps, self.config.train, self.folder.members
        new = set(np.flatnonzero(~finite).tolist()) - self._diverged
        self._diverged |= new
        if len(self._diverged) == len(members):
            what = "training" if len(members) == 1 else "every member"
            raise UserError(
                f"{what} diverged at {steps:,} control steps: lower "
                f"{train.algo}.learning_rate and go on with --resume {self.folder.path}"
            )
        for i in sorted(new):
            self.console.say(
                f"member {members[i].member.name} diverged at {steps:,} control steps; "
                "the others go on"
            )

    # -- evaluation ----------------------------------------------------------------------

    def _evaluator(self) -> _Evaluations | None:
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
        evaluator.stopped = lambda: self._signal.number is not None
        if "success" not in evaluator.statistics:
            used = {"best_by": settings.best_by}
            if settings.stop_at is not None:
                used["stop_metric"] = settings.stop_metric
            for key, metric in used.items():
                if metric == "success_rate":
                    raise UserError(f"eval.{key}: task {self.config.task!r} reports no success")
        return _Evaluations(evaluator)

    def _evaluate(self, evaluator: _Evaluations, rows: list[dict[str, float]]) -> None:
        """Judges the members' policies, adds the numbers to their rows, and keeps each policy
        that is its best so far."""
        evaluator.wait()
        progress, policy = self.progress, self.state.policy
        tables = self.population.split(evaluator(policy, self._evaluation_keys()))
        policies = self.population.split(policy)
        for i, (row, table) in enumerate(zip(rows, tables, strict=True)):
            judged = evaluation.scalars(evaluator.statistics, table)
            row |= judged
            score = judged.get(f"{columns.EVAL}{self.config.train.eval.best_by}", math.nan)
            best = progress.best[i]
            if i not in self._diverged and (best is None or score > best):
                progress.best[i] = score
                self.folder.save_best(i, policies[i], progress, self.algo.policy, judged)

    def _evaluation_keys(self) -> jax.Array:
        """[M] PRNG keys of this evaluation; of a run alone, []."""

        def key(seed):
            key = jax.random.fold_in(jax.random.key(EVAL_SEED), seed)
            for word in _words(self.progress.timesteps):
                key = jax.random.fold_in(key, word)
            return key

        members = self.population.members
        seeds = np.array([member.config.train.seed for member in members], np.uint32)
        return jax.vmap(key)(seeds) if self.config.is_population else key(seeds[0])

    # -- numbers ------------------------------------------------------------------------

    def _rows(self, metrics: dict, episodes: Any, speed: float) -> list[dict[str, float]]:
        """What to log of a chunk, for each member."""
        progress, statistics = self.progress, self.algo.worlds.statistics
        shared = {
            **self.training.counters(),
            columns.SPEED: speed,
            columns.ITERATIONS: progress.timesteps // self.algo.batch_size,
            columns.ELAPSED: progress.elapsed,
            columns.STEPS: progress.timesteps,
        }
        return [
            {name: float(value) for name, value in own.items()}
            | episode_row(statistics, sums)
            | shared
            for own, sums in self.population.split((metrics, episodes))
        ]

    def _write(
        self,
        sinks: list[Sink],
        member_sinks: list[Sink],
        rows: list[dict[str, float]],
        *,
        evaluated: bool,
    ) -> None:
        """Tells callbacks and sinks of the members' rows, and of a population of their mean and
        standard deviation."""
        steps, settings = self.progress.timesteps, self.config.train.eval
        row = rows[0]
        if self.config.is_population:
            row = mean_and_std([own for i, own in enumerate(rows) if i not in self._diverged])
        for callback in self.callbacks:
            callback.on_chunk(self, row)
            if evaluated:
                callback.on_evaluation(self, row)
        for sink, own in zip(member_sinks, rows, strict=False):
            sink.write(steps, own)
        for sink in sinks:
            sink.write(steps, row)
        if row[columns.OUT_OF_RANGE] and not self._warned_of_range:
            self._warned_of_range = True
            self.console.say(
                f"observations or rewards beyond {LARGEST:,.0f} were cut to it, first before "
                f"{steps:,} control steps ({columns.OUT_OF_RANGE} counts them): scale them in the "
                "task, or end episodes that go astray"
            )
        value = row.get(f"{columns.EVAL}{settings.stop_metric}", -math.inf)
        if settings.stop_at is not None and value >= settings.stop_at:
            self.stop(f"{settings.stop_metric} reached {settings.stop_at}")

    def _sinks(self, stack: contextlib.ExitStack) -> tuple[list[Sink], list[Sink]]:
        """Where the run's rows go, and those of a population's members."""
        start, log = self.progress.timesteps, self.config.train.log

        def closing(sink: Sink) -> Sink:
            def close() -> None:
                with contextlib.suppress(OSError):
                    sink.close()

            stack.callback(close)
            return sink

        def csv(folder: Path) -> Sink:
            folder.mkdir(parents=True, exist_ok=True)
            return closing(CSVSink(folder / "progress.csv", resume_step=start))

        member_sinks: list[Sink] = []
        if self.config.is_population:
            member_sinks = [csv(member.path) for member in self.folder.members]
        sinks: list[Sink] = [self.console, csv(self.folder.path)]
        for name in log.all_sinks:
            sinks.append(closing(SINKS[name](self.folder.path, self.config, start)))
        return sinks, member_sinks

    # -- saving -----------------------------------------------------------------------

    def _save(self) -> None:
        self.folder.save(self.state, self.progress, self.algo.policy)
        for callback in self.callbacks:
            callback.on_checkpoint(self, self.folder.checkpoints.folder)

    @contextlib.contextmanager
    def _saving_what_fails(self) -> Iterator[None]:
        """Whatever fails inside, what was saved stays whole, and where it can the rest is saved."""
        folder = self.folder
        try:
            yield
        except (UserError, OSError) as error:
            with contextlib.suppress(UserError):
                folder.checkpoints.wait()  # let a save that is under way finish
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot write to {folder.path}: {error.strerror or error} (checkpoints saved "
                "before are untouched; free space or mend the folder, then --resume)"
            ) from error
        except BaseException as error:
            self._save_in_emergency(error)
            raise

    def _save_in_emergency(self, error: BaseException) -> None:
        if any(x.is_deleted() for x in jax.tree.leaves(self.state)):
            saved = self.folder.checkpoints.steps()
            last = f"the newest checkpoint is {saved[-1]}" if saved else "there is none yet"
            print(f"the state was lost inside a compiled chunk; {last}", file=sys.stderr)
            return
        try:
            self.folder.save(self.state, self.progress, self.algo.policy)
            self.folder.checkpoints.wait()
            print(
                f"saved an emergency checkpoint after {type(error).__name__}; go on with "
                f"--resume {self.folder.path}",
                file=sys.stderr,
            )
        except UserError as failed:
            print(f"no emergency checkpoint: {failed}", file=sys.stderr)


class _Evaluations:
    """An evaluator that is compiled in a thread, ahead of its first use."""

    def __init__(self, evaluator: Evaluator):
        self._evaluator = evaluator
        self._compiling: threading.Thread | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        return self._evaluator.statistics

    def compile(self, params: Any) -> None:
        """Starts compiling, once."""
        if self._compiling is None:
            shapes = jax.eval_shape(lambda x: x, params)
            self._compiling = threading.Thread(target=self._evaluator.compile, args=(shapes,))
            self._compiling.start()

    def wait(self) -> None:
        """Waits until it is compiled."""
        if self._compiling:
            self._compiling.join()

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        return self._evaluator(params, key)


def _words(number: int) -> list[int]:
    """A number's 32-bit words from the lowest on; zero has one."""
    words = [number & 0xFFFFFFFF]
    return words if number < 2**32 else [*words, *_words(number >> 32)]


def _crossed(before: int, now: int, every: int) -> bool:
    """A multiple of `every` lies in (before, now]."""
    return bool(every) and now // every > before // every
