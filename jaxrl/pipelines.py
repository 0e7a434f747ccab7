"""Pipelines: training sessions in sequence, each of which can begin with the policy of another one.

A pipeline has one folder. In it, each attempt at a session is the folder of an ordinary run, and
pipeline_state.json says how far the pipeline is. A pipeline that was interrupted at any moment does
the same again: attempts that are complete are only judged, and the interrupted one is resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxrl import evaluation, files, notifications, storage, strict_yaml, training, transfer
from jaxrl.algos import ALGORITHMS
from jaxrl.config import RunConfig, read_yaml
from jaxrl.errors import UserError, tell
from jaxrl.notifications import NotificationsConfig
from jaxrl.options import MAX_INT, build, flatten, merge, nest, option, quote, to_dict
from jaxrl.policy import Policy
from jaxrl.runs import final_summary, hardware, load_policy, write_json

STATE, REPORT, PAGE = "pipeline_state.json", "pipeline_report.json", "pipeline_report.html"
COPY = "pipeline.yaml"
EARLIER = "earlier"  # folder of attempts that --start-from has replaced
KEEP_ALL = MAX_INT  # checkpoints
RESERVED = {
    "out": "--output-dir",
    "init_from": "checkpoint or use_previous_checkpoint",
    "storage": "storage of the pipeline",
}


@dataclasses.dataclass(frozen=True)
class RetryConfig:
    """Another attempt at a session whose criteria were not met."""

    overrides: dict[str, Any] = option({}, "settings that differ in this attempt")


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """A training session."""

    name: str
    description: str | None = option(None, "what the session is for")
    config: str | None = option(None, "file of settings, as for jaxrl.train --config")
    timesteps: int | None = option(
        None, "control steps to train; none: total_timesteps of the settings", minimum=1
    )
    use_previous_checkpoint: bool = option(
        False, "begin with the policy of the session before, as it ended"
    )
    checkpoint: str | None = option(
        None,
        "begin with this policy: the name of an earlier session, a run, a checkpoint, or a policy "
        "of the project",
    )
    overrides: dict[str, Any] = option({}, "settings that replace those of the file")
    success_criteria: dict[str, Any] = option(
        {},
        "means of the final evaluation that the session must reach: METRIC: LEAST, or "
        "METRIC: {min: LEAST, max: MOST}",
    )
    retries: tuple[RetryConfig, ...] = option(
        (), "further attempts, each from the start, if the criteria were not met"
    )


@dataclasses.dataclass(frozen=True)
class StorageConfig:
    """Where a mirror of the pipeline's folder is kept."""

    location: str | None = option(
        None,
        "folder, or s3://bucket/prefix; the mirror has the name of the pipeline's folder there",
    )


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """A pipeline."""

    name: str
    sessions: tuple[SessionConfig, ...]
    description: str | None = option(None, "what the pipeline is for")
    continue_on_error: bool = option(
        False, "go on with the next session if one fails; otherwise the pipeline stops"
    )
    enable_transfer_learning: bool = option(
        True, "if false, each session begins with new networks, whatever it says"
    )
    save_all_checkpoints: bool = option(False, "keep all checkpoints of a session")
    storage: StorageConfig = option(StorageConfig(), "mirror")
    notifications: NotificationsConfig = option(NotificationsConfig(), "notifications")


