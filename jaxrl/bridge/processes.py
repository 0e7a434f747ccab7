"""Runs objects of `worker` in separate processes, or in this one with an alarm that interrupts
calls that take too long."""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker, util
from typing import Any, cast

from gymnasium.vector.utils import CloudpickleWrapper

from jaxrl.bridge.worker import START, Deadline, Unusable, serve, view
from jaxrl.errors import Stopped
from jaxrl.runtime import never

# Interval (s) at which a wait checks the deadlines, and whether training was stopped.
TICK = 0.1
# Time (s) that a world has to end its step after training was stopped.
GRACE = 1.0
# Time limits (s) for starting a process, and for closing worlds.
STARTING, CLOSING = 60.0, 2.0

# A function that makes a process's object: (deadline, arrays [K, ...] of shared memory) -> object.
Make = Callable[[Deadline, list[Any]], Any]


class Lost(Exception):
    """A process died or took too long; the message is for the user."""


class _GracePeriod:
    """The time for which one wait continues after training was stopped."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped, self._end = stopped, math.inf

    def is_over(self) -> bool:
        now = time.monotonic()
        if self._stopped():
            self._end = min(self._end, now + GRACE)
        return now > self._end


# The arguments of `view`: shared memory, and shape and type of the array in it.
Shared = tuple[Any, tuple[int, ...], str]


class Processes:
    """Objects in separate processes, whose methods run at the same time. The processes end with
    this one, even if it is killed.

    Args:
      makes: one function for each process; it makes the object at the first call of a method.
      seconds: time limit of a step, as for `Deadline`.
      stopped: returns whether training was stopped.
      memory: shared arrays [N, ...], as arguments of `view`; each process gets its share of the
        N rows.
    """

    def __init__(
        self,
        makes: Sequence[Make],
        seconds: float | None,
        stopped: Callable[[], bool] = never,
        memory: Sequence[Shared] = (),
    ):
        # Not "fork": the copy would lack this process's threads. Not "forkserver": the server
        # would be the parent of the processes instead of this one.
        context = multiprocessing.get_context("spawn")
        self._stopped = stopped
        self._cells = context.RawArray("d", len(makes))
        self._pipes: list[connection.Connection] = []
        self.processes: list[Any] = []
        _open.add(self)
        for i, make in enumerate(makes):
            self._deadline = Deadline(seconds, self._cells, i)
            shares = [
                (
                    shared,
                    slice(i * shared[1][0] // len(makes), (i + 1) * shared[1][0] // len(makes)),
                )
                for shared in memory
            ]
            pipe, child_pipe = context.Pipe()
            self._pipes.append(pipe)
            process = context.Process(
                target=serve,
                args=(child_pipe, CloudpickleWrapper(cast(Any, make)), self._deadline, shares),
                daemon=True,
            )
            try:
                process.start()
            except OSError as error:
                self.close()
                raise Lost(f"a process cannot be started: {error}") from error
            child_pipe.close()
            self.processes.append(process)

    def send(self, method: str, arguments: Sequence[tuple]) -> None:
        """Starts the method of each process's object, and returns at once."""
        start = time.monotonic() + STARTING
        for i, (pipe, argument) in enumerate(zip(self._pipes, arguments, strict=True)):
            # Valid until the process sets a deadline itself.
            self._cells[i] = start + START * self._deadline.seconds
            with contextlib.suppress(OSError):  # it died, which `answers` reports
                pipe.send((method, argument))

    def answers(self) -> list[Any]:
        """Waits until the methods return, and gives their results.

        Raises:
          Unusable: a method raised an exception.
          Lost: a process died or took too long.
          Stopped: training was stopped.
        """
        waiting: dict[Any, int] = {pipe: i for i, pipe in enumerate(self._pipes)}
        answers: list[Any] = [None] * len(waiting)
        grace = _GracePeriod(self._stopped)
        while waiting:
            ready: list[Any] = connection.wait(list(waiting), TICK)
            for pipe in ready:
                answers[waiting.pop(pipe)] = _answer(pipe)
            if any(time.monotonic() > self._cells[i] for i in waiting.values()):
                raise Lost(f"a world {self._deadline.late()}")
            if waiting and grace.is_over():
                raise Stopped
        return answers

    def close(self) -> None:
        """Ends the processes, also in the middle of a call."""
        for pipe in self._pipes:
            pipe.close()  # processes that wait for a call then close their worlds and end
        end = time.monotonic() + CLOSING
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.0))
            process.kill()
            process.join()
        self._pipes, self.processes = [], []
        _open.discard(self)


def _answer(pipe: connection.Connection) -> Any:
    try:
        value, error_line = pipe.recv()
    except (EOFError, OSError) as error:
        raise Lost("a process died") from error
    if error_line is not None:
        raise Unusable(error_line)
    return value


class Here:
    """One object in this process, with the interface and the arguments of `Processes`.

    An alarm interrupts calls that take too long, if this is the main thread and the system has
    alarms. It cannot interrupt a call that keeps Python from running, such as a C function.
    """

    processes = ()

    def __init__(
        self,
        makes: Sequence[Make],
        seconds: float | None,
        stopped: Callable[[], bool] = never,
        memory: Sequence[Shared] = (),
    ):
        (self._make,), self._object = makes, None
        self._memory = [view(*shared) for shared in memory]
        self._stopped, self._interrupted = stopped, False
        self._cells = [math.inf]
        self._deadline = Deadline(seconds, self._cells)

    def send(self, method: str, arguments: Sequence[tuple]) -> None:
        """Stores the call for `answers`; the arguments must not change until then."""
        self._call = method, arguments[0]

    def answers(self) -> list[Any]:
        """Makes the stored call. Raises the same as `Processes.answers`, except `Lost`."""
        method, arguments = self._call
        with self._alarm(self._stopped):
            self._object = self._object or self._make(self._deadline, self._memory)
            return [getattr(self._object, method)(*arguments)]

    def close(self) -> None:
        """Closes the object, unless training was stopped in the middle of a call."""
        if self._object is not None and not self._interrupted:
            self._cells[0] = time.monotonic() + CLOSING
            with contextlib.suppress(TimeoutError), self._alarm(never):
                self._object.close()
        self._object = None

    @contextlib.contextmanager
    def _alarm(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Interrupts the block at its deadline, or `GRACE` after training was stopped."""
        main = threading.current_thread() is threading.main_thread()
        if not main or not hasattr(signal, "setitimer"):
            yield
            return
        grace = _GracePeriod(stopped)

        def check_time(*_: Any) -> None:
            if time.monotonic() > self._cells[0]:
                self._deadline.allow(START)  # time to handle this error
                raise TimeoutError(self._deadline.late())
            if grace.is_over():
                self._interrupted = True
                raise Stopped

        before = signal.signal(signal.SIGALRM, check_time)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


# Processes that are closed when Python exits, unless they were closed before.
_open: weakref.WeakSet[Processes] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for processes in list(_open):
        processes.close()


def _end_tracker() -> None:
    """Ends Python's resource tracker, and waits for it. It would end a moment after this process,
    and stay in the process table for ever if nothing collects orphaned processes."""
    tracker: Any = resource_tracker._resource_tracker
    with contextlib.suppress(AttributeError, TypeError, OSError):  # no tracker, or another Python
        os.close(tracker._fd)
        tracker._fd = None
        for _ in range(100):
            if os.waitpid(tracker._pid, os.WNOHANG)[0]:
                break
            time.sleep(0.01)


util.Finalize(None, _end_tracker, exitpriority=-1000)  # after its last user
