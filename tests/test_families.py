"""Tasks of a family, `family:name`: environments of Brax and of MuJoCo Playground."""

import dataclasses
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrl import envs
from jaxrl.algos import PPO, PPOConfig
from jaxrl.bridge import brax as bridge
from jaxrl.config import resolve
from jaxrl.envs import ArraySpec, Task, Vector
from jaxrl.errors import UserError
from jaxrl.options import build
from jaxrl.runtime.compiled import iterate

BRAX = [("inverted_pendulum", 4, 1), ("reacher", 11, 2)]


def brax_task(name, **settings):
    pytest.importorskip("brax")
    return envs.env_class(f"brax:{name}")(**settings)


def play(vector, steps):
    """Timesteps [steps, N], observations before each, and the last state, under random
    actions."""
    size = vector.env.action_spec.shape[0]

    def act(state, key):
        action = jax.random.uniform(key, (vector.num_envs, size), minval=-1.0, maxval=1.0)
        new, step = vector.step(state, action)
        return new, (step, state.obs)

    @jax.jit
    def run(key):
        start = vector.init(key, stagger=False)
        end, (out, seen) = jax.lax.scan(act, start, jax.random.split(key, steps))
        return out, seen, end

    return jax.device_get(run(jax.random.key(0)))


@pytest.mark.parametrize(("name", "size", "actions"), BRAX)
def test_a_brax_environment_is_a_task(name, size, actions):
    task = brax_task(name)
    assert isinstance(task, Task)
    assert (task.episode_length, task.backend) == (1000, "generalized")
    assert task.observation_spec.shape == (size,)
    assert (task.action_spec.shape, task.action_spec.low) == ((actions,), -1.0)
    assert task.control_dt == pytest.approx(0.04 if name == "inverted_pendulum" else 0.02)
    start = jax.eval_shape(task.reset, jax.random.key(0))
    after = jax.eval_shape(task.step, start, jax.ShapeDtypeStruct((actions,), jnp.float32))
    assert start == after  # structure, shapes, types
    assert not any(x.weak_type for x in jax.tree.leaves((start, after)))
    assert start.terminated.dtype == bool


def test_brax_episodes_truncate_start_afresh_and_sum_their_rewards():
    vector = Vector(brax_task("reacher", episode_length=6), 4)
    assert vector.statistics == ("return", "length", "reward/ctrl", "reward/dist")
    steps, seen, end = play(vector, 20)
    assert np.flatnonzero(steps.truncated[:, 0]).tolist() == [5, 11, 17]
    assert not steps.terminated.any() and not steps.nonfinite.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(end) if x.dtype == np.float32)
    target = seen[:, :, 4:6]  # the same within an episode, another in each
    np.testing.assert_allclose(target[0:6], np.broadcast_to(target[0], (6, 4, 2)), atol=0.01)
    starts = target[::6].reshape(-1, 2)
    assert np.linalg.norm(starts[:, None] - starts, axis=-1)[~np.eye(len(starts), dtype=bool)].min()
    total, _, ctrl, dist = steps.episode[5].T
    np.testing.assert_allclose(total, ctrl + dist, rtol=1e-5)
    np.testing.assert_allclose(total, steps.reward[:6].sum(0), rtol=1e-5)


def test_a_fallen_brax_pendulum_terminates():
    vector = Vector(brax_task("inverted_pendulum", episode_length=7), 8)
    assert vector.statistics == ("return", "length")  # it has no metrics
    steps, seen, _ = play(vector, 20)
    assert steps.terminated.any() and steps.truncated.any()
    assert not (steps.terminated & steps.truncated).any()
    np.testing.assert_array_equal(steps.terminated, np.abs(steps.final_obs[..., 1]) > 0.2)
    done = steps.terminated | steps.truncated
    assert (np.abs(seen[1:][done[:-1]]) <= 0.0101).all()  # a start, not the fallen one
    assert (steps.reward == 1.0).all()


def test_ppo_trains_on_a_brax_environment():
    settings = {"num_steps": 8, "network": {"policy_hidden": [16], "value_hidden": [16]}}
    task = brax_task("inverted_pendulum", backend="spring")
    algo = PPO(build(PPOConfig, settings), task, task.runtime().worlds(8), 1)
    state = jax.jit(algo.init)(jax.random.key(0))
    after, (metrics, _) = jax.jit(partial(iterate, algo))(state)
    assert all(np.isfinite(x) for x in metrics.values())
    before, moved = (jax.tree.leaves(s.policy.params) for s in (state, after))
    assert any((a != b).any() for a, b in zip(before, moved, strict=True))


