"""MuJoCo Warp behind the same tasks, on a CPU."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx.aloha_insertion import AlohaInsertion
from envs_mjx.ballbot import Ballbot
from envs_mjx.franka_reach import FrankaReach
from envs_mjx.kuka_pick_place import KukaPickPlace
from envs_mjx.physics import make_physics
from jaxrl import devices
from jaxrl.config import resolve
from jaxrl.errors import UserError
from jaxrl.trainer import Trainer
from tests.test_engines import described, played

BOXES = """
<mujoco><option timestep="0.005"/><worldbody><geom name="floor" type="plane" size="1 1 1"/>
<body pos="0 0 .1"><freejoint/><geom name="box" type="box" size=".1 .1 .1"/></body>
</worldbody></mujoco>
"""
# A box on the floor and a turned box on it, of whose contacts MJX may keep only one.
STAR = """
<mujoco>
  <custom><numeric name="max_contact_points" data="1"/></custom>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 .0995"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
    <body pos="0 0 .298" euler="0 0 45"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize(
    ("task", "scale", "tolerance"),
    [
        (Ballbot(), 0.1, 1e-5),
        (Ballbot(terrain="hills", terrain_count=2), 0.1, 1e-5),
        (FrankaReach(), 0.05, 1e-4),
        (AlohaInsertion(), 0.1, 1e-3),
        (KukaPickPlace(), 0.05, 1e-3),
        (KukaPickPlace(grasp="magnet"), 0.05, 1e-3),
    ],
    ids=["ballbot", "terrain", "reach", "insertion", "friction", "magnet"],
)
def test_warp_agrees_with_c(task, scale, tolerance):
    warp, c = (played(dataclasses.replace(task, engine=e), 10, scale) for e in ("warp", "c"))
    np.testing.assert_allclose(warp.physics.qpos, c.physics.qpos, atol=tolerance)
    np.testing.assert_allclose(warp.reward, c.reward, atol=10 * tolerance)
    if c.physics.touch is not None:
        np.testing.assert_allclose(warp.physics.touch, c.physics.touch, atol=0.05)
    assert described(warp) == described(c)  # a run resumes with another engine


def test_all_axes_of_vmap_are_worlds():
    physics = FrankaReach(engine="warp").physics
    qpos = jnp.asarray(physics.rest) + 0.01 * jnp.arange(6.0)[:, None]
    states = jax.vmap(physics.init)(qpos)
    flat = jax.jit(jax.vmap(physics.step, in_axes=(0, None)))(states, jnp.zeros(7))
    nested = jax.jit(jax.vmap(jax.vmap(physics.step, in_axes=(0, None)), in_axes=(0, None)))(
        jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), states), jnp.zeros(7)
    )
    np.testing.assert_array_equal(nested.qpos.reshape(6, -1), flat.qpos)


def test_contacts_without_room_are_an_error_and_end_only_their_world():
    physics = make_physics(BOXES, engine="warp", substeps=1, max_contacts=3)
    low, high = jnp.asarray(physics.rest).at[2].set(0.099), jnp.asarray(physics.rest).at[2].set(1.0)
    states = jax.vmap(physics.init)(jnp.stack([low, high, high]))
    step = jax.jit(jax.vmap(physics.step, in_axes=(0, None)))
    assert np.isfinite(step(states, jnp.zeros(0)).qpos).all()  # nine contacts for all worlds
    physics.check()
    states = jax.vmap(physics.init)(jnp.stack([low, low, low]))
    assert np.isnan(step(states, jnp.zeros(0)).qpos).any()
    with pytest.raises(UserError, match="than the 3 that they have room for"):
        physics.check()
    physics.check()  # said once


def test_there_is_room_for_all_contacts_that_can_occur():
    physics = make_physics(STAR, engine="warp", substeps=1)
    step = jax.jit(jax.vmap(physics.step, in_axes=(0, None)))
    states = jax.vmap(physics.init)(jnp.asarray(physics.rest, jnp.float32)[None])
    assert np.isfinite(step(states, jnp.zeros(0)).qpos).all()
    physics.check()


def test_training_ends_with_the_engines_error(tmp_path, monkeypatch):
    config = resolve(
        {
            "env": {"name": "franka_reach", "engine": "warp"},
            "num_envs": 4,
            "total_timesteps": 64,
            "ppo": {"num_steps": 4, "network": {"policy_hidden": [8], "value_hidden": [8]}},
            "eval": {"every": 0, "final_episodes": 0},
            "log": {"console": False, "tensorboard": False},
        },
        platform="none",
    )
    trainer = Trainer(config, tmp_path / "run")
    program = next(iter(config.env.unwrapped.physics._used.values()))
    program._arrays["cpu"].found.fill_(1)
    with pytest.raises(UserError, match="max_contacts"):
        trainer.run()


def test_worlds_on_several_devices_are_those_of_one():
    physics = FrankaReach(engine="warp").physics
    states = jax.vmap(physics.init)(jnp.asarray(physics.rest) + 0.01 * jnp.arange(8.0)[:, None])
    step = jax.vmap(lambda state: physics.step(state, jnp.zeros(7)))
    split = jax.shard_map(
        step,
        mesh=devices.mesh(4),
        in_specs=devices.spec(0),
        out_specs=devices.spec(0),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(split)(states).qpos, jax.jit(step)(states).qpos)


def test_what_cannot_be_stepped_is_refused(monkeypatch):
    with pytest.raises(UserError, match="rolling geoms; use mjx"):
        _ = Ballbot(engine="warp", drive="omniwheel").physics
    monkeypatch.setitem(sys.modules, "warp", None)
    monkeypatch.delitem(sys.modules, "envs_mjx.physics.warp", raising=False)
    with pytest.raises(UserError, match=r"pip install 'jaxrl\[warp\]'"):
        _ = Ballbot(engine="warp").physics


@pytest.mark.parametrize("task", [FrankaReach(sight="rgb"), AlohaInsertion(sight="rgb")])
def test_warp_and_rays_draw_the_same_shapes(task):
    """Light and floor look different; bright colours and dark parts are in the same places."""
    keys = jax.random.split(jax.random.key(0), 3)
    rays = np.asarray(jax.jit(jax.vmap(task.reset))(keys).obs["image"], float)
    other = dataclasses.replace(task, renderer="warp")
    starts = jax.jit(jax.vmap(other.reset))(keys)
    warp = np.asarray(starts.obs["image"], float)
    assert warp.shape == rays.shape and 100 < warp.mean() < 255
    for camera in range(rays.shape[-1] // 3):
        a, b = (x[..., 3 * camera : 3 * camera + 3] for x in (rays, warp))
        colored = [np.ptp(x, axis=-1) > 60 for x in (a, b)]
        dark = [x.max(-1) < 90 for x in (a, b)]
        for one, two in (colored, dark):
            assert one.sum() > 8 and (one & two).sum() > 0.9 * (one | two).sum()
    # Each world has its own picture, the same as alone.
    one = jax.jit(other.sense)(jax.tree.map(lambda x: x[1], starts)).obs["image"]
    np.testing.assert_array_equal(one, starts.obs["image"][1])
    assert (starts.obs["image"][1] != starts.obs["image"][2]).any()
