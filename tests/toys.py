"""Tiny analytic tasks with known values."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs import ArraySpec, State, Task
from jaxrl.options import option


@dataclasses.dataclass(frozen=True)
class Countdown(Task):
    """Reward 1 a step, whatever the action. The state is a step counter that starts at a
    random fraction; `ends_at` steps in, the task terminates (never, if 0)."""

    episode_length: int = option(10, "time limit in steps")
    ends_at: int = option(0, "steps to termination; 0: never")
    control_dt: float = option(0.1, "seconds of a step")

    observation_parts: ClassVar = {"start": 1, "time": 1}

    @property
    def action_spec(self):
        return ArraySpec((1,), -1.0, 1.0)

    def reset(self, key):
        start = jax.random.uniform(key)
        obs = jnp.stack([start, 0.0])
        metrics = {"success": jnp.zeros(()), "half": jnp.zeros(()), "reward/one": jnp.zeros(())}
        return State(obs, obs, jnp.zeros(()), jnp.zeros((), bool), metrics, ())

    def step(self, state, action):
        obs = state.physics.at[1].add(1.0)
        ended = (obs[1] >= self.ends_at) if self.ends_at else jnp.zeros((), bool)
        metrics = {
            "success": ended.astype(jnp.float32),
            "half": jnp.full((), 0.5),
            "reward/one": jnp.ones(()),
        }
        return State(obs, obs, jnp.ones(()), ended, metrics, ())


@dataclasses.dataclass(frozen=True)
class Fragile(Countdown):
    """As `Countdown`, but its simulation diverges at step `breaks_at` of a world whose
    start is below one half."""

    breaks_at: int = option(3, "step that gives NaN")

    def step(self, state, action):
        new = super().step(state, action)
        broken = (new.obs[1] == self.breaks_at) & (new.obs[0] < 0.5)
        bad = jnp.where(broken, jnp.nan, 1.0)
        return new.replace(physics=new.physics * bad, obs=new.obs * bad, reward=new.reward * bad)


@dataclasses.dataclass(frozen=True)
class Chancy(Countdown):
    """Ends with probability `p` in each step, by a key that it keeps in `info`."""

    p: float = option(0.1, "probability")
    episode_length: int = option(100_000, "time limit in steps")

    def reset(self, key):
        key, own = jax.random.split(key)
        return super().reset(key).replace(info=own)

    def step(self, state, action):
        own, chance = jax.random.split(state.info)
        ended = jax.random.uniform(chance) < self.p
        return super().step(state, action).replace(terminated=ended, info=own)


@dataclasses.dataclass(frozen=True)
class Stillborn(Countdown):
    """Half of its starts are not finite."""

    def reset(self, key):
        state = super().reset(key)
        bad = jnp.where(state.obs[0] < 0.5, jnp.nan, 1.0)
        return state.replace(physics=state.physics * bad, obs=state.obs * bad)


@dataclasses.dataclass(frozen=True)
class Absurd(Countdown):
    """In step 3 of a world whose start is below `share` it observes and earns 1e30."""

    share: float = option(0.5, "of all starts")

    def step(self, state, action):
        new = super().step(state, action)
        absurd = (new.physics[1] == 3) & (new.physics[0] < self.share)
        large = jnp.where(absurd, 1e30, 1.0)
        return new.replace(obs=new.obs * large, reward=-new.reward * large)


@dataclasses.dataclass(frozen=True)
class Chooser(Countdown):
    """As `Countdown`, but one of three choices is made, and its index is the reward."""

    @property
    def action_spec(self):
        return ArraySpec((3,), 0, 1, discrete=True)

    def step(self, state, action):
        return super().step(state, action).replace(reward=action.astype(jnp.float32))
