"""Several processes in one run, on one machine or on many (`jax.distributed`).

All processes run the same program on their own devices, and have to take the same decisions in
the same order. The first process decides: how long a chunk is, what an evaluation gave, what a
checkpoint holds. It alone writes files. With one process the functions here change nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from typing import Any

import jax
import numpy as np

from jaxrl.devices import is_key
from jaxrl.errors import UserError

FLAGS = ("coordinator", "num_processes", "process_id")
HEARTBEAT = 100  # seconds after which JAX ends the run if a process does not answer
WAIT = 60  # seconds that the first process has to answer
DONE = b"."
_address: dict[str, str] = {}  # where the first process is, if the flags say so


def start(flags: dict[str, Any]) -> None:
    """Connects this process with the others, if the flags ask for it. Call it before JAX begins.

    Args:
      flags: "distributed" ("auto": ask SLURM, Open MPI or the cloud), or "distributed.NAME" for
        all of `FLAGS`.

    Raises:
      UserError: flags are missing or wrong, or the others cannot be reached.
    """
    given = {name: flags[f"distributed.{name}"] for name in FLAGS if f"distributed.{name}" in flags}
    auto = flags.get("distributed")
    if auto is None and not given:
        return
    if auto is not None and (auto != "auto" or given):
        raise UserError(
            "--distributed: give auto, or --distributed.coordinator HOST:PORT together with "
            "--distributed.num_processes and --distributed.process_id"
        )
    if auto is None and len(given) < len(FLAGS):
        missing = next(name for name in FLAGS if name not in given)
        raise UserError(f"--distributed.{missing}: is needed too, on each process")
    settings: dict[str, Any] = {}
    if given:
        try:
            count, index = int(given["num_processes"]), int(given["process_id"])
        except ValueError:
            count, index = 0, -1
        if not 0 <= index < count:
            raise UserError(
                f"--distributed.process_id: got {given['process_id']} of "
                f"{given['num_processes']} processes, expected a number from 0 on"
            )
        settings = {"num_processes": count, "process_id": index}
        settings["coordinator_address"] = given["coordinator"]
        _address["host"] = given["coordinator"].rpartition(":")[0].strip("[]")
    try:
        jax.distributed.initialize(**settings, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:  # of several kinds
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--distributed: the processes did not find each other: {reason}"
        ) from error


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that decides and writes."""
    return jax.process_index() == 0


def share(tree: Any) -> Any:
    """The first process's arrays in all processes; those of the others only give the shapes."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]
    # As bytes, which the sum over processes, by which they are sent, cannot change.
    sent = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays]
    got = multihost_utils.broadcast_one_to_all([x for x in sent if x.size])
    received = iter(got)
    made = []
    for leaf, array in zip(leaves, arrays, strict=True):
        value: Any = array
        if array.size:
            value = np.asarray(next(received)).view(array.dtype).reshape(array.shape)
        made.append(jax.random.wrap_key_data(value) if is_key(leaf) else value)
    return jax.tree.unflatten(structure, made)


def share_json(value: Any) -> Any:
    """The first process's value of plain types, in all processes."""
    if count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(share(np.array(len(text))))
    text = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(share(text).tobytes())


def largest(numbers: list[int]) -> list[int]:
    """The largest value of each number among all processes."""
    if count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    gathered = multihost_utils.process_allgather(np.array(numbers))
    return np.asarray(gathered).max(0).tolist()


def gathered(tree: Any) -> Any:
    """Arrays that lie on the devices of all processes, as arrays of this process."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def gather(x: Any) -> Any:
        if is_key(x):
            return jax.random.wrap_key_data(gather(jax.random.key_data(x)))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(gather, tree)


class Watch:
    """Ends this process with one line when another one has ended before its time.

    JAX notices that too, but some of its collective operations wait for the heartbeat to fail, and
    then it aborts. So every process holds a connection to the first one, which closes when either
    ends.

    Args:
      advice: end of the line: what the user should do.
    """

    def __init__(self, advice: str):
        self._advice, self._connections = advice, []
        if count() == 1:
            return
        listener = socket.create_server(("", 0)) if is_first() else None
        port = listener.getsockname()[1] if listener else 0
        host, port = share_json([_address.get("host") or socket.gethostname(), port])
        if listener:
            with listener:
                self._connections = [listener.accept()[0] for _ in range(count() - 1)]
        else:
            self._connections = [socket.create_connection((host, port), timeout=WAIT)]
        for connection in self._connections:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        try:
            said = connection.recv(1)
        except OSError:
            said = b""
        if said == DONE:
            return
        print(f"error: another process of the run has ended; {self._advice}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)

    def done(self) -> None:
        """Says to the others that this process ends in time."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(DONE)


def leave(status: int) -> None:
    """Ends this process at once if the run has failed: JAX would wait for the others."""
    if status and jax.distributed.is_initialized() and count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
