"""The folder of a run: its configuration, its checkpoints, and the best model of each member."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import IO, Any

import jax

from jaxrl import files, history
from jaxrl.checkpoint import Checkpointer, Restored
from jaxrl.config import RunConfig, write_yaml
from jaxrl.errors import UserError
from jaxrl.population import Member
from jaxrl.runs import MEMBERS, hardware, spaces

FOLDERS = ("checkpoints", "best", "eval", "tensorboard", "videos", "damaged", "earlier", MEMBERS)
FILES = ("config.yaml", "progress.csv", history.HISTORY)


@dataclasses.dataclass
class Progress:
    """Progress of training; saved with each checkpoint.

    Attributes:
      timesteps: control steps of each member.
      elapsed: duration of training (s).
      best: score of each member's best model; None: there is no such model yet.
    """

    timesteps: int = 0
    elapsed: float = 0.0
    best: list[float | None] = dataclasses.field(default_factory=list)


class MemberFolder:
    """The folder of a member: RUN for a single run, RUN/members/<name> in a population."""

    def __init__(self, run: Path, member: Member):
        self.member = member
        self.path = run / MEMBERS / member.name if member.name else run
        self.best = Checkpointer(self.path / "best", keep=1)


class RunFolder:
    """The folder of a run, locked for this process until `close`.

    Args:
      path: path of the folder; made if it does not exist.
      config: configuration of the run.
      members: members of the run.

    Raises:
      UserError: the folder cannot be written, or another process trains in it.
    """

    def __init__(self, path: Path, config: RunConfig, members: list[Member]):
        self.path, self.config = path, config
        self._lock = self._claim()
        self.checkpoints = Checkpointer(path / "checkpoints", keep=config.train.checkpoint.keep)
        self.members = [MemberFolder(path, member) for member in members]

    def close(self) -> None:
        """Releases the folder for other processes."""
        if self._lock:
            self._lock.close()

    def _claim(self) -> IO[str] | None:
        """Makes the folder, checks that it can be used, and locks it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"out: cannot write to {self.path}: {error.strerror} (choose another folder with "
                "--out)"
            ) from error
        for names, kind, fits in ((FOLDERS, "folder", Path.is_dir), (FILES, "file", Path.is_file)):
            for path in (self.path / name for name in names):
                if path.exists() and not fits(path):
                    raise UserError(f"{path}: exists, but is not a {kind}; move it away")
        return files.lock(self.path)

    # -- start and resume ----------------------------------------------------------------

    def begin(self) -> Progress:
        """Prepares the folder for a run without a checkpoint: a new one, or one that was killed
        before its first checkpoint."""
        for member in self.members:
            member.best.discard_after(-1)
        return Progress(best=[None] * len(self.members))

    def restore(self, shapes: Any) -> tuple[Restored, Progress, dict[str, list[Any]]]:
        """Returns the newest undamaged checkpoint, its progress, and the settings that differ now.

        Args:
          shapes: shapes of the training state.

        Raises:
          UserError: no checkpoint fits, or settings were changed but nothing is left to train.
        """
        restored = self.checkpoints.restore(
            self.items(shapes),
            optional=("replay",),
            warn=lambda text: print(text, file=sys.stderr),
        )
        progress = Progress(**restored.meta["progress"])
        changed = history.differences(
            restored.meta["config"], self.config.to_dict(), self.config.defaults()
        )
        if changed and progress.timesteps >= self.config.train.total_timesteps:
            raise UserError(
                f"--resume {self.path}: all of its {progress.timesteps:,} control steps have been "
                f"trained, so a change of {next(iter(changed))} has no effect; give a larger "
                "--total_timesteps too"
            )
        self.checkpoints.discard_after(restored.step)
        self._begin_new_record(restored.step, progress, changed)
        for i, member in enumerate(self.members):
            member.best.discard_after(restored.step)
            if not member.best.steps():
                progress.best[i] = None
        self._warn(restored, changed)
        return restored, progress, changed

    def _begin_new_record(
        self, step: int, progress: Progress, changed: dict[str, list[Any]]
    ) -> None:
        """Moves the best models away if the task or the score has changed, since old and new scores
        cannot be compared."""
        kinds = ("env.", "eval_overrides.", "eval.best_by")
        keys = [key for key in changed if key.startswith(kinds)]
        if not keys:
            return
        for i, member in enumerate(self.members):
            member.best.discard_after(-1, member.path / "earlier" / "best")
            progress.best[i] = None
        old, new = changed[keys[0]]
        earlier = self.members[0].path / "earlier" / "best"
        others = f" (and {len(keys) - 1} more settings)" if len(keys) > 1 else ""
        print(
            f"{keys[0]} has changed from {old} to {new}{others}: scores from {step:,} control "
            "steps on cannot be compared with earlier ones; the best model so far was moved to "
            f"{earlier}",
            file=sys.stderr,
        )

    def _warn(self, restored: Restored, changed: dict[str, list[Any]]) -> None:
        """Prints how the resumed run will differ from one without an interruption."""
        train = self.config.train
        if "total_timesteps" in changed and train.settings.schedule.kind != "constant":
            print(
                f"{train.algo}.schedule now spans {train.total_timesteps:,} control steps: the "
                "result will differ from that of a run of this length from the start",
                file=sys.stderr,
            )
        saved_with = restored.meta["hardware"]["jax"]
        if saved_with != jax.__version__:
            print(
                f"warning: the checkpoint was saved with jax {saved_with}, and this is jax "
                f"{jax.__version__}: results are not the same bit for bit",
                file=sys.stderr,
            )

    # -- writing -------------------------------------------------------------------------

    def write_configuration(self, progress: Progress, changed: dict[str, list[Any]]) -> None:
        """Writes the configurations of the run and its members, and an entry in the history."""
        write_yaml(self.config, self.path / "config.yaml")
        for member in self.members:
            write_yaml(member.member.config, member.path / "config.yaml")
        history.record(self.path, progress.timesteps, changed)

    def save(self, state: Any, progress: Progress, policy: Any) -> None:
        """Starts saving a checkpoint.

        Args:
          state: the training state.
          progress: progress of training.
          policy: the `Policy` that is trained.
        """
        for member in self.members:
            member.best.wait()  # the best model of a checkpoint is always on disk
        self.checkpoints.save(
            progress.timesteps, self.items(state), _meta(self.config, progress, policy)
        )

    def save_best(
        self, i: int, params: Any, progress: Progress, policy: Any, row: dict[str, float]
    ) -> None:
        """Starts saving the best model of the `i`-th member.

        Args:
          i: index of the member.
          params: the member's `PolicyState`.
          progress: progress of training.
          policy: the `Policy` that is trained.
          row: results of the member's evaluation.
        """
        member = self.members[i]
        meta = _meta(member.member.config, progress, policy)
        member.best.save(progress.timesteps, {"policy": params}, meta | {"eval": row})

    def best(self, progress: Progress) -> Path:
        """The folder of a single run, or of a population's best member."""
        scores = [-float("inf") if score is None else score for score in progress.best]
        return self.members[scores.index(max(scores))].path

    def items(self, state: Any) -> dict[str, Any]:
        """A training state as checkpoint items. The policy is separate, so that it can be loaded
        alone; and the replay, since it may be left out."""
        items = {"policy": state.policy, "train": state.replace(policy=None, replay=None)}
        if self.config.train.checkpoint.replay and jax.tree.leaves(state.replay):
            items["replay"] = state.replay
        return items


