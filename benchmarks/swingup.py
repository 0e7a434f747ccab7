"""A cart-pole that swings up, as an example of a user's own task: one file, without presets.

  python benchmarks/swingup.py --algo sac [--SETTING VALUE]

trains it; the arguments are those of `python -m jaxrl.train`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from envs_mjx.physics import Physics, PhysicsState, Simulated, make_physics
from jaxrl import cli, envs
from jaxrl.commands import train
from jaxrl.envs import ArraySpec, State
from jaxrl.options import option

NAME = "swingup"
MODEL = """
<mujoco>
  <option timestep="0.01"><flag contact="disable"/></option>
  <worldbody>
    <body>
      <joint name="cart" type="slide" axis="1 0 0" damping="0.1" limited="true" range="-2 2"/>
      <geom type="box" size="0.1 0.1 0.05" mass="1"/>
      <body>
        <joint name="pole" type="hinge" axis="0 1 0" damping="0.001"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size="0.03" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="cart" gear="10"/></actuator>
</mujoco>
"""


@dataclasses.dataclass(frozen=True)
class SwingUp(Simulated):
    """A cart-pole that swings up; the fields are the task's settings.

    Observation [5]: cart position (m) and velocity (m/s), cosine and sine of the pole's angle
    from upright, angular velocity (rad/s). Action [1]: force on the cart as a share of 10 N.
    """

    episode_length: int = option(400, "time limit in control steps of 0.02 s", minimum=51)
    upright_degrees: float = option(
        15.0, "the pole is upright within this (deg)", greater_than=0, maximum=90
    )

    control_dt = 0.02
    success_criterion = "upright for all of the last second"
    observation_parts: ClassVar[dict[str, int]] = {
        "x": 1, "speed": 1, "cos": 1, "sin": 1, "turning": 1
    }  # fmt: skip

    @functools.cached_property
    def physics(self) -> Physics:
        return make_physics(MODEL, engine=self.engine, substeps=2)

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((1,), -1.0, 1.0, ("force",))

    def reset(self, key: jax.Array) -> State:
        """Starts at rest within 0.3 m of the middle; the pole hangs within 0.3 rad."""
        x, angle = 0.3 * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        physics = self.physics.init(jnp.stack([x, jnp.pi + angle]))
        return self._state(physics, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        force = jnp.clip(action, -1.0, 1.0)
        return self._state(self.physics.step(state.physics, force), force[0], state.info)

    def _state(self, physics: PhysicsState, force: jax.Array, upright_for: jax.Array) -> State:
        """The state, with a reward for a raised pole, a cart near the middle, and a small force;
        `info` is the number of consecutive steps for which the pole has been upright."""
        (x, angle), (speed, turning) = physics.qpos, physics.qvel
        upright = jnp.cos(angle) > jnp.cos(jnp.deg2rad(self.upright_degrees))
        upright_for = jnp.where(upright, upright_for + 1, 0.0)
        return State(
            physics=physics,
            obs=self.observe(
                x=x, speed=speed, cos=jnp.cos(angle), sin=jnp.sin(angle), turning=turning
            ),
            reward=(1 + jnp.cos(angle)) / 2 - 0.1 * x**2 - 0.01 * force**2,
            terminated=jnp.zeros((), bool),
            metrics={"success": (upright_for * self.control_dt >= 1.0).astype(jnp.float32)},
            info=upright_for,
        )


if __name__ == "__main__":
    envs.register(NAME, SwingUp)
    cli.run(train.main)
