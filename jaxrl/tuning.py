"""Tuning: a study of many runs with different settings, by Optuna.

A study has one folder. Its journal (study.journal) is appended to by all workers, and each trial is
an ordinary run in trials/<number>/run. A trial whose worker was killed is continued by the next
worker that looks for work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxrl import files, strict_yaml, training
from jaxrl.callbacks import Callback
from jaxrl.config import MAX_MEMBERS, RunConfig, read_yaml
from jaxrl.errors import UserError, tell
from jaxrl.evaluation import METRICS, statistic
from jaxrl.logs import columns, readable
from jaxrl.options import build, flatten, merge, nest, option, quote, to_dict
from jaxrl.pipelines import Stopped
from jaxrl.population import members, sweepable
from jaxrl.run_folder import MemberFolder
from jaxrl.runs import final_summary, write_json

if TYPE_CHECKING:
    import optuna

JOURNAL, SPEC, BEST, REPORT = "study.journal", "study.yaml", "best.yaml", "study.json"
FIRST = "together_with"  # attribute of a trial: the trial in whose folder it trains
KINDS = ("uniform", "log", "int", "log_int", "choice")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study."""

    space: dict[str, Any]
    metrics: tuple[str, ...] = option(
        ("mean_reward",),
        "means of the final evaluation to optimise: success_rate, mean_reward, or any statistic of "
        "the task; several of them: trials that no other one beats in all of them",
    )
    directions: tuple[Literal["maximize", "minimize"], ...] = option(
        ("maximize",), "direction of each metric"
    )
    sampler: Literal["tpe", "random", "gp", "nsga2"] = option("tpe", "how settings are chosen")
    pruner: Literal["halving", "median", "none"] = option(
        "halving", "how trials are stopped early, by their evaluations in training"
    )
    seed: int = option(0, "seed of the choice of settings", minimum=0)
    together: int = option(
        1,
        "trials that train side by side in one program, as --sweep does; without stopping early",
        minimum=1,
        maximum=MAX_MEMBERS,
    )
    config: dict[str, Any] = option({}, "settings that all trials share")


def read(space: str | Path, config: str | Path | None) -> StudyConfig:
    """Reads a study from the file of its space, and the file of the settings that all trials share.

    Raises:
      UserError: a file cannot be read, or something in it is wrong.
    """
    values = read_yaml(space)
    if config is not None:
        values = values | {"config": merge(values.get("config") or {}, read_yaml(config))}
    study: StudyConfig = build(StudyConfig, values)
    if len(study.metrics) != len(study.directions):
        raise UserError(
            f"directions: got {len(study.directions)}, expected one for each of the "
            f"{len(study.metrics)} metrics"
        )
    if (len(study.metrics) > 1 or study.together > 1) and study.pruner != "none":
        study = dataclasses.replace(study, pruner="none")
    distributions(study)
    return study


def distributions(study: StudyConfig) -> dict[str, Any]:
    """The distributions of the settings, by dotted key.

    Raises:
      UserError: Optuna is missing, or a distribution is wrong.
    """
    _need_optuna()
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for key, value in _leaves(study.space).items():
        (kind, limits), *others = value.items()
        wrong = UserError(
            f"space.{key}: got {quote(value)}, expected one of {', '.join(KINDS)} with its limits, "
            "such as {log: [1e-4, 1e-2]} or {choice: [32, 64]}"
        )
        if others or not isinstance(limits, list) or not limits:
            raise wrong
        if kind == "choice":
            found[key] = CategoricalDistribution([json.dumps(choice) for choice in limits])
            continue
        numbers = [x for x in limits if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) != 2 or len(limits) != 2 or not numbers[0] < numbers[1]:
            raise wrong
        low, high = numbers
        is_log = kind.startswith("log")
        if is_log and low <= 0:
            raise wrong
        if "int" in kind:
            found[key] = IntDistribution(int(low), int(high), log=is_log)
        else:
            found[key] = FloatDistribution(float(low), float(high), log=is_log)
    if not found:
        raise UserError("space: expected at least one setting")
    return found


def first_choices(distributions: dict[str, Any]) -> dict[str, Any]:
    """The first choice of each setting, or its lower limit."""
    return {
        key: kind.choices[0] if hasattr(kind, "choices") else kind.low
        for key, kind in distributions.items()
    }


