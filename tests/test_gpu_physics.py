"""What is traced for a GPU computes what is traced for a CPU."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx.ballbot import Ballbot
from envs_mjx.physics.tuning import tuned_mjx
from jaxrl.platform import compile_for


@pytest.mark.parametrize("drive", ["no_slip", pytest.param("omniwheel", marks=pytest.mark.slow)])
def test_the_gpu_form_of_a_step_follows_the_cpu_form(drive):
    task = Ballbot(drive=drive, engine="mjx")
    worlds = jax.vmap(task.reset)(jax.random.split(jax.random.key(0), 8))
    torques = 3.0 * jax.random.normal(jax.random.key(1), (10, 8, 3))

    def roll(worlds, torques):
        step = jax.vmap(task.physics.step)
        return jax.lax.scan(lambda x, u: (step(x, u), x.qpos), worlds.physics, torques)[0]

    paths = {}
    for platform in ("cpu", "gpu"):
        with compile_for(platform):
            paths[platform] = jax.jit(lambda *args: roll(*args))(worlds, torques)  # traced anew
    assert jnp.isfinite(paths["gpu"].qpos).all()
    np.testing.assert_allclose(paths["gpu"].qpos, paths["cpu"].qpos, atol=2e-5)
    np.testing.assert_allclose(paths["gpu"].qvel, paths["cpu"].qvel, atol=2e-3)


def test_other_threads_see_the_unchanged_functions():
    physics, small, found = Ballbot(engine="mjx").physics, jnp.ones(3), []
    with compile_for("gpu"), tuned_mjx(physics.model):
        here = str(jax.make_jaxpr(lambda x: jnp.sum(x))(small))
        thread = threading.Thread(
            target=lambda: found.append(str(jax.make_jaxpr(lambda x: jnp.sum(x))(small)))
        )
        thread.start()
        thread.join()
    assert "reduce_sum" not in here and "reduce_sum" in found[0]
