"""Handling of Ctrl-C while a command imports modules, starts or ends.

There is nothing to save at these times, and KeyboardInterrupt would not be handled: an import may
even swallow it. Importing this module sets a handler for SIGINT that ends the process at once, if
the process is `python -m jaxrl.<command>`, `python -m jaxrl <command>` or `jaxrl <command>`.
"""

import os
import signal
import sys
from types import FrameType

_CLI = os.path.join(os.path.dirname(__file__), "cli.py")


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ends the process; raises KeyboardInterrupt if `cli.run` can handle it."""
    files = set()
    while frame:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    if _CLI not in files or any(file.startswith("<frozen importlib") for file in files):
        os._exit(130)
    raise KeyboardInterrupt


_as_command = sys.argv[:1] == ["-m"] and any(
    word == "jaxrl" or "jaxrl." in word for word in sys.orig_argv
)
_as_command = _as_command or os.path.basename(sys.argv[0] if sys.argv else "") == "jaxrl"
if _as_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
