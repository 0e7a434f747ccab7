"""Replay: what comes out is what went in, over the right steps, and never across an end."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import Timestep, Vector
from jaxrl.rl.packing import Packing
from jaxrl.rl.replay import Replay
from jaxrl.rl.returns import ReturnScale, n_step_return
from jaxrl.rl.rollout import Rollout
from tests.toys import Countdown

GAMMA = 0.9
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def rollout(obs, action, step):
    """One step of all worlds."""
    rows = (obs, action, (), step.reward, step.terminated, step.truncated, step.final_obs)
    return Rollout(*jax.tree.map(lambda x: x[None], rows), last_obs=None, memory=())


def filled(env, rows, capacity, *, worlds=3, **settings):
    """A replay after `rows` steps; each action tells its observation's clock."""
    vector = Vector(env, worlds)
    replay = Replay(
        capacity, worlds, jnp.zeros(2), 1, episode_length=env.episode_length, **settings
    )

    def step(carry, _):
        envs, state = carry
        obs = envs.obs
        action = obs[:, 1:] / 100
        new, happened = vector.step(envs, action)
        return (new, replay.insert(state, rollout(obs, action, happened))), None

    start = (vector.init(jax.random.key(0)), replay.init())
    return replay, jax.jit(lambda: jax.lax.scan(step, start, length=rows)[0][1])()


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("rows", [9, 40])  # before and after the ring is full
@pytest.mark.parametrize("env", [Countdown(episode_length=4), Countdown(7, ends_at=5)])
def test_samples_span_n_steps_or_up_to_the_end_and_never_beyond(env, rows, n_step):
    replay, state = filled(env, rows, 13, n_step=n_step)
    batch = replay.sample(state, jax.random.key(2), 500, gamma=GAMMA)
    clock = np.asarray(batch.obs[:, 1])
    ends = env.ends_at or env.episode_length
    goes_on = np.asarray(batch.discount) > 0
    steps = np.where(goes_on, batch.next_obs[:, 1] - clock, ends - clock)
    wanted = np.minimum(n_step, ends - clock)
    assert (steps <= wanted).all()  # first episodes are staggered: they end earlier
    assert (steps == wanted).mean() > 0.6
    start, next_start = batch.obs[goes_on, 0], batch.next_obs[goes_on, 0]
    np.testing.assert_array_equal(next_start, start)  # the same episode
    np.testing.assert_allclose(batch.action[:, 0], clock / 100)
    wanted = np.array([sum(GAMMA**k for k in range(int(m))) for m in steps])
    np.testing.assert_allclose(batch.reward, wanted, rtol=1e-6)
    over = (env.ends_at > 0) & (clock + steps == ends)
    np.testing.assert_allclose(batch.discount, np.where(over, 0.0, GAMMA**steps), rtol=1e-6)
    assert over.any() == (env.ends_at > 0)
    if not env.ends_at:  # the final observation of a time limit was among them
        assert (batch.next_obs[:, 1] == ends).any()


def test_every_row_but_the_newest_is_drawn_evenly():
    replay, state = filled(Countdown(episode_length=1000), 40, 13)
    batch = replay.sample(state, jax.random.key(3), 24_000, gamma=GAMMA)
    drawn, counts = np.unique(np.asarray(batch.obs), axis=0, return_counts=True)
    assert len(drawn) == 12 * 3  # rows 27 to 38 of 3 worlds
    assert {round(100 * a) for a in np.asarray(state.steps[:, 0, 3])} == set(range(27, 40))
    assert set(drawn[:, 1]) == set(range(27, 39))
    np.testing.assert_allclose(counts / 24_000, 1 / 36, rtol=0.2)


def reference_n_step(reward, terminated, truncated, gamma):
    total, discount = 0.0, 1.0
    for k, r in enumerate(reward):
        total += discount * r
        discount *= gamma
        if terminated[k]:
            return total, 0.0, k
        if truncated[k]:
            return total, discount, k
    return total, discount, len(reward) - 1


