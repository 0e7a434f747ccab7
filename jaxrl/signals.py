"""Handling of SIGINT and SIGTERM during training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class SignalGuard:
    """Context manager that records the first SIGINT or SIGTERM; a second one ends the process.

    It has no effect outside of the main thread.

    Args:
      before_exit: called before a second signal ends the process.

    Attributes:
      number: number of the signal that was received; None: no signal yet.
    """

    def __init__(self, before_exit: Callable[[], None]):
        self.number: int | None = None
        self._before_exit = before_exit
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.number is not None:
            self._before_exit()
            os._exit(128 + number)
        self.number = number