class Stopped(Exception):
    """A signal ended the pipeline; `status` is 128 + its number."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def read(path: str | Path) -> PipelineConfig:
    """Reads a pipeline from a file.

    Raises:
      UserError: the file cannot be read, or something in it is wrong.
    """
    config: PipelineConfig = build(PipelineConfig, read_yaml(path))
    names = [session.name for session in config.sessions]
    for key, name in [("name", config.name), *(("sessions", name) for name in names)]:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == EARLIER:
            raise UserError(
                f"{key}: the name {quote(name)} cannot be that of a folder; use letters, digits, "
                "'_', '-' and '.'"
            )
    notifications.check(config.notifications)
    if not names:
        raise UserError("sessions: expected at least one session")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"sessions: the name {quote(name)} occurs twice")
        if any(name.startswith(f"{other}-retry-") for other in names):
            raise UserError(f"sessions: the name {quote(name)} is that of a retry's folder")
    return config


@dataclasses.dataclass(frozen=True)
class Attempt:
    """An attempt at a session, as it is planned.

    Attributes:
      folder: name of its folder.
      settings: the given settings, without presets.
      config: the resolved configuration.
    """

    folder: str
    settings: dict[str, Any]
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Session:
    """A session, as it is planned.

    Attributes:
      config: the session's own settings.
      attempts: the first attempt and the retries.
      source: name of the earlier session that it begins with; None: of none.
      path: policy that it begins with, if that is not a session's.
      limits: (metric, statistic, least, most) of each success criterion.
    """

    config: SessionConfig
    attempts: tuple[Attempt, ...]
    source: str | None
    path: str | None
    limits: tuple[tuple[str, str, float | None, float | None], ...]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def policy(self) -> Policy:
        """The policy that the first attempt trains, without its parameters."""
        config = self.attempts[0].config
        return ALGORITHMS[config.train.algo].new_policy(config.train.settings, config.env)

    def __str__(self) -> str:
        config = self.attempts[0].config
        begins = self.source or self.path
        parts = [f"{config.task} with {config.train.algo}"]
        parts += [f"{config.train.total_timesteps:,} control steps"]
        parts += [f"begins with {begins}"] if begins else []
        return f"{self.name}: {', '.join(parts)}"


def plan(config: PipelineConfig, platform: str) -> list[Session]:
    """Resolves the settings of all sessions, so that a mistake in the last one is found before the
    first one begins.

    Args:
      config: the pipeline.
      platform: "cpu" or "gpu".

    Raises:
      UserError: settings of a session are wrong, or it cannot begin with the policy that it names.
    """
    sessions: list[Session] = []
    for i, session in enumerate(config.sessions):
        with _naming(f"sessions[{i}] ({session.name})"):
            planned = _plan_session(config, session, [s.name for s in sessions], platform)
            _check_transfer(planned, {s.name: s for s in sessions})
            sessions.append(planned)
    return sessions


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Puts the place before the text of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _plan_session(
    config: PipelineConfig, session: SessionConfig, earlier: Sequence[str], platform: str
) -> Session:
    layers = [read_yaml(session.config)] if session.config else []
    if config.save_all_checkpoints:
        layers.append({"checkpoint": {"keep": KEEP_ALL}})
    if session.timesteps is not None:
        layers.append({"total_timesteps": session.timesteps})
    attempts = []
    for number, overrides in enumerate([{}, *(retry.overrides for retry in session.retries)]):
        changes = [nest(flatten(session.overrides)), nest(flatten(overrides))]
        for key in (key for change in changes for key in change if key in RESERVED):
            raise UserError(f"overrides.{key}: cannot be set here; use {RESERVED[key]}")
        given = [*layers, *changes]
        place = f"retries[{number - 1}]" if number else "settings"
        with _naming(place):
            resolved = training.configure(given, platform, resume=None, typed={})
        folder = f"{session.name}-retry-{number}" if number else session.name
        attempts.append(Attempt(folder, merge(*given), resolved))
    source, path = _source(config, session, earlier)
    if source is None and path is None and config.enable_transfer_learning:
        path = attempts[0].config.train.init_from  # of the session's file
    return Session(session, tuple(attempts), source, path, _limits(session, attempts[0].config))


def _source(
    config: PipelineConfig, session: SessionConfig, earlier: Sequence[str]
) -> tuple[str | None, str | None]:
    """The earlier session, or the path, that a session begins with."""
    if session.use_previous_checkpoint and session.checkpoint is not None:
        raise UserError("use_previous_checkpoint, checkpoint: give one of the two")
    if session.use_previous_checkpoint and not earlier:
        raise UserError("use_previous_checkpoint: there is no session before this one")
    if not config.enable_transfer_learning:
        return None, None
    if session.use_previous_checkpoint:
        return earlier[-1], None
    if session.checkpoint in earlier:
        return session.checkpoint, None
    return None, session.checkpoint


def _limits(
    session: SessionConfig, config: RunConfig
) -> tuple[tuple[str, str, float | None, float | None], ...]:
    """The success criteria, checked."""
    if not session.success_criteria:
        return ()
    if not config.train.eval.final_episodes:
        raise UserError("success_criteria: needs eval.final_episodes above 0")
    limits = []
    for metric, value in session.success_criteria.items():
        with _naming("success_criteria"):
            name = evaluation.statistic(config, metric)
        bounds = value if isinstance(value, dict) else {"min": value}
        numbers = all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in bounds.values()
        )
        if not bounds or not numbers or not bounds.keys() <= {"min", "max"}:
            raise UserError(
                f"success_criteria.{metric}: got {quote(value)}, expected a number, or a section "
                "with the numbers min or max"
            )
        limits.append((metric, name, bounds.get("min"), bounds.get("max")))
    return tuple(limits)


def _check_transfer(session: Session, earlier: dict[str, Session]) -> None:
    """Checks that the session's policy can begin with the one that it names."""
    if session.source is not None:
        name, old = session.source, earlier[session.source].policy
    elif session.path is not None:
        name, old = session.path, load_policy(storage.local(session.path)).policy
    else:
        return
    transfer.check(name, old, session.policy, session.attempts[0].config.train.init_parts)