def test_n_step_returns_against_a_loop():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(200, 5)).astype(np.float32)
    terminated, truncated = rng.random((200, 5)) < 0.15, rng.random((200, 5)) < 0.15
    ours = n_step_return(
        jnp.asarray(reward), jnp.asarray(terminated), jnp.asarray(truncated), gamma=0.9
    )
    wanted = [
        reference_n_step(*rows, 0.9) for rows in zip(reward, terminated, truncated, strict=True)
    ]
    for mine, theirs in zip(ours, zip(*wanted, strict=True), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_return_scale_is_the_std_of_discounted_returns():
    rng = np.random.default_rng(0)
    reward, done = rng.normal(size=(40, 3)), rng.random((40, 3)) < 0.1
    seen, running = [], np.zeros(3)
    for r, d in zip(reward, done, strict=True):
        running = running * 0.9 + r
        seen.append(running)
        running = np.where(d, 0, running)
    scale = ReturnScale.init(3)
    for part in (slice(0, 17), slice(17, 40)):
        scale = scale.update(jnp.asarray(reward[part]), jnp.asarray(done[part]), gamma=0.9)
    np.testing.assert_allclose(scale(jnp.ones(())), 1 / np.std(seen), rtol=1e-4)


def test_observations_are_kept_in_their_storage_types():
    example = {"image": jnp.zeros((2, 2)), "state": jnp.zeros(3), "id": jnp.zeros((), jnp.int32)}
    packing = Packing(example, {"image": "uint8", "state": "bfloat16", "id": "int32"})
    tree = {
        "image": jnp.array([[[0.4, 255.0], [300.0, -3.0]]]),
        "state": jnp.array([[1.0, 1.01, -2.0]]),
        "id": jnp.array([7]),
    }
    packed = packing.pack(tree)
    assert {kind: x.shape for kind, x in packed.items()} == {
        "int32": (1, 1), "uint8": (1, 4), "bfloat16": (1, 3)
    }  # fmt: skip
    back = packing.unpack(packed)
    assert all(back[key].dtype == example[key].dtype for key in example)
    np.testing.assert_array_equal(back["image"], [[[0, 255], [255, 0]]])
    np.testing.assert_allclose(back["state"], [[1.0, 1.01, -2.0]], rtol=1e-2)
    np.testing.assert_array_equal(back["id"], [7])


def test_dictionaries_go_through_the_ring():
    def obs(t):
        return {"a": jnp.full((1, 2), t, jnp.float32), "b": jnp.full((1,), 100 + t, jnp.int32)}

    replay = Replay(8, 1, jax.tree.map(lambda x: x[0], obs(0)), 1, episode_length=3)
    state = replay.init()
    assert set(state.obs) == {"float32", "int32"}
    for t in range(6):
        no = jnp.zeros(1, bool)
        limit = no | (t == 3)
        final = jax.tree.map(lambda x: 10 * x, obs(t))
        step = Timestep(jnp.ones(1), no, limit, final, no, no, jnp.zeros((1, 2)), no)
        state = replay.insert(state, rollout(obs(t), jnp.zeros((1, 1)), step))
    batch = replay.sample(state, jax.random.key(0), 100, gamma=0.9)
    assert batch.obs["b"].dtype == jnp.int32 and set(np.unique(batch.obs["b"])) == set(
        range(100, 105)
    )
    for before, after in (
        (batch.obs["a"][:, 0], batch.next_obs["a"][:, 1]),
        (batch.obs["b"], batch.next_obs["b"]),
    ):
        limit = batch.obs["b"] == 103
        np.testing.assert_array_equal(after, np.where(limit, 10 * before, before + 1))


def test_a_ring_shorter_than_a_sample_is_refused():
    with pytest.raises(ValueError, match="capacity: got 3"):
        Replay(3, 1, jnp.zeros(2), 1, episode_length=10, n_step=3)


SHARDED = """
import jaxrl, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxrl.rl.replay import Replay
from tests.test_replay import GAMMA, filled
from tests.toys import Countdown

env = Countdown(episode_length=4)
replay, state = filled(env, 20, 64, worlds=8, n_step=2)
mesh = jax.make_mesh((2,), ("worlds",), axis_types=(AxisType.Auto,))
axis = {"limits": P("worlds"), "inserted": P()}
def place(path, x):
    spec = axis.get(path[0].name, P(None, "worlds"))
    return jax.device_put(x, NamedSharding(mesh, spec))
split = jax.tree_util.tree_map_with_path(place, state)

sample = lambda s, key: replay.sample(s, key, 32, gamma=GAMMA)
compiled = jax.jit(sample).lower(split, jax.random.key(2)).compile()
one, two = jax.jit(sample)(state, jax.random.key(2)), compiled(split, jax.random.key(2))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
assert "all-gather" not in compiled.as_text()  # the ring stays where it is
"""


def test_the_ring_splits_over_devices_with_its_worlds():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_cut_ends_the_episodes_under_way_with_what_they_led_to():
    env = Countdown(episode_length=10_000)
    replay, state = filled(env, 9, 13)
    last = jnp.full((3, 2), 77.0)
    state = replay.cut(state, last)
    no = jnp.zeros(3, bool)
    step = Timestep(jnp.ones(3), no, no, jnp.ones((3, 2)), no, no, jnp.zeros((3, 2)), no)
    for _ in range(3):  # other episodes, whose observations are -5
        state = replay.insert(state, rollout(jnp.full((3, 2), -5.0), jnp.zeros((3, 1)), step))
    batch = replay.sample(state, jax.random.key(2), 500, gamma=GAMMA)
    before, after = np.asarray(batch.obs), np.asarray(batch.next_obs)
    crosses = (before[:, 1] != -5.0) & (after[:, 1] == -5.0)
    assert not crosses.any()
    assert (after == 77.0).any() and (np.asarray(batch.discount) > 0).all()


def test_a_cut_leaves_ends_as_they_are_and_an_empty_ring_empty():
    replay, state = filled(Countdown(episode_length=4), 8, 13)  # 4 divides 8 for no staggered world
    at = (state.inserted - 1) % 13
    ended = np.asarray(state.steps[at, :, 2] > 0)
    cut = replay.cut(state, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(cut.steps[at, ended, 2], state.steps[at, ended, 2])
    assert (np.asarray(cut.steps[at, :, 2]) > 0).all()
    empty = replay.cut(replay.init(), jnp.zeros((3, 2)))
    assert not np.asarray(empty.steps).any() and not np.asarray(empty.limits).any()