def _leaves(space: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """The sections of a space that describe a setting, by dotted key."""
    leaves: dict[str, dict[str, Any]] = {}
    for key, value in space.items():
        if not isinstance(value, dict) or not value:
            raise UserError(f"space.{path}{key}: got {quote(value)}, expected a section")
        if set(value) & {*KINDS}:
            leaves[f"{path}{key}"] = value
        else:
            leaves |= _leaves(value, f"{path}{key}.")
    return leaves


def settings(study: StudyConfig, *params: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trial, nested, with those that all trials share; of several trials, the
    settings of a population with a point for each of them."""
    points = [{key: _plain(value) for key, value in each.items()} for each in params]
    shared = nest(flatten(study.config))
    if len(points) == 1:
        return merge(shared, nest(points[0]))
    values = (":".join(str(value) for value in point.values()) for point in points)
    sweep = f"{':'.join(points[0])}={','.join(values)}"
    return shared | {"sweep": [sweep, *shared.get("sweep", ())]}


class Study:
    """A study in its folder.

    Args:
      config: the study.
      folder: its folder.
      trials: number of trials.
      platform: "cpu" or "gpu".
      worker: number of this worker among those that work at the same time.

    Raises:
      UserError: settings are wrong.
    """

    def __init__(
        self, config: StudyConfig, folder: Path, *, trials: int, platform: str, worker: int = 0
    ):
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self.config, self.folder, self.trials, self.platform = config, folder, trials, platform
        self._distributions = distributions(config)
        self._check()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(folder / JOURNAL))
        self.study = optuna.create_study(
            study_name="jaxrl",
            storage=optuna.storages.JournalStorage(backend),
            pruner=_pruner(config),
            directions=list(config.directions),
            load_if_exists=True,
        )
        # Workers, and the parts of a study that was resumed, choose different settings.
        begun = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = _sampler(config.sampler, config.seed + 1000 * begun + worker)

    def _check(self) -> None:
        """Resolves the settings with the first choice of each, to find mistakes early."""
        first = first_choices(self._distributions)
        config = self._resolve(first)
        if not config.eval_every or not config.train.eval.final_episodes:
            raise UserError("eval.every, eval.final_episodes: a study needs evaluations")
        for metric in self.config.metrics:
            statistic(config, metric)
        known = sweepable(config.train.algo)
        others = [key for key in first if key not in known]
        if self.config.together > 1 and others:
            raise UserError(
                f"together: {others[0]} changes the program, so that its values cannot train side "
                f"by side; set together: 1, or search only {', '.join(known)}"
            )

    def _resolve(self, *params: dict[str, Any]) -> RunConfig:
        layers = [settings(self.config, *params), {"log": {"console": False}}]
        return training.configure(layers, self.platform, resume=None, typed={})

    def work(self) -> None:
        """Trains trials until there is none left.

        Raises:
          Stopped: a signal has ended the trial; it can be continued.
        """
        while (found := self._next()) is not None:
            trials, lock = found
            try:
                self._train(trials)
            finally:
                lock.close()
            self.write()

    def _next(self) -> tuple[list[optuna.trial.FrozenTrial], Any] | None:
        """Trials that train together, new ones or those of a worker that has died, and their lock;
        None: there is none left."""
        import optuna

        with _alone(self.folder):
            for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                lock = _lock(self._place(_first(trial)))
                if lock is not None:
                    return self._together_with(_first(trial)), lock
            count = self.trials - len(self.study.get_trials(deepcopy=False))
            if count <= 0:
                return None
            count = min(count, self.config.together)
            asked = [self.study.ask(self._distributions) for _ in range(count)]
            lock = _lock(self._place(asked[0].number))
            assert lock is not None
            for each in asked[1:]:
                each.set_user_attr(FIRST, asked[0].number)
            return self._together_with(asked[0].number), lock

    def _together_with(self, first: int) -> list[optuna.trial.FrozenTrial]:
        """The trials that train together, of which `first` is the first one's number."""
        return [trial for trial in self.study.get_trials() if _first(trial) == first]

    def _place(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def _train(self, trials: list[optuna.trial.FrozenTrial]) -> None:
        """Trains trials in one program, and tells Optuna their results."""
        import optuna

        points: list[dict[str, Any]] = []
        for trial in trials:  # the sampler may choose the same settings twice
            if trial.params not in points:
                points.append(trial.params)
        reports = _Reports(self.config, optuna.Trial(self.study, trials[0]._trial_id))
        callbacks = [reports] if len(trials) == 1 else []
        run = self._place(trials[0].number) / "run"
        try:
            trained = training.train_in(run, lambda: self._resolve(*points), callbacks)
        except UserError as error:
            for trial in trials:
                self._finish(trial, [], {"error": str(error)}, str(error))
            return
        if trained.status:
            raise Stopped(trained.status)
        folders = [MemberFolder(trained.folder, each).path for each in members(trained.config)]
        count = len(folders) // len(points)
        notes = {"seconds": round(trained.progress.elapsed / len(trials), 1)}
        for trial in trials:
            i = points.index(trial.params)
            summaries = [final_summary(each) for each in folders[i * count : (i + 1) * count]]
            values = [
                sum(s[METRICS.get(metric, metric)]["mean"] for s in summaries if s)
                / max(sum(map(bool, summaries)), 1)
                for metric in self.config.metrics
            ]
            if not any(summaries) or not all(map(math.isfinite, values)):
                values = []
            result = ", ".join(f"{m} {readable(v)}" for m, v in zip(self.config.metrics, values))
            self._finish(
                trial, values, notes, result or "no finite result", is_pruned=reports.pruned
            )

    def _finish(
        self,
        trial: optuna.trial.FrozenTrial,
        values: list[float],
        notes: dict[str, Any],
        result: str,
        *,
        is_pruned: bool = False,
    ) -> None:
        """Tells Optuna the result of a trial, unless it knows it already, and prints it."""
        import optuna

        state = optuna.trial.TrialState
        if trial.state != state.RUNNING:
            return
        for key, note in notes.items():
            optuna.Trial(self.study, trial._trial_id).set_user_attr(key, note)
        if is_pruned:
            self.study.tell(trial.number, state=state.PRUNED)
        elif values:
            self.study.tell(trial.number, values)
        else:
            self.study.tell(trial.number, state=state.FAIL)
        chosen = ", ".join(f"{key} {shown(value)}" for key, value in trial.params.items())
        early = " stopped early" if is_pruned else "" if values else " failed"
        tell(f"trial {trial.number}{early}: {result}; {chosen}")

    def write(self) -> None:
        """Writes the table of the trials, and the best settings as a file that trains."""
        rows = [
            {
                "number": t.number,
                "state": t.state.name.lower(),
                "values": t.values if t.state.name == "COMPLETE" else None,
                "params": {key: _plain(value) for key, value in t.params.items()},
                "intermediate": {str(k): v for k, v in t.intermediate_values.items()},
                **t.user_attrs,
            }
            for t in self.study.get_trials(deepcopy=False)
        ]
        best = self.best()
        write_json(
            self.folder / REPORT,
            {
                "metrics": list(self.config.metrics),
                "directions": list(self.config.directions),
                "best": [trial.number for trial in best],
                "trials": rows,
            },
        )
        for i, trial in enumerate(best):
            name = BEST if len(best) == 1 else f"best-{i + 1}.yaml"
            content = settings(self.config, trial.params)
            head = f"# Trial {trial.number}: " + ", ".join(
                f"{m} {v:g}" for m, v in zip(self.config.metrics, trial.values or ())
            )
            files.write_text(self.folder / name, f"{head}\n{strict_yaml.dump(content)}")

    def best(self) -> list[optuna.trial.FrozenTrial]:
        """The best trial; with several metrics, those that no other trial beats in all of them."""
        with contextlib.suppress(ValueError):
            return (
                self.study.best_trials if len(self.config.metrics) > 1 else [self.study.best_trial]
            )
        return []


class _Reports(Callback):
    """Reports evaluations in training to Optuna, and stops a trial that is not worth going on."""

    def __init__(self, config: StudyConfig, trial: optuna.Trial):
        self.config, self.trial, self.pruned = config, trial, False

    def on_evaluation(self, trainer: Any, row: dict[str, float]) -> None:
        if len(self.config.metrics) > 1:
            return
        metric = self.config.metrics[0]
        shown = {v: k for k, v in METRICS.items()}.get(metric, metric)
        value = row.get(f"{columns.EVAL}{shown}", math.nan)
        if not math.isfinite(value):
            return
        self.trial.report(value, trainer.progress.timesteps)
        if not trainer.finished and self.trial.should_prune():
            self.pruned = True
            trainer.stop("stopped early: other trials were better at this point")


def _first(trial: optuna.trial.FrozenTrial) -> int:
    """Number of the first of the trials that train together with a trial."""
    return trial.user_attrs.get(FIRST, trial.number)


def _sampler(name: str, seed: int) -> Any:
    import optuna

    kinds: dict[str, Any] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=8, constant_liar=True
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    return kinds[name]()


def _pruner(config: StudyConfig) -> Any:
    import optuna

    kinds: dict[str, Any] = {
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3),
        "median": lambda: optuna.pruners.MedianPruner(),
        "none": lambda: optuna.pruners.NopPruner(),
    }
    return kinds[config.pruner]()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other worker chooses a trial."""
    with (folder / ".choosing").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(folder: Path) -> Any:
    """Locks the folder of a trial; None: another worker has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return files.lock(folder)
    except UserError:
        return None


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tuning needs Optuna, which is not installed; run `pip install 'jaxrl[tune]'`"
        ) from error


def _plain(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def shown(value: Any) -> str:
    """A chosen value as text."""
    value = _plain(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save_spec(study: StudyConfig, folder: Path) -> None:
    """Writes the study, so that it can be resumed without its files."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / SPEC, strict_yaml.dump(to_dict(study)))
