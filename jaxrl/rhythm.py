"""How many iterations a chunk of training has."""

from __future__ import annotations

SECONDS = 2.0  # of a chunk, after which the host hears of it


class Rhythm:
    """After the first chunk, which is compiled, and one that is timed, as many iterations as take
    `SECONDS`.

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
            wanted = SECONDS / max(seconds, 1e-6) * self._count
            self._count = max(1, min(round(wanted), 8 * self._count))