def test_a_family_task_is_configured_like_any_other():
    pytest.importorskip("brax")
    section = {"name": "brax:reacher", "backend": "spring", "episode_length": "1e2"}
    config = resolve({"env": section}, platform="none")
    assert (config.env.backend, config.env.episode_length) == ("spring", 100)
    assert resolve(config.to_dict(), platform="none") == config
    with pytest.raises(UserError, match=r"env.backend: got 'warp', expected one of 'generalized'"):
        resolve({"env": section | {"backend": "warp"}}, platform="none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brx:ant", r"^env.name: unknown family 'brx'; did you mean 'brax'\? \(known: brax, "),
        ("antt", r"^env.name: unknown task 'antt' \(known: .*ballbot, .*, brax:<name>, "),
        ("brax:antt", r"^env.name: unknown task 'brax:antt'; did you mean 'brax:ant'\?"),
    ],
)
def test_wrong_names_are_refused(name, message):
    if name.startswith("brax:"):
        pytest.importorskip("brax")
    with pytest.raises(UserError, match=message):
        envs.env_class(name)


@pytest.mark.parametrize(
    ("task", "module"), [("brax:ant", "brax.envs"), ("playground:X", "mujoco_playground")]
)
def test_a_missing_package_is_named(task, module, monkeypatch):
    bridge.brax_class.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    message = rf"^env.name: {task} needs `pip install 'jaxrl\[{task.partition(':')[0]}\]'`"
    with pytest.raises(UserError, match=message):
        envs.env_class(task)


@struct.dataclass
class OddState:
    data: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict
    info: dict


class OddEnv:
    """Everything that such environments do and a scan does not forgive."""

    action_size, dt = 1, np.float32(0.02)

    def __init__(self):
        self.constant = jnp.arange(3.0)  # made at first use, perhaps while tracing

    def reset(self, rng):
        start = jax.random.uniform(jax.random.wrap_key_data(rng))
        obs = {"state": self.constant + start, "privileged": start[None]}
        metrics = {"reward_one": 0, "height": jnp.zeros(())}
        return OddState({"t": 0, "time": 0.0}, obs, 0.0, 0.0, metrics, {"rng": rng, "count": 0})

    def step(self, state, action):
        state.metrics["reward_one"] = 1.0  # in place, and another type
        state.info.update(count=state.info["count"] + 1, new=action)
        data = {"t": state.data["t"] + 1, "time": state.data["time"] + self.dt}
        obs = {"state": self.constant, "privileged": jnp.ones(1)}
        return state.replace(data=data, obs=obs, reward=1, done=data["t"] >= 3)


@dataclasses.dataclass(frozen=True)
class Odd(bridge.BridgedTask):
    episode_length: int = 10
    part = "data"

    def _make(self):
        return OddEnv()


def test_the_state_keeps_its_structure_and_types_whatever_the_environment_does():
    task = Odd()
    start = jax.jit(task.reset)(jax.random.key(0))
    after = jax.jit(task.step)(start, jnp.zeros(1))
    assert jax.tree.structure(start) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, False)
    assert task.observation_spec == {"privileged": ArraySpec((1,)), "state": ArraySpec((3,))}
    assert task.control_dt == 0.02
    assert start.info.metrics["reward_one"] == 0  # not written over
    vector = Vector(task, 4)
    assert vector.metric_names == ("height", "reward/one")
    steps, _, _ = play(vector, 9)
    assert np.flatnonzero(steps.terminated[:, 0]).tolist() == [2, 5, 8]
    assert (steps.episode[2, :, 3] == 3.0).all()


def test_a_playground_environment_is_a_task():
    pytest.importorskip("mujoco_playground")
    task = envs.env_class("playground:CartpoleBalance")()
    assert isinstance(task, Task)
    assert (task.episode_length, task.control_dt) == (1000, 0.01)
    vector = Vector(dataclasses.replace(task, episode_length=6), 4)
    assert "reward/upright" in vector.metric_names
    steps, _, _ = play(vector, 20)
    assert np.flatnonzero(steps.truncated[:, 0]).tolist() == [5, 11, 17]
    assert not steps.terminated.any() and not steps.nonfinite.any()
    assert (steps.reward > 0).all()
    with pytest.raises(UserError, match="did you mean 'playground:CartpoleBalance'"):
        envs.env_class("playground:CartpoleBalanc")


@pytest.mark.parametrize("name", ["brax:reacher", "playground:CartpoleBalance"])
def test_pictures_or_why_not(name):
    pytest.importorskip("brax" if name.startswith("brax") else "mujoco_playground")
    task = envs.env_class(name)()
    physics = jax.jit(task.reset)(jax.random.key(0)).physics
    try:
        frames = task.render(jax.tree.map(lambda x: jnp.stack([x] * 3), physics), 2)
    except UserError as error:
        assert "libegl1" in str(error)
    else:
        assert frames.shape == (2, 480, 640, 3) and frames.dtype == np.uint8 and frames.std() > 1
