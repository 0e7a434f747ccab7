"""The number of iterations of each chunk of training."""

from __future__ import annotations

SECONDS = 2.0  # time of a chunk, after which its numbers are logged


class Rhythm:
    """Chooses the number of iterations of each chunk, so that a chunk takes about `SECONDS`.

    The first chunk, which includes compilation, and the second, which is timed, have one iteration.

    Args:
      fixed: number of iterations of every chunk; None: chosen by time.
    """

    def __init__(self, fixed: int | None):
        self._fixed, self._count, self._chunks = fixed, 1, 0

    def next(self, maximum: int) -> int:
        """Returns the number of iterations of the next chunk, at most `maximum`."""
        self._count = min(self._fixed or self._count, maximum)
        return self._count

    def took(self, seconds: float) -> None:
        """Records the time that the chunk took."""
        self._chunks += 1
        if self._chunks > 1:
            count = SECONDS / max(seconds, 1e-6) * self._count
            self._count = max(1, min(round(count), 8 * self._count))
