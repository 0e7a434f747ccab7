"""Gymnasium environments that take too long, and processes that must not outlive the training."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxrl.bridge.gym_in import gym_class
from jaxrl.bridge.processes import Processes
from jaxrl.checkpoint import Checkpointer
from jaxrl.config import resolve
from jaxrl.errors import UserError
from jaxrl.runtime.host import HostVector
from jaxrl.trainer import Trainer

WALK = "tests.gym_envs:Walk"


def walks(trouble, *, processes, count=2, limit=0.5, **kwargs):
    task = gym_class(WALK)(
        kwargs={"trouble": trouble, **kwargs}, processes=processes, step_timeout=limit
    )
    return HostVector(task, count)


@pytest.mark.parametrize(("processes", "restarted"), [(0, 2), (2, 2), (1, 2)])
def test_a_step_that_does_not_end_is_cut_and_the_world_made_anew(processes, restarted, capfd):
    vector = walks("sleeps", processes=processes, at=2)
    vector.start(seed=0)
    for _ in range(2):
        vector.send(np.zeros((2, 1), np.float32))
        obs, step = vector.receive()
    assert step.truncated.all() and (step.final_obs[:, 1] == 1).all() and (step.reward == 0).all()
    assert (obs[:, 1] == 0).all() and vector.restarts == restarted
    assert "took longer than env.step_timeout allows (0.5 s" in capfd.readouterr().err
    vector.send(np.zeros((2, 1), np.float32))
    assert (vector.receive()[0][:, 1] == 1).all()
    begun = time.monotonic()
    vector.close()
    assert time.monotonic() - begun < 2


def test_a_slow_step_within_the_limit_is_waited_for_in_each_world():
    vector = walks("", processes=1, count=3, pause=0.3)
    vector.start(seed=0)
    vector.send(np.zeros((3, 1), np.float32))  # 0.9 s for the process, 0.3 s for each world
    assert (vector.receive()[0][:, 1] == 1).all() and vector.restarts == 0
    vector.close()


def test_an_environment_that_is_never_made_or_reset_is_one_line():
    said = r"took longer than env.step_timeout allows \(0.2 s for a step, 1 s to make or reset .*\)"
    with pytest.raises(UserError, match=f"env.name: gym:{WALK}: a world {said} while the env"):
        walks("sleeps when made", processes=1, limit=0.2)
    with pytest.raises(UserError, match=f"gym:{WALK}: cannot be made: TimeoutError: {said}"):
        walks("sleeps when made", processes=0, limit=0.2)
    with pytest.raises(UserError, match=f"gym:{WALK}: a world {said} while the environment was"):
        walks("sleeps in reset", processes=1, limit=0.2).start(0)


def test_what_sleeps_in_its_trial_gets_processes():
    vector = walks("sleeps", processes=None)
    assert not vector.here


def small(**settings):
    network = {"policy_hidden": [8], "value_hidden": [8]}
    base = {
        "num_envs": 2,
        "chunk": 1,
        "total_timesteps": 10**6,
        "eval": {"every": 0},
        "log": {"console": False, "tensorboard": False},
        "ppo": {"num_steps": 16, "network": network},
        "sac": {
            "num_steps": 16,
            "learning_starts": 8,
            "batch_size": 8,
            "buffer_size": 400,
            "network": network,
        },
    }
    return resolve(base, settings, platform="none")


@pytest.mark.parametrize(
    ("algo", "processes", "number"),
    [("ppo", 0, signal.SIGINT), ("sac", 2, signal.SIGTERM)],
    ids=["here", "processes"],
)
def test_training_can_be_stopped_while_a_world_sleeps(tmp_path, algo, processes, number):
    kwargs = {"trouble": "sleeps", "limit": 10**6, "at": 40}
    env = {"gym": WALK, "kwargs": kwargs, "processes": processes, "step_timeout": None}
    trainer = Trainer(small(algo=algo, env=env), tmp_path)
    receive, vector = trainer.algo.worlds.receive, trainer.algo.worlds
    steps = []

    def counted():
        steps.append(1)
        if len(steps) == 40:  # this one sleeps
            threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        return receive()

    vector.receive = counted
    assert trainer.run() == 128 + number and len(steps) == 40
    assert trainer.progress.timesteps == 64 and Checkpointer(tmp_path / "checkpoints").steps() == [
        64
    ]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(trainer.state.policy)))


# -- processes -------------------------------------------------------------------------------------

SLEEPERS = f"""
import sys, time
import numpy as np
sys.path.insert(0, ".")
from jaxrl.bridge.gym_in import gym_class
from jaxrl.runtime.host import HostVector
if __name__ == "__main__":
    task = gym_class("{WALK}")(kwargs={{"trouble": "sleeps in C", "at": 1}}, processes=2)
    vector = HostVector(task, 2)
    vector.start(0)
    vector.send(np.zeros((2, 1), np.float32))
    print("ready", flush=True)
"""


def session(number):
    """States of a session's processes, by what /proc says; "Z": ended, and nobody asked how."""
    found = []
    for entry in os.scandir("/proc"):
        try:
            state, _, _, of = open(f"/proc/{entry.name}/stat").read().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(of) == number:
            found.append(state)
    return found


def run(program, *, kill=False, patience=0.0):
    """Runs a program in a session of its own; its status, and what is left of the session some
    seconds later."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if kill:
        assert process.stdout.readline() == "ready\n" and len(session(process.pid)) >= 3
        process.kill()
    status = process.wait(timeout=120)
    process.stdout.close()
    last = time.monotonic() + patience
    while set(session(process.pid)) - {"Z"} and time.monotonic() < last:
        time.sleep(0.1)
    return status, session(process.pid)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.parametrize(
    "last", ["vector.close()", "sys.exit(0)", "raise ValueError"], ids=["closed", "left", "error"]
)
def test_a_program_that_ends_leaves_no_process_behind(last):
    status, others = run(SLEEPERS + f"    {last}\n")
    assert status == (last == "raise ValueError") and not others


@linux
def test_a_program_that_is_killed_leaves_no_process_behind():
    status, others = run(SLEEPERS + "    time.sleep(1000)\n", kill=True, patience=10)
    assert status == -signal.SIGKILL and set(others) <= {"Z"}


@linux
def test_a_second_signal_ends_training_at_once(tmp_path):
    program = f"""
import os, signal, threading, time
from jaxrl.trainer import Trainer
from tests.test_gym_waits import WALK, small
env = {{"gym": WALK, "kwargs": {{"trouble": "sleeps in reset"}}, "processes": 1}}
trainer = Trainer(small(env=env), {str(tmp_path / "run")!r})
def twice():
    while trainer.algo.worlds._envs is None:
        time.sleep(0.05)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
threading.Thread(target=twice).start()
trainer.run()
"""
    ended, others = run(program, patience=10)
    assert ended == 130 and set(others) <= {"Z"}


def test_processes_end_when_their_pipes_are_closed():
    vector = walks("", processes=2)
    vector.start(0)
    assert isinstance(vector._envs, Processes)
    processes = list(vector._envs.processes)
    vector.close()
    assert [process.exitcode for process in processes] == [0, 0]  # not killed