class Elsewhere(RunFolder):
    """The folder of a run that another process writes; nothing here reads or writes it."""

    def __init__(self, path: Path, config: RunConfig, members: list[Member]):
        self.path, self.config, self._lock = path, config, None
        self.checkpoints = Nothing(path / "checkpoints")
        self.members = [MemberFolder(path, member) for member in members]

    def begin(self) -> Progress:
        return Progress(best=[None] * len(self.members))

    def write_configuration(self, progress: Progress, changed: dict[str, list[Any]]) -> None:
        """Does nothing."""

    def save(self, state: Any, progress: Progress, policy: Any) -> None:
        """Does nothing."""

    def save_best(
        self, i: int, params: Any, progress: Progress, policy: Any, row: dict[str, float]
    ) -> None:
        """Does nothing."""


class Nothing(Checkpointer):
    """The checkpoints of a folder that another process writes."""

    def steps(self) -> list[int]:
        return []

    def wait(self) -> None:
        """Does nothing."""


def _meta(config: RunConfig, progress: Progress, policy: Any) -> dict[str, Any]:
    """The metadata of a checkpoint."""
    return {
        "config": config.to_dict(),
        "progress": dataclasses.asdict(progress),
        "hardware": hardware(),
        "spaces": spaces(policy),
    }
