"""One run in two processes with two devices each."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrl import hosts
from jaxrl.checkpoint import Checkpointer
from jaxrl.errors import UserError
from jaxrl.runs import load_policy

SETTINGS = {
    "env.name": "pendulum",
    "num_envs": 64,
    "total_timesteps": 64 * 16 * 24,
    "chunk": 2,
    "ppo.num_steps": 16,
    "ppo.num_minibatches": 2,
    "ppo.network.policy_hidden": "16",
    "ppo.network.value_hidden": "16",
    "eval.every": 64 * 16 * 12,
    "eval.episodes": 8,
    "eval.final_episodes": 8,
    "checkpoint.every": 64 * 16 * 4,
    "log.tensorboard": "false",
}


def launch(folder, processes, *arguments, devices=4):
    """Starts the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jaxrl.train", f"--devices={devices}", *arguments]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices // processes)}
    started = []
    for i in range(processes):
        place = [f"--distributed.coordinator=127.0.0.1:{port}"]
        place += [f"--distributed.num_processes={processes}", f"--distributed.process_id={i}"]
        started.append(
            subprocess.Popen(
                [*command, *(place if processes > 1 else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=folder.parent,
            )
        )
    return started


def new(folder):
    return [f"--out={folder}", *(f"--{key}={value}" for key, value in SETTINGS.items())]


def finish(started):
    """Waits for the processes; returns their exit statuses and what they printed."""
    said = [process.communicate(timeout=180) for process in started]
    return [process.returncode for process in started], ["\n".join(texts) for texts in said]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A finished run of two processes."""
    folder = tmp_path_factory.mktemp("together") / "run"
    statuses, said = finish(launch(folder, 2, *new(folder)))
    assert statuses == [0, 0], said
    return folder, said


def policy(folder):
    steps = Checkpointer(folder / "checkpoints").steps()
    assert steps[-1] == SETTINGS["total_timesteps"]
    return [np.asarray(x) for x in jax.tree.leaves(load_policy(f"{folder}").params)]


def test_two_processes_train_what_one_process_trains_on_as_many_devices(together, tmp_path):
    folder, said = together
    assert "64 worlds on 4 devices" in said[0] and "control steps in" in said[0]
    assert "worlds" not in said[1] and "control steps" not in said[1]
    assert (folder / "eval" / "final.json").exists()
    alone = tmp_path / "alone"
    statuses, said = finish(launch(alone, 1, *new(alone)))
    assert statuses == [0], said
    rows, others = ((f / "progress.csv").read_text().splitlines() for f in (folder, alone))
    assert len(rows) == len(others) == 13
    for one, two in zip(policy(folder), policy(alone), strict=True):
        np.testing.assert_allclose(one, two, atol=5e-3)  # rounding, after 24 iterations


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_what_ends_one_process_ends_the_run_which_resumes(number, together, tmp_path):
    folder = tmp_path / "run"
    started = launch(folder, 2, *new(folder))
    checkpoints, end = Checkpointer(folder / "checkpoints"), time.monotonic() + 120
    while not checkpoints.steps() and time.monotonic() < end:
        time.sleep(0.05)
    started[1].send_signal(number)
    statuses, said = finish(started)
    if number == signal.SIGKILL:
        assert statuses == [2, -9], said
        assert said[0].count("error: another process of the run has ended") == 1
        assert "Traceback" not in said[0] and f"--resume {folder}" in said[0]
    else:
        assert statuses == [143, 143], said
    assert checkpoints.steps()[-1] < SETTINGS["total_timesteps"]
    statuses, said = finish(launch(folder, 2, f"--resume={folder}"))
    assert statuses == [0, 0], said
    for one, two in zip(policy(together[0]), policy(folder), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"distributed": "yes"}, "--distributed: give auto, or"),
        ({"distributed.process_id": "0"}, "--distributed.coordinator: is needed too"),
        (
            {
                "distributed.coordinator": "127.0.0.1:1",
                "distributed.num_processes": "2",
                "distributed.process_id": "2",
            },
            "process_id: got 2 of 2 processes",
        ),
    ],
)
def test_flags_that_say_too_little_are_refused(flags, said):
    with pytest.raises(UserError, match=said):
        hosts.start(flags)
