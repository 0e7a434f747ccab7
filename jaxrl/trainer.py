"""The training loop on the host: train a chunk, then log, evaluate and save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import evaluation, hosts, transfer
from jaxrl.callbacks import Callback
from jaxrl.config import RunConfig
from jaxrl.envs.vector import LARGEST
from jaxrl.errors import Stopped, UserError
from jaxrl.logs import SINKS, Console, CSVSink, Sink, columns
from jaxrl.logs.rows import episode_row, mean_and_std
from jaxrl.population import Population
from jaxrl.rhythm import Rhythm
from jaxrl.run_folder import Elsewhere, Progress, RunFolder
from jaxrl.runs import EVAL_SEED
from jaxrl.runtime import Evaluator
from jaxrl.signals import SignalGuard


class Trainer:
    """Trains a single run, or a population of runs, and writes the results to one folder.

    Args:
      config: configuration of the run.
      folder: folder that the run is written to.
      resume: continue from the newest intact checkpoint in `folder`, if there is a checkpoint.
      callbacks: called during training.

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
        folder_class = RunFolder if hosts.is_first() else Elsewhere
        self.folder = folder_class(Path(folder), config, self.population.members)
        self.console = Console(config.train.total_timesteps, enabled=False)
        self._signal = SignalGuard(self.console.close)
        self._stop_reason: str | None = None
        self._diverged: set[int] = set()
        self._warned_of_range = False
        self._changed: dict[str, list[Any]] = {}  # settings that differ from the checkpoint's
        try:
            if hosts.share_json(bool(resume and self.folder.checkpoints.steps())):
                self.state = self.training.resume(self._restore())
            else:  # new, or killed before its first checkpoint: a restart gives the same bits
                self.progress = self.folder.begin()
                self.state = self._begin(self.training.init())
        except BaseException:
            self.close()
            raise

    def _begin(self, state: Any) -> Any:
        """The training state at the start of a run, with the networks of `init_from`."""
        source, config = self.config.train.init_from, self.config
        if source is None:
            return state
        state, summary = transfer.start_from(
            source, self.algo, state, config.train.init_parts, members=config.is_population
        )
        if hosts.is_first():
            print(summary, file=sys.stderr)
        return state

    def _restore(self) -> Any:
        """The training state of the newest intact checkpoint; also restores the counters."""
        shapes = jax.eval_shape(self.population.init)
        facts, items = None, {}
        if hosts.is_first():
            restored, progress, changed = self.folder.restore(shapes)
            items = restored.items
            facts = [dataclasses.asdict(progress), changed, list(items)]
        progress, self._changed, names = hosts.share_json(facts)
        self.progress = Progress(**progress)
        blank = {name: tree for name, tree in self.folder.items(shapes).items() if name in names}
        items = hosts.share(items or jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank))
        # Traced settings that were changed on the command line take effect from here on.
        state = items["train"].replace(policy=items["policy"])
        if not self.population.evolution:
            state = state.replace(hyper=self.population.hyperparameters())
        if "replay" in items:
            return state.replace(replay=items["replay"])
        if jax.tree.leaves(shapes.replay):
            print(
                "the checkpoint holds no replay buffer: the policy plays "
                f"{self.algo.refill_steps:,} control steps to refill it "
                "before learning continues",
                file=sys.stderr,
            )
        return state.replace(replay=jax.jit(lambda: self.population.init().replay)())

    @property
    def finished(self) -> bool:
        """Whether all control steps have been trained."""
        return self.progress.timesteps >= self.config.train.total_timesteps

    def stop(self, reason: str) -> None:
        """Ends training after the current chunk, prints the reason, and saves everything."""
        self._stop_reason = reason

    def close(self) -> None:
        """Releases the run's folder, so that other processes can use it."""
        self.folder.close()

    # -- the loop ---------------------------------------------------------------------

    def run(self) -> int:
        """Trains to the end; returns the exit status (0, or 128 + a signal's number).

        SIGINT or SIGTERM ends training after the current chunk, and the state is saved; a second
        signal ends the process. After an unexpected exception the state is saved if it still
        exists.
        """
        train = self.config.train
        start_time = time.monotonic() - self.progress.elapsed
        self.console = Console(
            train.total_timesteps,
            start=self.progress.timesteps,
            enabled=train.log.console and hosts.is_first(),
            table=train.log.table,
        )
        self._signal = SignalGuard(self.console.close)
        with self._signal, contextlib.ExitStack() as stack, self._saving_on_error():
            stack.callback(self.close)
            stack.callback(self.training.close)
            stack.callback(self.console.close)
            evaluator = self._evaluator()
            sinks, member_sinks = self._sinks(stack)
            self.folder.write_configuration(self.progress, self._changed)
            if train.init_from is not None and self.progress.timesteps == 0:
                self._save()  # so that a run that is killed does not read the other one again
            try:
                self._loop(evaluator, sinks, member_sinks, start_time)
            except Stopped as stopped:  # by the user, during a wait for a world
                self.state = stopped.state or self.state
            self._save()
            self.folder.checkpoints.wait()
        return 0 if self._signal.number is None else 128 + self._signal.number

    def _loop(
        self,
        evaluator: _Evaluations | None,
        sinks: list[Sink],
        member_sinks: list[Sink],
        start_time: float,
    ) -> None:
        progress, rhythm = self.progress, Rhythm(self.config.train.chunk)
        self.training.stopped = lambda: self._signal.number is not None
        while not self.finished and not self._stops():
            before, started = progress.timesteps, time.monotonic()
            count = hosts.share_json(rhythm.next(self._iterations_left()))
            self.state, output = self.training.run(self.state, count)
            metrics, episodes, finite = jax.device_get(output)
            progress.timesteps += count * self.algo.batch_size
            progress.elapsed = time.monotonic() - start_time
            rhythm.took(seconds := time.monotonic() - started)
            self._watch(finite)
            rows = self._rows(metrics, episodes, (progress.timesteps - before) / seconds)
            is_due = self.finished or _crossed(before, progress.timesteps, self.config.eval_every)
            if evaluator:
                if hosts.is_first():
                    evaluator.compile(self.state.policy)  # in a thread, while training goes on
                if is_due:
                    self._evaluate(evaluator, rows)
                    progress.elapsed = time.monotonic() - start_time
            self._write(sinks, member_sinks, rows, evaluated=bool(evaluator and is_due))
            if _crossed(before, progress.timesteps, self.config.checkpoint_every):
                self._save()
        if evaluator:
            evaluator.wait()
        if self._signal.number is not None:
            self.console.print("stopped after a complete iteration; saving the training state")
        elif self._stop_reason is not None:
            self.console.print(self._stop_reason)

    def _stops(self) -> bool:
        """Whether a signal or a reason ends training, in this or another process."""
        number, stop = hosts.largest([self._signal.number or 0, int(self._stop_reason is not None)])
        if number:  # never reset: a signal can arrive at any moment
            self._signal.number = number
        if stop and self._stop_reason is None:
            self._stop_reason = "another process ends training"
        return bool(number or stop)

    def _iterations_left(self) -> int:
        """Iterations until the next evaluation, the next checkpoint or the end."""
        steps = self.progress.timesteps
        ends = [self.config.train.total_timesteps]
        for every in (self.config.eval_every, self.config.checkpoint_every):
            if every:
                ends.append((steps // every + 1) * every)
        return math.ceil((min(ends) - steps) / self.algo.batch_size)

    def _watch(self, finite: np.ndarray) -> None:
        """Records the members that diverged, which means that some number is not finite.

        Raises:
          UserError: all members diverged.
        """
        steps, train, members = self.progress.timesteps, self.config.train, self.folder.members
        new = set(np.flatnonzero(~finite).tolist()) - self._diverged
        self._diverged |= new
        if len(self._diverged) == len(members):
            subject = "training" if len(members) == 1 else "every member"
            raise UserError(
                f"{subject} diverged at {steps:,} control steps: lower "
                f"{train.algo}.learning_rate and continue with --resume {self.folder.path}"
            )
        for i in sorted(new):
            self.console.print(
                f"member {members[i].member.name} diverged at {steps:,} control steps; "
                "the others continue"
            )

    # -- evaluation ----------------------------------------------------------------------

    def _evaluator(self) -> _Evaluations | None:
        settings = self.config.train.eval
        if not self.config.eval_every:
            if settings.stop_at is not None:
                raise UserError("eval.stop_at: needs evaluations, but eval.every is 0")
            if self.config.is_population:
                raise UserError(
                    "eval.every: got 0, must be above 0 for several runs at once (evaluations "
                    "choose the best model of each member)"
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
                    raise UserError(
                        f"eval.{key}: got 'success_rate', but the task {self.config.task!r} has no "
                        "metric 'success'; use mean_reward"
                    )
        return _Evaluations(evaluator)

    def _evaluate(self, evaluator: _Evaluations, rows: list[dict[str, float]]) -> None:
        """Evaluates the members' policies, adds the results to their rows, and saves each policy
        that is the best one of its member so far."""
        evaluator.wait()
        progress, policy = self.progress, self.state.policy
        tables = self.population.split(self._table(evaluator, policy))
        metric = f"{columns.EVAL}{self.config.train.eval.best_by}"
        policies = self.population.split(policy)
        for i, (row, table) in enumerate(zip(rows, tables, strict=True)):
            results = evaluation.scalars(evaluator.statistics, table)
            row |= results
            score = results.get(metric, math.nan)
            best = progress.best[i]
            if i not in self._diverged and (best is None or score > best):
                progress.best[i] = score
                self.folder.save_best(i, policies[i], progress, self.algo.policy, results)
        if self.population.evolution and not self.finished:
            self._evolve([row.get(metric, math.nan) for row in rows])

    def _evolve(self, scores: list[float]) -> None:
        """Lets the worst members continue from the best ones."""
        evolution, members = self.population.evolution, self.folder.members
        scores = [math.nan if i in self._diverged else score for i, score in enumerate(scores)]
        seed = [self.config.train.seed, self.progress.timesteps]
        self.state, moved = evolution.step(self.state, scores, seed)  # type: ignore[union-attr]
        self.state = self.population.spread(self.state)
        self._diverged -= moved.keys()
        name = lambda i: members[i].member.name  # noqa: E731
        text = ", ".join(f"{name(i)} continues from {name(source)}" for i, source in moved.items())
        self.console.print(f"at {self.progress.timesteps:,} control steps {text}")

    def _table(self, evaluator: _Evaluations, policy: Any) -> np.ndarray:
        """The results of an evaluation, which the first process plays."""
        if hosts.is_first():
            return hosts.share(evaluator(policy, self._evaluation_keys()))
        members = [len(self.population)] if self.config.is_population else []
        shape = (*members, self.config.train.eval.episodes, len(evaluator.statistics))
        return hosts.share(np.zeros(shape, np.float32))

    def _evaluation_keys(self) -> jax.Array:
        """PRNG keys of this evaluation: [M] for a population, [] for a single run."""

        def key(seed):
            key = jax.random.fold_in(jax.random.key(EVAL_SEED), seed)
            for word in _words(self.progress.timesteps):
                key = jax.random.fold_in(key, word)
            return key

        members = self.population.members
        seeds = np.array([member.config.train.seed for member in members], np.uint32)
        return jax.vmap(key)(seeds) if self.config.is_population else key(seeds[0])

    # -- logging ------------------------------------------------------------------------

    def _rows(self, metrics: dict, episodes: Any, speed: float) -> list[dict[str, float]]:
        """The numbers that are logged after a chunk: one row for each member."""
        progress, statistics = self.progress, self.algo.worlds.statistics
        shared = {
            **self.training.counters(),
            columns.SPEED: speed,
            columns.ITERATIONS: progress.timesteps // self.algo.batch_size,
            columns.ELAPSED: progress.elapsed,
            columns.STEPS: progress.timesteps,
        }
        evolving = self.population.evolution.limits if self.population.evolution else ()
        values = jax.device_get({f"hyper/{name}": self.state.hyper[name] for name in evolving})
        return [
            {name: float(value) for name, value in member_metrics.items()}
            | {name: float(each[i]) for name, each in values.items()}
            | episode_row(statistics, sums)
            | shared
            for i, (member_metrics, sums) in enumerate(self.population.split((metrics, episodes)))
        ]

    def _write(
        self,
        sinks: list[Sink],
        member_sinks: list[Sink],
        rows: list[dict[str, float]],
        *,
        evaluated: bool,
    ) -> None:
        """Passes the row of the run to callbacks and sinks, and the members' rows to their sinks.

        The row of a population has means and standard deviations over its members, without those
        that diverged.
        """
        steps, settings = self.progress.timesteps, self.config.train.eval
        row = rows[0]
        if self.config.is_population:
            row = mean_and_std(
                [member_row for i, member_row in enumerate(rows) if i not in self._diverged]
            )
        for callback in self.callbacks:
            callback.on_chunk(self, row)
            if evaluated:
                callback.on_evaluation(self, row)
        for sink, member_row in zip(member_sinks, rows, strict=False):
            sink.write(steps, member_row)
        for sink in sinks:
            sink.write(steps, row)
        if row[columns.OUT_OF_RANGE] and not self._warned_of_range:
            self._warned_of_range = True
            self.console.print(
                f"observations or rewards beyond {LARGEST:,.0f} were clipped to this limit, first "
                f"before {steps:,} control steps ({columns.OUT_OF_RANGE} counts such "
                "steps): scale them in the task, or terminate the episode before they grow so large"
            )
        value = row.get(f"{columns.EVAL}{settings.stop_metric}", -math.inf)
        if settings.stop_at is not None and value >= settings.stop_at:
            self.stop(f"{settings.stop_metric} reached {settings.stop_at}")

    def _sinks(self, stack: contextlib.ExitStack) -> tuple[list[Sink], list[Sink]]:
        """The sinks of the run, and for a population one sink for each member."""
        start, log = self.progress.timesteps, self.config.train.log
        if not hosts.is_first():
            return [], []

        def close_at_end(sink: Sink) -> Sink:
            def close() -> None:
                with contextlib.suppress(OSError):
                    sink.close()

            stack.callback(close)
            return sink

        def csv(folder: Path) -> Sink:
            folder.mkdir(parents=True, exist_ok=True)
            return close_at_end(CSVSink(folder / "progress.csv", resume_step=start))

        member_sinks: list[Sink] = []
        if self.config.is_population:
            member_sinks = [csv(member.path) for member in self.folder.members]
        sinks: list[Sink] = [self.console, csv(self.folder.path)]
        for name in log.all_sinks:
            sinks.append(close_at_end(SINKS[name](self.folder.path, self.config, start)))
        return sinks, member_sinks

    # -- saving -----------------------------------------------------------------------

    def _save(self) -> None:
        self.folder.save(hosts.gathered(self.state), self.progress, self.algo.policy)
        for callback in self.callbacks:
            callback.on_checkpoint(self, self.folder.checkpoints.folder)

    @contextlib.contextmanager
    def _saving_on_error(self) -> Iterator[None]:
        """Context manager: after an error, completes a save that is under way; after an unexpected
        error, saves the training state if it still exists."""
        folder = self.folder
        try:
            yield
        except (UserError, OSError) as error:
            with contextlib.suppress(UserError):
                folder.checkpoints.wait()  # completes a save that is under way
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot write to {folder.path}: {error.strerror or error} (earlier "
                "checkpoints are intact; free disk space or repair the folder, then use --resume)"
            ) from error
        except BaseException as error:
            if hosts.count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                time.sleep(5)  # the watch, which knows for certain, ends this process
                raise UserError(
                    f"another process of the run has ended ({str(error).splitlines()[0][:160]}); "
                    f"continue from the newest checkpoint with --resume {folder.path}"
                ) from error
            self._save_in_emergency(error)
            raise

    def _save_in_emergency(self, error: BaseException) -> None:
        """Saves the training state after an unexpected error, if it still exists."""
        if any(x.is_deleted() for x in jax.tree.leaves(self.state)):
            saved = self.folder.checkpoints.steps()
            newest = f"the newest checkpoint is {saved[-1]}" if saved else "there is no checkpoint"
            print(f"the training state of the current chunk is lost; {newest}", file=sys.stderr)
            return
        try:
            self.folder.save(self.state, self.progress, self.algo.policy)
            self.folder.checkpoints.wait()
            print(
                f"saved an emergency checkpoint after {type(error).__name__}; continue with "
                f"--resume {self.folder.path}",
                file=sys.stderr,
            )
        except UserError as failed:
            print(f"could not save an emergency checkpoint: {failed}", file=sys.stderr)


class _Evaluations:
    """An evaluator that is compiled in a thread before its first use."""

    def __init__(self, evaluator: Evaluator):
        self._evaluator = evaluator
        self._compiling: threading.Thread | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        return self._evaluator.statistics

    def compile(self, params: Any) -> None:
        """Starts the compilation at the first call; later calls do nothing."""
        if self._compiling is None:
            shapes = jax.eval_shape(lambda x: x, params)
            self._compiling = threading.Thread(target=self._evaluator.compile, args=(shapes,))
            self._compiling.start()

    def wait(self) -> None:
        """Waits until the compilation has ended."""
        if self._compiling:
            self._compiling.join()

    def __call__(self, params: Any, key: jax.Array) -> np.ndarray:
        return self._evaluator(params, key)


def _words(number: int) -> list[int]:
    """The 32-bit words of a number, the lowest first; [0] for zero."""
    words = [number & 0xFFFFFFFF]
    return words if number < 2**32 else [*words, *_words(number >> 32)]


def _crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; False if `every` is 0."""
    return bool(every) and now // every > before // every
