"""Callbacks: a user's own code that is called during training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrl.trainer import Trainer


class Callback:
    """Base class of callbacks: override the methods that you need; each does nothing by default.

    `trainer.stop(reason)` ends training after the current chunk and saves everything. Numbers
    that a method adds to `row` are logged with it.
    """

    def on_chunk(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Called after each chunk of iterations, about every two seconds.

        Args:
          trainer: `trainer.progress.timesteps` control steps have been trained, and
            `trainer.state` is the training state.
          row: the logged numbers of the chunk, by the names in `jaxrl.logs.columns`; for a
            population the means and standard deviations over its members.
        """

    def on_evaluation(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Called after an evaluation; `row` also has the results of the evaluation."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """Called when the saving of a checkpoint has started; it is written in the background.

        Args:
          trainer: the trainer, as in `on_chunk`.
          folder: folder of the run's checkpoints.
        """
