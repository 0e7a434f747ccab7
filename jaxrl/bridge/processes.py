"""Where objects of `worker` live: in processes of their own, or here under an alarm."""

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

# Seconds after which a wait looks whether it is over for another reason.
TICK = 0.1
# Seconds that a world is given to end its step, once training was told to stop.
GRACE = 1.0
# Seconds that a process may take to start, or worlds to be closed.
STARTING, CLOSING = 60.0, 2.0

# Makes a process's object: (deadline, arrays [K, O] of shared memory) -> object.
Make = Callable[[Deadline, list[Any]], Any]


class Lost(Exception):
    """A process died or took too long; the message is for the user."""


class _Patience:
    """Of one wait, which goes on for a moment after training was told to stop."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped, self._end = stopped, math.inf

    def is_over(self) -> bool:
        now = time.monotonic()
        if self._stopped():
            self._end = min(self._end, now + GRACE)
        return now > self._end


class Processes:
    """Objects in processes of their own, whose methods are called side by side. The processes
    end with this one, however it ends.

    Args:
      makes: what makes each process's object, when it is first asked for something.
      seconds: of a step, as for `Deadline`.
      stopped: whether training was told to stop.
      memory: shared float32 arrays and their lengths N; each process gets its share of the rows.
    """

    def __init__(
        self,
        makes: Sequence[Make],
        seconds: float | None,
        stopped: Callable[[], bool] = never,
        memory: Sequence[tuple[Any, int]] = (),
    ):
        # Not as copies of this one, whose threads would be missing in them; and not of a server,
        # which would be their parent in its place.
        context = multiprocessing.get_context("spawn")
        self._stopped = stopped
        self._cells = context.RawArray("d", len(makes))
        self._pipes: list[connection.Connection] = []
        self.processes: list[Any] = []
        _open.add(self)
        for i, make in enumerate(makes):
            self._deadline = Deadline(seconds, self._cells, i)
            rows = [
                ((cells, count), slice(i * count // len(makes), (i + 1) * count // len(makes)))
                for cells, count in memory
            ]
            pipe, theirs = context.Pipe()
            self._pipes.append(pipe)
            process = context.Process(
                target=serve,
                args=(theirs, CloudpickleWrapper(cast(Any, make)), self._deadline, rows),
                daemon=True,
            )
            try:
                process.start()
            except OSError as error:
                self.close()
                raise Lost(f"no process can be started: {error}") from error
            theirs.close()
            self.processes.append(process)

    def send(self, method: str, arguments: Sequence[tuple]) -> None:
        """Lets each process's object begin the method; returns at once."""
        begun = time.monotonic() + STARTING
        for i, (pipe, own) in enumerate(zip(self._pipes, arguments, strict=True)):
            # Until the process says by when it will be done.
            self._cells[i] = begun + START * self._deadline.seconds
            with contextlib.suppress(OSError):  # it died, which `answers` will see
                pipe.send((method, own))

    def answers(self) -> list[Any]:
        """Waits for what the methods return.

        Raises:
          Unusable: one raised an exception.
          Lost: a process died or took too long.
          Stopped: training was told to stop.
        """
        waiting: dict[Any, int] = {pipe: i for i, pipe in enumerate(self._pipes)}
        answers: list[Any] = [None] * len(waiting)
        patience = _Patience(self._stopped)
        while waiting:
            ready: list[Any] = connection.wait(list(waiting), TICK)
            for pipe in ready:
                answers[waiting.pop(pipe)] = _answer(pipe)
            if any(time.monotonic() > self._cells[i] for i in waiting.values()):
                raise Lost(f"a world {self._deadline.late()}")
            if waiting and patience.is_over():
                raise Stopped
        return answers

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        for pipe in self._pipes:
            pipe.close()  # tells those that wait to close their worlds
        patience = time.monotonic() + CLOSING
        for process in self.processes:
            process.join(max(patience - time.monotonic(), 0.0))
            process.kill()
            process.join()
        self._pipes, self.processes = [], []
        _open.discard(self)


def _answer(pipe: connection.Connection) -> Any:
    try:
        value, complaint = pipe.recv()
    except (EOFError, OSError) as error:
        raise Lost("a process died") from error
    if complaint is not None:
        raise Unusable(complaint)
    return value


class Here:
    """An object in this process, as `Processes` of one; arguments as there.

    What takes too long is interrupted by an alarm, where this is the main thread and the system
    has alarms: anything but what keeps Python from running.
    """

    processes = ()

    def __init__(
        self,
        makes: Sequence[Make],
        seconds: float | None,
        stopped: Callable[[], bool] = never,
        memory: Sequence[tuple[Any, int]] = (),
    ):
        (self._make,), self._made = makes, None
        self._memory = [view(*cells) for cells in memory]
        self._stopped, self._interrupted = stopped, False
        self._cells = [math.inf]
        self._deadline = Deadline(seconds, self._cells)

    def send(self, method: str, arguments: Sequence[tuple]) -> None:
        """Keeps in mind what to do; the arguments must not change until then."""
        self._asked = method, arguments[0]

    def answers(self) -> list[Any]:
        """Does it. Raises as `Processes.answers`, but for `Lost`."""
        method, arguments = self._asked
        with self._alarm(self._stopped):
            self._made = self._made or self._make(self._deadline, self._memory)
            return [getattr(self._made, method)(*arguments)]

    def close(self) -> None:
        """Closes the object, unless it was interrupted."""
        if self._made is not None and not self._interrupted:
            self._cells[0] = time.monotonic() + CLOSING
            with contextlib.suppress(TimeoutError), self._alarm(never):
                self._made.close()
        self._made = None

    @contextlib.contextmanager
    def _alarm(self, stopped: Callable[[], bool]) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()
        if not main or not hasattr(signal, "setitimer"):
            yield
            return
        patience = _Patience(stopped)

        def look(*_: Any) -> None:
            if time.monotonic() > self._cells[0]:
                self._deadline.allow(START)  # what answers this has time of its own
                raise TimeoutError(self._deadline.late())
            if patience.is_over():
                self._interrupted = True
                raise Stopped

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


# What is still to be closed, in case nobody does.
_open: weakref.WeakSet[Processes] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for processes in list(_open):
        processes.close()


def _end_tracker() -> None:
    """Python's server of shared memory ends a moment after this process, and for ever stays in
    the table of processes where nobody looks after orphans. So wait for it."""
    tracker: Any = resource_tracker._resource_tracker
    with contextlib.suppress(AttributeError, TypeError, OSError):  # none, or another Python's
        os.close(tracker._fd)
        tracker._fd = None
        for _ in range(100):
            if os.waitpid(tracker._pid, os.WNOHANG)[0]:
                break
            time.sleep(0.01)


util.Finalize(None, _end_tracker, exitpriority=-1000)  # after all that it may serve
