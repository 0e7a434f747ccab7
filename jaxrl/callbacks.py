"""Callbacks: a user's own code while a run trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrl.trainer import Trainer


class Callback:
    """Derive from it and replace what is of use; by itself it does nothing.

    `trainer.stop(reason)` ends training after the chunk, and everything is saved. What a method
    adds to the row is logged with it.
    """

    def on_chunk(self, trainer: Trainer, row: dict[str, float]) -> None:
        """After each chunk of iterations, about every two seconds.

        Args:
          trainer: `trainer.progress.timesteps` control steps have been trained, and
            `trainer.state` is the training state.
          row: what is logged of the chunk, by the names in `jaxrl.logs.columns`; of a population
            the means over its members.
        """

    def on_evaluation(self, trainer: Trainer, row: dict[str, float]) -> None:
        """After an evaluation, whose numbers are in the row too."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """After a checkpoint has been started; it is written meanwhile.

        Args:
          trainer: as above.
          folder: of the checkpoints.
        """
