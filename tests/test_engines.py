"""The engines behind the same tasks: what they agree on, and what C MuJoCo adds."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs_mjx.aloha_insertion import AlohaInsertion
from envs_mjx.ballbot import Ballbot
from envs_mjx.franka_reach import FrankaReach
from envs_mjx.kuka_pick_place import KukaPickPlace
from envs_mjx.physics import CPhysics, MJXPhysics, engines
from jaxrl import platform
from jaxrl.config import resolve
from tests.test_checkpoint import in_two_parts

WORLDS = 8


def test_the_fastest_engine_is_taken(monkeypatch):
    assert isinstance(Ballbot().physics, CPhysics)
    assert isinstance(Ballbot(engine="mjx").physics, MJXPhysics)
    assert isinstance(Ballbot(drive="omniwheel").physics, MJXPhysics)
    monkeypatch.setattr(platform, "target", lambda: "gpu")
    assert engines.fastest(rolling=False) == "warp"
    assert engines.fastest(rolling=True) == "mjx"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engines.fastest(rolling=False) == "mjx"


def played(task, steps, scale):
    """States of worlds that take small random actions, leaves [T, N, ...]."""
    starts = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), WORLDS))
    shape = (steps, WORLDS, *task.action_spec.shape)
    actions = scale * jax.random.uniform(jax.random.key(1), shape, minval=-1.0)

    def step(state, action):
        state = jax.vmap(task.step)(state, action)
        return state, state

    return jax.jit(lambda s: jax.lax.scan(step, s, actions)[1])(starts)


# Actions so small that no servo meets its torque limit: there MJX and C differ (docs/physics.md).
@pytest.mark.parametrize(
    ("task", "scale", "tolerance"),
    [
        (Ballbot(), 0.1, 1e-5),
        (Ballbot(drive="omniwheel"), 0.1, 1e-3),
        pytest.param(FrankaReach(), 0.05, 1e-4, marks=pytest.mark.slow),
        pytest.param(AlohaInsertion(), 0.1, 1e-3, marks=pytest.mark.slow),
        (KukaPickPlace(), 0.05, 1e-4),
        pytest.param(KukaPickPlace(grasp="magnet"), 0.05, 1e-4, marks=pytest.mark.slow),
    ],
    ids=["ballbot", "omniwheel", "reach", "insertion", "friction", "magnet"],
)
def test_engines_agree_for_ten_control_steps(task, scale, tolerance):
    mjx, c = (
        played(dataclasses.replace(task, engine=engine), 10, scale) for engine in ("mjx", "c")
    )
    np.testing.assert_allclose(c.physics.qpos, mjx.physics.qpos, atol=tolerance)
    np.testing.assert_allclose(c.reward, mjx.reward, atol=10 * tolerance)
    assert described(c) == described(mjx)  # a run resumes with another engine


def described(tree):
    """Path, shape and type of each leaf."""
    return [
        (jax.tree_util.keystr(path), x.shape, x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_forces_of_watched_pairs_are_mujocos():
    physics = AlohaInsertion(engine="c").physics
    qpos = jnp.asarray(physics.rest, jnp.float32)
    state = jax.jit(physics.step)(physics.init(qpos), jnp.zeros(14))
    data = mujoco.MjData(physics.model)
    data.qpos[:] = qpos
    mujoco.mj_step(physics.model, data, physics.substeps - 1)
    mujoco.mj_forward(physics.model, data)  # the last step, without its integration
    forces, force = np.zeros(len(physics.watch)), np.zeros(6)
    for i, contact in enumerate(data.contact):
        pair = sorted(contact.geom.tolist())
        mujoco.mj_contactForce(physics.model, data, i, force)
        forces += force[0] * np.array([sorted(p) == pair for p in physics.watch.tolist()])
    assert (forces > 0.1).sum() >= 2  # peg and socket lie on the table
    np.testing.assert_allclose(state.touch, forces, atol=1e-4)


def test_a_world_that_is_not_finite_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    physics = KukaPickPlace(engine="c").physics
    states = jax.vmap(physics.init)(jnp.tile(jnp.asarray(physics.rest, jnp.float32), (4, 1)))
    ctrl = jnp.tile(jnp.asarray(physics.rest[:8], jnp.float32), (4, 1))
    step = jax.jit(jax.vmap(physics.step))
    good = step(states, ctrl)
    bad = step(states.replace(qpos=states.qpos.at[2, 3].set(jnp.nan)), ctrl)
    assert np.isnan(bad.qpos[2]).any()
    for i in (0, 1, 3):
        np.testing.assert_array_equal(bad.qpos[i], good.qpos[i])
    np.testing.assert_array_equal(step(states, ctrl).qpos, good.qpos)  # nothing is left behind
    assert list(tmp_path.iterdir()) == []  # such as MuJoCo's log


def test_any_number_of_threads_gives_the_same_bits():
    task = KukaPickPlace(engine="c")
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 16)).physics
    fields = ("qpos", "qvel", "qacc_warmstart", "mocap_pos", "mocap_quat")
    inputs = {name: np.asarray(getattr(states, name)) for name in fields}
    inputs["ctrl"] = np.random.default_rng(0).uniform(-1, 1, (16, 8)).astype(np.float32)

    results = []
    for threads in (1, 3):
        physics = CPhysics(**task._model)
        physics._threads = lambda count, threads=threads: threads
        results.append(physics.advance(inputs, 40))
    for name, values in results[0].items():
        np.testing.assert_array_equal(values, results[1][name])


def test_mujocos_clock_stands_still_while_worlds_are_stepped_and_only_then():
    calls = []

    def clock():
        calls.append(None)
        return 0.0

    physics = FrankaReach(engine="c").physics
    inputs = {"qpos": physics.rest[None], "qvel": np.zeros((1, 7)), "ctrl": np.zeros((1, 7))}
    mujoco.set_mjcb_time(clock)
    try:
        physics.advance(inputs, 1)
        assert not calls
        mujoco.mj_step(physics.model, mujoco.MjData(physics.model))
        assert calls
    finally:
        mujoco.set_mjcb_time(None)


@pytest.mark.parametrize("engine", ["c", "warp"])
def test_worlds_with_other_fields_of_their_own_leave_nothing_behind(engine):
    physics = FrankaReach(engine=engine).physics
    qpos = jnp.asarray(physics.rest)
    step, ctrl = jax.jit(physics.step), jnp.full(7, 0.3)
    plain = step(physics.init(qpos), ctrl).qpos
    heavy = step(physics.init(qpos, fields={"body_mass": 3 * physics.field("body_mass")}), ctrl)
    down = {"opt.gravity": -physics.field("opt.gravity")}
    up = step(physics.init(qpos, fields=down), ctrl)
    assert np.abs(heavy.qpos - plain).max() > 1e-4 and np.abs(up.qpos - plain).max() > 1e-4
    np.testing.assert_array_equal(step(physics.init(qpos), ctrl).qpos, plain)
    fresh = type(physics)(physics.xml, substeps=4, sites=("grip",), jacobians=True)
    np.testing.assert_array_equal(
        jax.jit(fresh.step)(fresh.init(qpos, fields=down), ctrl).qpos, up.qpos
    )


@pytest.mark.parametrize("engine", ["c", "warp"])
def test_a_run_resumes_bit_for_bit(engine, tmp_path):
    config = resolve(
        {
            "env": {"name": "franka_reach", "engine": engine},
            "num_envs": 8,
            "total_timesteps": 512,
            "chunk": 2,
            "ppo": {"num_steps": 8, "network": {"policy_hidden": [8], "value_hidden": [8]}},
            "eval": {"every": 0, "final_episodes": 0},
            "checkpoint": {"every": 128},
            "log": {"console": False, "tensorboard": False},
        },
        platform="none",
    )
    in_two_parts(config, tmp_path)


def test_what_fails_in_a_simulator_is_the_programs_error(monkeypatch):
    def advance(self, inputs, steps):
        raise RuntimeError("out of paper")

    class Broken(CPhysics):
        pass

    monkeypatch.setattr(Broken, "advance", advance)
    physics = Broken(Ballbot().physics.xml, substeps=1)
    state = physics.init(jnp.asarray(physics.rest))
    with pytest.raises(Exception, match="RuntimeError: out of paper"):
        jax.block_until_ready(jax.jit(physics.step)(state, jnp.zeros(3)).qpos)


UNFINISHED = """
import sys, jaxrl, jax
from pathlib import Path
from jaxrl.config import resolve
from jaxrl.trainer import Trainer
def main():
    config = resolve({"env": {"name": "ballbot", "engine": "c"}}, platform="cpu")
    trainer = Trainer(config, Path(sys.argv[1]))  # its worlds are still being made
    if sys.argv[2] == "raises":
        raise ValueError("boom")
main()
"""


@pytest.mark.parametrize(("end", "status"), [("raises", 1), ("returns", 0)])
def test_python_can_end_while_a_program_still_calls_c(end, status, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", UNFINISHED, str(tmp_path), end],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert ("boom" in done.stderr) == (end == "raises")


PROGRAM = """
import sys, jaxrl, jax, jax.numpy as jnp, logging
logging.basicConfig(level="DEBUG")
from envs_mjx.ballbot import Ballbot
physics = Ballbot(engine=sys.argv[1]).physics
step = jax.jit(physics.step)
print(step(physics.init(jnp.asarray(physics.rest)), jnp.ones(3)).qpos.tolist())
"""


@pytest.mark.parametrize("engine", ["c", "warp"])
def test_programs_with_calls_are_cached_for_other_processes(engine, tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first, second = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM, engine],
            capture_output=True,
            text=True,
            env=environment,
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    hit = "Persistent compilation cache hit for 'jit_step'"
    assert hit not in first.stderr and hit in second.stderr
