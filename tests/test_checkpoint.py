"""Saving and exact resuming, and everything that can go wrong with files."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrl.callbacks import Callback
from jaxrl.checkpoint import Checkpointer
from jaxrl.errors import UserError
from jaxrl.runs import load_policy
from jaxrl.trainer import Trainer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def leaves(state):
    """Every leaf as numbers, PRNG keys too."""
    return [
        np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(state)
    ]


def assert_same(one, two):
    for a, b in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def stop_after(trainer, chunks):
    """Makes the trainer stop as if by SIGTERM after so many chunks."""

    class Stop(Callback):
        seen = 0

        def on_chunk(self, trainer, row):
            self.seen += 1
            if self.seen == chunks:
                trainer._signal.number = signal.SIGTERM

    trainer.callbacks.append(Stop())


def in_two_parts(config, folder):
    """A run that was stopped halfway and resumed, which equals one without a break."""
    whole = Trainer(config, folder / "whole")
    assert whole.run() == 0
    first = Trainer(config, folder / "parts")
    stop_after(first, 2)
    assert first.run() == 143
    again = Trainer(config, folder / "parts", resume=True)
    assert again.progress.timesteps == whole.progress.timesteps // 2
    assert again.run() == 0
    assert_same(whole.state, again.state)
    return again


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(small_run, tmp_path):
    whole = Trainer(small_run(), tmp_path / "whole")
    assert whole.run() == 0

    first = Trainer(small_run(), tmp_path / "parts")
    stop_after(first, 2)
    assert first.run() == 143
    assert first.progress.timesteps == 2 * whole.progress.timesteps // 4

    second = Trainer(small_run(), tmp_path / "parts", resume=True)
    assert second.run() == 0
    assert_same(whole.state, second.state)


def test_exact_resume_on_the_ballbot(tmp_path):
    from jaxrl.config import resolve

    settings = {
        "env": {"name": "ballbot"},
        "num_envs": 8,
        "total_timesteps": 8 * 8 * 4,
        "chunk": 1,
        "ppo": {"num_steps": 8},
        "eval": {"every": 0},
        "checkpoint": {"every": 128},
        "log": {"console": False, "tensorboard": False},
    }
    config = resolve(settings, platform="none")
    whole = Trainer(config, tmp_path / "run")
    assert whole.run() == 0
    steps = Checkpointer(tmp_path / "run" / "checkpoints").steps()
    assert steps == [128, 256]
    os.rename(tmp_path / "run/checkpoints/256", tmp_path / "gone")
    again = Trainer(config, tmp_path / "run", resume=True)
    assert again.progress.timesteps == 128
    assert again.run() == 0
    assert_same(whole.state, again.state)


def test_csv_has_each_row_once_after_a_resume(small_run, tmp_path):
    Trainer(small_run(), tmp_path).run()
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    os.rename(tmp_path / "checkpoints/512", tmp_path / "gone")
    Trainer(small_run(), tmp_path, resume=True).run()
    again = (tmp_path / "progress.csv").read_text().splitlines()
    steps = [row.split(",")[0] for row in again]
    assert steps == ["time/total_timesteps", "128", "256", "384", "512"]
    assert len(rows) == len(again)


def damage_truncate(folder):
    for path in (folder / "train").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])


def damage_flip(folder):
    """Flips bits in the middle of every data file; Orbax itself does not notice."""
    for path in (folder / "train").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            raw = bytearray(path.read_bytes())
            for at in range(len(raw) // 3, len(raw), max(len(raw) // 40, 1)):
                raw[at] ^= 0x10
            path.write_bytes(raw)


def damage_meta(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"timesteps": 512', '"timesteps": 513'))


def damage_remove(folder):
    for path in (folder / "meta").iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_meta, damage_remove])
def test_a_damaged_newest_checkpoint_is_passed_over(damage, small_run, tmp_path, capfd):
    done = Trainer(small_run(), tmp_path)
    done.run()
    damage(tmp_path / "checkpoints" / "512")
    again = Trainer(small_run(), tmp_path, resume=True)
    assert again.progress.timesteps == 384
    warning = capfd.readouterr().err
    assert re.search(r"warning: checkpoint .*512 is damaged .*trying the previous one", warning)
    assert again.run() == 0
    assert_same(done.state, again.state)
    assert Checkpointer(tmp_path / "checkpoints").steps()[-1] == 512
    assert Trainer(small_run(), tmp_path, resume=True).progress.timesteps == 512


def test_when_all_are_damaged_it_says_so(small_run, tmp_path):
    Trainer(small_run(), tmp_path).run()
    for step in (384, 512):
        damage_meta(tmp_path / "checkpoints" / str(step))
        damage_remove(tmp_path / "checkpoints" / str(step))
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        Trainer(small_run(), tmp_path, resume=True)


def test_another_network_or_task_is_refused_with_the_shapes(small_run, tmp_path):
    Trainer(small_run(), tmp_path).run()
    other = small_run({"ppo": {"network": {"policy_hidden": [12]}}})
    with pytest.raises(
        UserError, match=r"another network.*saved float32\[8\], expected float32\[12\]"
    ):
        Trainer(other, tmp_path, resume=True)
    task = small_run({"env": {"name": "fragile"}, "num_envs": 16})
    with pytest.raises(UserError, match=r"another network, task.*saved float32\[8\].*\[16\]"):
        Trainer(task, tmp_path, resume=True)


def test_the_policy_loads_alone_and_acts_the_same(small_run, tmp_path):
    trainer = Trainer(small_run(), tmp_path)
    trainer.run()
    trained = load_policy(tmp_path / "checkpoints" / "512")
    worlds = jax.vmap(trained.config.env.reset)(jax.random.split(jax.random.key(0), 3))
    ours, _ = trained.actor.act(trained.params, worlds, (), jax.random.key(0))
    np.testing.assert_array_equal(ours, trainer.algo.policy(trainer.state.policy, worlds.obs)[0])
    assert load_policy(tmp_path).source.parent.name == "best"


def test_an_exception_saves_first(small_run, tmp_path, monkeypatch):
    trainer = Trainer(small_run({"checkpoint": {"every": 0}}), tmp_path)

    def fails(evaluator, rows):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trainer, "_evaluate", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.run()
    assert Checkpointer(tmp_path / "checkpoints").steps() == [128]
    again = Trainer(small_run(), tmp_path, resume=True)
    assert again.run() == 0


def test_a_full_disk_is_one_clear_error_and_old_checkpoints_stay(small_run, tmp_path, monkeypatch):
    trainer = Trainer(small_run(), tmp_path)
    trainer._save()
    trainer.folder.checkpoints.wait()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.folder.checkpoints._manager, "save", full)
    with pytest.raises(UserError, match=r"could not be written.*No space left.*are unchanged"):
        trainer.run()
    assert Trainer(small_run(), tmp_path, resume=True).progress.timesteps == 0


def test_killed_before_its_first_checkpoint_it_starts_again(small_run, tmp_path):
    Trainer(small_run(), tmp_path)  # config.yaml is there, no checkpoint is
    again = Trainer(small_run(), tmp_path, resume=True)
    assert again.progress.timesteps == 0
    assert again.run() == 0


def test_after_a_step_back_the_best_model_is_kept_anew(small_run, tmp_path):
    Trainer(small_run({"checkpoint": {"keep": 10}}), tmp_path).run()
    for step in (256, 384, 512):
        os.rename(tmp_path / f"checkpoints/{step}", tmp_path / f"gone{step}")
    again = Trainer(small_run(), tmp_path, resume=True)
    assert again.progress.timesteps == 128
    assert again.run() == 0
    assert load_policy(tmp_path).source.parent.name == "best"
    assert Checkpointer(tmp_path / "best").steps()[-1] <= 512


def test_divergence_ends_the_run_and_keeps_the_good_checkpoints(small_run, tmp_path, monkeypatch):
    trainer = Trainer(small_run(), tmp_path)
    save, seen = trainer._save, []

    def save_then_spoil():
        save()
        seen.append(1)
        if len(seen) == 2:
            spoiled = jax.tree.map(lambda x: x * np.nan, trainer.state.policy.params)
            trainer.state = trainer.state.replace(
                policy=trainer.state.policy.replace(params=spoiled)
            )

    monkeypatch.setattr(trainer, "_save", save_then_spoil)
    with pytest.raises(UserError, match="training diverged at 384 control steps"):
        trainer.run()
    assert Checkpointer(tmp_path / "checkpoints").steps() == [128, 256]


def test_nothing_is_pickled(small_run, tmp_path):
    Trainer(small_run(), tmp_path).run()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:2]
            assert not (head[:1] == b"\x80" and head[1:] in (b"\x03", b"\x04", b"\x05")), path
    json.loads((tmp_path / "checkpoints/512/meta/metadata").read_text())


COMMAND = (
    "import tests.conftest; from jaxrl import cli; from jaxrl.commands.train import main; "
    "cli.run(main)"
)


def start(folder, algo="ppo", *, resume=False):
    own = [] if algo == "ppo" else [
        "--sac.batch_size", "32", "--sac.buffer_size", "4096", "--sac.learning_starts", "256",
        "--sac.network.policy_hidden", "8", "--sac.network.value_hidden", "8",
    ]  # fmt: skip
    settings = [
        "--env.name", "countdown", "--num_envs", "64", "--total_timesteps", "10e6", "--chunk", "1",
        "--algo", algo, f"--{algo}.num_steps", "8", *own, "--eval.every", "0",
        "--checkpoint.every", "512", "--log.tensorboard", "false",
    ]  # fmt: skip
    where = ["--resume", str(folder)] if resume else [*settings, "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *where],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.02)


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_sigkill_at_random_moments_loses_at_most_what_came_after_the_last_save(algo, tmp_path):
    """Checkpoints come at every chunk here, so a kill often falls into a save."""
    rng = random.Random(0)
    store = Checkpointer(tmp_path / "checkpoints")
    process = start(tmp_path, algo)
    newest = 0
    for _ in range(3):
        wait_for(lambda n=newest: store.steps() and store.steps()[-1] > n + 1024)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        newest = store.steps()[-1]
        process = start(tmp_path, resume=True)
    wait_for(lambda: store.steps() and store.steps()[-1] > newest)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert f"--resume {tmp_path}" in errors


def test_ctrl_c_saves_and_exits_130(tmp_path):
    process = start(tmp_path)
    store = Checkpointer(tmp_path / "checkpoints")
    wait_for(lambda: len(store.steps()) > 0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
