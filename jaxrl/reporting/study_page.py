"""The page of a study: all of its trials in one HTML file."""

from __future__ import annotations

import functools
import html
import warnings
from typing import TYPE_CHECKING, Any

from jaxrl.logs import readable
from jaxrl.reporting.pages import axes, document, image, need_matplotlib, plots, table

if TYPE_CHECKING:
    from jaxrl.tuning import Study

COMPLETE, EARLY, BEST = "#0072b2", "#bbbbbb", "#d55e00"


def page(study: Study) -> str:
    """The page of a study.

    Raises:
      UserError: Matplotlib is not installed.
    """
    need_matplotlib()
    trials = study.study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = study.best()
    title = study.folder.resolve().name
    states = [trial.state.name.lower() for trial in trials]
    counted = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class='headline'>{len(trials)} trials: {counted or 'none'}.</p>",
    ]
    if best:
        parts += [_best(study, best), "<h2>Trials</h2>", plots("Values", _histories(study, trials))]
        if len(study.config.metrics) == 2:
            parts.append(plots("Two metrics", [_front(study, complete, best)]))
        parts.append(plots("Importance of the settings", _importances(study, complete)))
        parts.append(plots("Each setting", _slices(study, complete)))
    parts.append(_trials(study, trials))
    return document(title, parts)


def _best(study: Study, best: list[Any]) -> str:
    from jaxrl.tuning import shown

    head = ["best", *map(html.escape, study.config.metrics), *map(html.escape, best[0].params)]
    rows = [
        [
            f"trial {t.number}",
            *map(readable, t.values),
            *(html.escape(shown(x)) for x in t.params.values()),
        ]
        for t in best
    ]
    return table(head, rows)


def _histories(study: Study, trials: list[Any]) -> list[str]:
    """Values of the trials in their order; with one metric, also what was stopped early."""
    images = []
    for i, metric in enumerate(study.config.metrics):
        figure, axis = axes(metric, metric, "trial")
        early = [(t.number, t.intermediate_values) for t in trials if t.state.name == "PRUNED"]
        points = [(number, values[max(values)]) for number, values in early if values]
        if points:
            axis.plot(*zip(*points), "o", ms=4, color=EARLY, label="stopped early")
        points = [(t.number, t.values[i]) for t in trials if t.state.name == "COMPLETE"]
        axis.plot(*zip(*points), "o", ms=4, color=COMPLETE, label="complete")
        pick = max if study.config.directions[i] == "maximize" else min
        record, steps = None, []
        for number, value in points:
            record = value if record is None else pick(record, value)
            steps.append((number, record))
        axis.step(*zip(*steps), where="post", color=BEST, lw=1, label="best so far")
        axis.legend(fontsize=8)
        images.append(image(figure, f"{metric} of the trials"))
    return images


def _front(study: Study, complete: list[Any], best: list[Any]) -> str:
    first, second = study.config.metrics
    figure, axis = axes(f"{second} against {first}", second, first)
    axis.plot(*zip(*(t.values for t in complete)), "o", ms=4, color=COMPLETE)
    axis.plot(*zip(*(t.values for t in best)), "o", ms=6, mfc="none", color=BEST, label="best")
    axis.legend(fontsize=8)
    return image(figure, f"{second} against {first}")


def _importances(study: Study, complete: list[Any]) -> list[str]:
    """How much each setting decides about the metric (PED-ANOVA: Watanabe et al. 2023)."""
    import optuna

    images = []
    for i, metric in enumerate(study.config.metrics):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about few trials
                shares = optuna.importance.get_param_importances(
                    study.study,
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=functools.partial(_loss, study.config.directions[i], i),
                )
        except (ValueError, RuntimeError):  # too few trials, or all the same
            continue
        figure, axis = axes(metric, "", "share")
        names = list(reversed(shares))
        axis.barh(names, [shares[name] for name in names], color=COMPLETE)
        images.append(image(figure, f"importance for {metric}"))
    return images


def _loss(direction: str, i: int, trial: Any) -> float:
    """A value of a trial, or minus it, so that the smallest is the best."""
    return float(trial.values[i]) * (-1 if direction == "maximize" else 1)


def _slices(study: Study, complete: list[Any]) -> list[str]:
    """The first metric over each setting."""
    from jaxrl.tuning import shown

    images = []
    metric = study.config.metrics[0]
    for key in dict.fromkeys(key for trial in complete for key in trial.params):
        figure, axis = axes(key, metric, key)
        kind = complete[0].distributions[key]
        values = [trial.params[key] for trial in complete]
        if hasattr(kind, "choices"):
            names = [shown(choice) for choice in kind.choices]
            values = [names.index(shown(value)) for value in values]
            axis.set_xticks(range(len(names)), names)
        elif kind.log:
            axis.set_xscale("log")
        axis.plot(values, [trial.values[0] for trial in complete], "o", ms=4, color=COMPLETE)
        images.append(image(figure, f"{metric} over {key}"))
    return images


def _trials(study: Study, trials: list[Any]) -> str:
    from jaxrl.tuning import shown

    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    head = ["trial", "state", *study.config.metrics, "minutes", *keys]
    rows = []
    for trial in trials:
        values = trial.values if trial.state.name == "COMPLETE" else None
        seconds = trial.user_attrs.get("seconds")
        rows.append(
            [
                str(trial.number),
                {"PRUNED": "stopped early"}.get(trial.state.name, trial.state.name.lower()),
                *(map(readable, values) if values else [""] * len(study.config.metrics)),
                readable(seconds / 60, 3) if seconds else "",
                *(html.escape(shown(trial.params[k])) if k in trial.params else "" for k in keys),
            ]
        )
    return "<h2>All trials</h2>" + table([html.escape(h) for h in head], rows)
