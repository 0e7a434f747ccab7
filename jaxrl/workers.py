"""The workers of a study: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError

RESTARTS = 3  # of a worker that has died
GPU_SHARE = 0.9  # of a GPU's memory, which its workers divide


def command(folder: Path, trials: int, worker: int) -> list[str]:
    """The command of a worker: the arguments of Python.

    Args:
      folder: folder of the study.
      trials: number of trials of the study.
      worker: number of the worker, from 1.
    """
    main = ["-m", "jaxrl.tune", "--out", str(folder.resolve())]
    return [*main, "--trials", str(trials), "--worker", str(worker)]


def environment(share: float) -> dict[str, str]:
    """The environment of a worker that has a share of a GPU."""
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_SHARE * min(share, 1):.3f}"}
    return memory | os.environ


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a worker by this machine's Python."""
    return subprocess.Popen([sys.executable, *arguments], env=environment)


def in_processes(count: int, folder: Path, trials: int) -> int:
    """Works in processes of this machine; one that is killed is started again.

    Returns:
      the worst exit status of a worker.
    """

    def start(worker: int) -> subprocess.Popen:
        return _start(command(folder, trials, worker), environment(1 / count))

    workers = [start(i + 1) for i in range(count)]
    restarts, status = 0, 0
    for i in range(count):
        while True:
            try:
                result = workers[i].wait()
            except KeyboardInterrupt:  # the workers have received it too
                result = workers[i].wait()
            if result >= 0 or restarts >= RESTARTS * count:
                status = max(status, abs(result))
                break
            restarts += 1
            print(f"worker {i + 1} was killed; another one goes on", file=sys.stderr)
            workers[i] = start(i + 1)
    return status


def on_ray(count: int, folder: Path, trials: int, *, cpus: float, gpus: float) -> int:
    """Works in tasks of a Ray cluster: the one of RAY_ADDRESS, or of this machine.

    If there is none, one is started on this machine, and ends with the study. All machines of the
    cluster must see the folder under the same path. Ray starts a worker that dies again, on
    another machine if it must.

    Args:
      count: number of workers.
      folder: folder of the study.
      trials: number of trials of the study.
      cpus: CPU cores of a worker.
      gpus: GPUs of a worker; below 1: workers share a GPU and its memory.

    Returns:
      the worst exit status of a worker.

    Raises:
      UserError: Ray is missing, or the cluster lacks what a worker needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--backend ray needs Ray, which is not installed; run `pip install 'jaxrl[ray]'`"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(log_to_driver=True, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"--backend ray: cannot reach the cluster: {error}") from error
    try:
        check_room(ray.nodes(), cpus, gpus)
        task = ray.remote(_task).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=RESTARTS,
            retry_exceptions=[ChildProcessError],
            scheduling_strategy="SPREAD",
        )
        work = [task.remote(command(folder, trials, i + 1), gpus) for i in range(count)]
        try:
            return max(ray.get(work))
        except KeyboardInterrupt:
            for each in work:
                ray.cancel(each)
            ray.wait(work, num_returns=count, timeout=60)
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"--backend ray: a worker was lost {RESTARTS + 1} times ({reason}); continue with "
                f"--resume --out {folder}"
            ) from error
    finally:
        ray.shutdown()


def check_room(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> None:
    """Raises UserError if no machine of the cluster can hold a worker, which would wait forever."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus for m in machines):
        each = "; ".join(f"{m.get('CPU', 0):g} and {m.get('GPU', 0):g}" for m in machines)
        raise UserError(
            f"--cpus, --gpus: got {cpus:g} and {gpus:g} for a worker, which no machine of the "
            f"cluster has (CPU cores and GPUs of each: {each})"
        )


def _task(arguments: list[str], gpus: float) -> int:
    """Runs a worker inside a Ray task; returns its exit status.

    The worker has a process of its own, since JAX takes its device and memory for the whole life
    of a process, and Ray gives its processes to one task after another.
    """
    process = _start(
        arguments, environment(gpus) if gpus else os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    try:
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # it saves a checkpoint
            process.wait()
    if status < 0:
        raise ChildProcessError(f"a worker was killed by signal {-status}")
    return status