class Pipeline:
    """A pipeline in its folder, which is locked until `close`.

    Args:
      config: the pipeline.
      folder: its folder.
      platform: "cpu" or "gpu".
      resume: continue the pipeline in the folder.
      start_from: name of the session to begin with; earlier attempts at it and at those after it
        are moved away.

    Raises:
      UserError: the configuration or the folder cannot be used.
    """

    def __init__(
        self,
        config: PipelineConfig,
        folder: Path,
        *,
        platform: str,
        resume: bool = False,
        start_from: str | None = None,
    ):
        self.config, self.folder = config, folder
        names = [session.name for session in config.sessions]
        if start_from is not None and start_from not in names:
            raise UserError(
                f"--start-from: got {quote(start_from)}, expected a session of the pipeline: "
                f"{', '.join(names)}"
            )
        begun = (folder / STATE).exists()
        if begun and not resume and start_from is None:
            raise UserError(
                f"{folder}: already holds a pipeline; continue it with --resume, begin again at a "
                "session with --start-from NAME, or choose another --output-dir"
            )
        if resume and not begun:
            raise UserError(f"--resume: {folder} holds no pipeline")
        self.sessions = plan(config, platform)
        files.check_writable(folder / STATE)
        self._lock = files.lock(folder)
        try:
            self.state = _read_state(folder) if begun else _new_state()
            if start_from is not None:
                self._start_from(names, start_from)
            self._check_unchanged()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the folder for other processes."""
        if self._lock:
            self._lock.close()

    # -- start and resume ----------------------------------------------------------------

    def _start_from(self, names: list[str], start: str) -> None:
        """Makes `start` the next session; what later sessions did so far is moved away."""
        position = names.index(start)
        for session in self.sessions[position:]:
            source = session.source
            if source in names[:position] and source not in self.state["checkpoints"]:
                raise UserError(
                    f"--start-from {start}: {session.name} begins with {source}, of which "
                    f"{self.folder / STATE} records no checkpoint"
                )
        for session in self.sessions[position:]:
            for attempt in self.state["attempts"].pop(session.name, []):
                old = self.folder / attempt["folder"]
                if old.exists():
                    (self.folder / EARLIER).mkdir(exist_ok=True)
                    old.rename(files.first_free(self.folder / EARLIER / old.name))
            self.state["checkpoints"].pop(session.name, None)
            for key in ("sessions_completed", "sessions_failed"):
                if session.name in self.state[key]:
                    self.state[key].remove(session.name)
        self.state["sessions_skipped"] = [
            name for name in names[:position] if name not in self.state["attempts"]
        ]

    def _check_unchanged(self) -> None:
        """Refuses other settings for attempts that were begun."""
        for session in self.sessions:
            begun = self.state["attempts"].get(session.name, [])
            for attempt, planned in zip(begun, session.attempts, strict=False):
                old, new = flatten(attempt["settings"]), flatten(_plain(planned.settings))
                for key in dict.fromkeys([*old, *new]):
                    if old.get(key) != new.get(key):
                        raise UserError(
                            f"{session.name}: was begun with {key} {quote(old.get(key))}, and now "
                            f"has {quote(new.get(key))}; give the old value, or train it again "
                            f"with --start-from {session.name}"
                        )

    # -- the loop ------------------------------------------------------------------------

    def run(self) -> int:
        """Trains all sessions that are not complete.

        Returns:
          0; 1 if a session failed; 128 + the number of the signal that stopped the pipeline.
        """
        files.write_text(self.folder / COPY, strict_yaml.dump(to_dict(self.config)))
        self._save(status="running")
        with notifications.notifier(self.config.notifications) as self._notify:
            try:
                status = self._run()
            except BaseException as error:
                self._save(status="failed", error=f"{type(error).__name__}: {error}")
                self._end_with("pipeline_failed", reason=f"{type(error).__name__}: {error}")
                raise
            event = {0: "pipeline_completed", 1: "pipeline_failed"}.get(status, "stopped")
            self._end_with(event)
        return status

    def _run(self) -> int:
        for number, session in enumerate(self.sessions, 1):
            if session.name in (
                *self.state["sessions_completed"],
                *self.state["sessions_skipped"],
            ):
                continue
            tell(f"session {number}/{len(self.sessions)}, {session}")
            self._save(current_session=session.name)
            try:
                reason = self._session(session)
            except Stopped as stopped:
                self._save(status="stopped")
                tell(f"stopped and saved; continue with --resume --output-dir {self.folder}")
                return stopped.status
            if reason is not None and not self.config.continue_on_error:
                break
        failed = self.state["sessions_failed"]
        self._save(status="failed" if failed else "complete", current_session=None)
        return 1 if failed else 0

    def _end_with(self, event: str, **facts: Any) -> None:
        """Writes the page, and tells about the end of the pipeline."""
        self._write_page()
        status = self.state["status"]
        done, count = len(self.state["sessions_completed"]), len(self.sessions)
        tell(f"the pipeline is {status}; written to {self.folder}/{REPORT}")
        text = f"{self.config.name} is {status}: {done} of {count} sessions are complete"
        self._notify(event, text, pipeline=self.config.name, folder=str(self.folder), **facts)

    def _session(self, session: Session) -> str | None:
        """Trains a session until an attempt meets the criteria; returns why it failed, or None."""
        reason = None
        for number, attempt in enumerate(session.attempts):
            try:
                reason = self._attempt(session, number, attempt)
            except UserError as error:
                reason = str(error)
                self._record(session, number, reason=reason)
                break  # other settings do not mend an error
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".strip()
                self._record(session, number, reason=reason)
                if not self.config.continue_on_error:
                    self._end(session, reason)
                    raise
                traceback.print_exc()
                break
            if reason is None:
                break
            if number + 1 < len(session.attempts):
                tell(f"{session.name}: {reason}; retry {number + 1}")
        self._end(session, reason)
        return reason

    def _end(self, session: Session, reason: str | None) -> None:
        """Records whether the session is complete or has failed."""
        complete, failed = self.state["sessions_completed"], self.state["sessions_failed"]
        if session.name in failed:
            failed.remove(session.name)
        (complete if reason is None else failed).append(session.name)
        self._save()
        event = "completed" if reason is None else "failed"
        text = f"{self.config.name}: {session.name} {event}{f': {reason}' if reason else ''}"
        tell(text)
        summary = self.state["attempts"].get(session.name, [{}])[-1].get("summary", {})
        self._notify(
            f"session_{event}",
            text,
            pipeline=self.config.name,
            session=session.name,
            reason=reason,
            folder=str(self.folder),
            means={name: values["mean"] for name, values in summary.items()},
        )

    def _attempt(self, session: Session, number: int, attempt: Attempt) -> str | None:
        """Trains or resumes a run, unless it is complete, and judges it; returns why it failed, or
        None."""
        self._record(session, number, settings=_plain(attempt.settings), folder=attempt.folder)
        record = self.state["attempts"][session.name][number]
        if "summary" not in record:
            self._train(session, number, attempt)
        reason = _judge(session, record["summary"])
        self.state["checkpoints"][session.name] = record["checkpoint"]
        self._record(session, number, reason=reason)
        return reason

    def _train(self, session: Session, number: int, attempt: Attempt) -> None:
        def make() -> RunConfig:
            train = dataclasses.replace(attempt.config.train, init_from=self._init_from(session))
            return dataclasses.replace(attempt.config, train=train)

        trained = training.train_in(self.folder / attempt.folder, make)
        if trained.status:
            raise Stopped(trained.status)
        self._record(
            session,
            number,
            timesteps=trained.progress.timesteps,
            seconds=round(trained.progress.elapsed, 3),
            checkpoint=str(trained.best.relative_to(self.folder)),
            summary=final_summary(trained.best),
        )

    def _init_from(self, session: Session) -> str | None:
        """The policy that a session begins with."""
        if session.source is None:
            return session.path
        folder = self.state["checkpoints"].get(session.source)
        if folder is None:
            raise UserError(
                f"begins with {session.source}, which has no checkpoint, since it failed"
            )
        return str(self.folder / folder)

    # -- files ---------------------------------------------------------------------------

    def _record(self, session: Session, number: int, **facts: Any) -> None:
        """Writes what is known about an attempt."""
        attempts = self.state["attempts"].setdefault(session.name, [])
        if number == len(attempts):
            attempts.append({"folder": session.attempts[number].folder, "started_at": _now()})
        attempts[number] |= facts
        self._save()

    def _write_page(self) -> None:
        """Writes the pages of the pipeline and of its complete runs, if Matplotlib is installed."""
        from jaxrl.reporting import pipeline_page, run_page

        content = report(self.config, self.sessions, self.state)
        try:
            files.write_text(self.folder / PAGE, pipeline_page.page(self.folder, content))
            for session in content["sessions"]:
                for attempt in session["attempts"]:
                    run = self.folder / attempt["folder"]
                    if "summary" in attempt and not (run / "report.html").exists():
                        run_page.write([run])
        except UserError as error:
            tell(f"no page: {error}")

    def _save(self, **changes: Any) -> None:
        """Writes the state and the report."""
        self.state |= {"name": self.config.name, **changes, "last_updated": _now()}
        write_json(self.folder / STATE, self.state)
        write_json(self.folder / REPORT, report(self.config, self.sessions, self.state))


def report(
    config: PipelineConfig, sessions: Sequence[Session], state: dict[str, Any]
) -> dict[str, Any]:
    """The content of pipeline_report.json."""
    rows = []
    for session in sessions:
        attempts = [
            {key: value for key, value in attempt.items() if key != "settings"}
            for attempt in state["attempts"].get(session.name, [])
        ]
        rows.append(
            {
                "name": session.name,
                "description": session.config.description,
                "status": _status(session.name, state),
                "begins_with": session.source or session.path,
                "success_criteria": session.config.success_criteria,
                "checkpoint": state["checkpoints"].get(session.name),
                "attempts": attempts,
            }
        )
    seconds = [a.get("seconds", 0.0) for row in rows for a in row["attempts"]]
    return {
        "name": config.name,
        "description": config.description,
        **{key: state[key] for key in ("status", "started_at", "last_updated")},
        "training_seconds": round(sum(seconds), 3),
        "hardware": hardware(),
        "sessions": rows,
    }


def _status(name: str, state: dict[str, Any]) -> str:
    for key in ("completed", "failed", "skipped"):
        if name in state[f"sessions_{key}"]:
            return key
    return state["status"] if name == state["current_session"] else "waiting"


def _judge(session: Session, summary: dict[str, Any]) -> str | None:
    """Why a run does not meet the session's criteria; None if it does."""
    reasons = []
    for metric, name, least, most in session.limits:
        mean = summary[name]["mean"]
        if least is not None and not mean >= least:
            reasons.append(f"{metric} is {mean:.4g}, must be at least {least:g}")
        if most is not None and not mean <= most:
            reasons.append(f"{metric} is {mean:.4g}, must be at most {most:g}")
    return "; ".join(reasons) or None


def _new_state() -> dict[str, Any]:
    return {
        "name": None,
        "status": "running",
        "started_at": _now(),
        "last_updated": _now(),
        "current_session": None,
        "sessions_completed": [],
        "sessions_failed": [],
        "sessions_skipped": [],
        "checkpoints": {},
        "attempts": {},
    }


def _read_state(folder: Path) -> dict[str, Any]:
    """The state of the pipeline in a folder.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        content = json.loads((folder / STATE).read_text())
        return {key: content[key] for key in _new_state()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / STATE}: cannot be read ({error!r}); the runs in {folder} are not affected"
        ) from error


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
