"""SIGINT and SIGTERM while a run trains."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class SignalGuard:
    """While inside, the first SIGINT or SIGTERM is noted and a second one ends the process;
    only in the main thread.

    Args:
      before_exit: is called before the process ends.

    Attributes:
      number: of the signal that came; None: none did.
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
