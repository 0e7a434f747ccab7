"""A package that is not part of the project: a task, an encoder, a sink and an algorithm."""

import sys

import numpy as np
import pytest

import jaxrl
from jaxrl.errors import UserError

PACKAGE = '''
import dataclasses, json, jax, jax.numpy as jnp, optax
from flax import linen as nn
from flax import struct
from jaxrl import State, Task, ArraySpec, option
from jaxrl.algos import Algorithm, AlgorithmConfig
from jaxrl.policy import PolicyState

@dataclasses.dataclass(frozen=True)
class Nudge(Task):
    """Reward is the action."""
    episode_length: int = option(5, "control steps")
    control_dt = 0.1
    observation_parts = {"place": 1, "clock": 1}
    action_spec = ArraySpec((1,), -1.0, 1.0)

    def reset(self, key):
        return self.state(jax.random.uniform(key), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        return self.state(state.physics[0], state.physics[1] + 1, action[0])

    def state(self, place, clock, reward):
        return State(jnp.stack([place, clock]), self.observe(place=place, clock=clock), reward,
                     jnp.zeros((), bool), {}, ())

class Squares(nn.Module):
    def __call__(self, x):
        return jnp.concatenate([x, x ** 2], -1)

def squares(spec, config):
    return Squares()

class Lines:
    def __init__(self, folder, config, start):
        self.file = (folder / "lines.json").open("a")
    def write(self, step, row):
        print(json.dumps({"step": step, "loss": row["train/loss"]}), file=self.file)
    def close(self):
        self.file.close()

@dataclasses.dataclass(frozen=True)
class ReinforceConfig(AlgorithmConfig):
    num_steps: int = option(10, "control steps", minimum=1)

class Reinforce(Algorithm):
    name = "reinforce"
    Config = ReinforceConfig

    @property
    def learns_every(self):
        return self.config.num_steps

    @classmethod
    def init_params(cls, policy, key):
        return policy.init(key, value=False)

    def _init(self, key, hyper):
        params = self.init_params(self.policy, key)
        return params, self._optimizer(hyper).init(params), None

    def draws(self, key, steps):
        return jax.random.normal(key, (steps, self.num_envs, self.policy.action_size))

    def act(self, state, draw):
        gaussian, memory = self.policy.gaussian(state.policy, state.envs.obs, state.memory)
        raw = self.policy.distribution.sample(gaussian, draw)
        return self.policy.distribution.action(raw), raw, memory

    def learn(self, state, rollout, key):
        advantage = rollout.reward - rollout.reward.mean()
        def loss(params):
            policy = state.policy.replace(params=params)
            gaussian, _ = self.policy.gaussians(policy, rollout.obs)
            log_prob = self.policy.distribution.log_prob(gaussian, rollout.act_info)
            return -(log_prob * advantage).mean()
        value, gradient = jax.value_and_grad(loss)(state.policy.params)
        params, opt = self._descend(state.policy.params, state.learner, gradient,
                                    state=state, rate=state.hyper["learning_rate"])
        policy = PolicyState(params, self.policy.seen(state.policy, rollout.obs))
        return state.replace(policy=policy, learner=opt), {"train/loss": value}
'''
ENTRY_POINTS = """
[jaxrl.envs]
nudge = stranger:Nudge
[jaxrl.encoders]
squares = stranger:squares
broken = stranger:nowhere
[jaxrl.sinks]
lines = stranger:Lines
[jaxrl.algorithms]
reinforce = stranger:Reinforce
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    place = tmp_path / "site"
    info = place / "stranger-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "stranger.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(place)
    yield
    sys.modules.pop("stranger", None)


def test_a_package_adds_a_task_an_encoder_a_sink_and_an_algorithm(stranger, tmp_path):
    assert "nudge" in jaxrl.tasks()
    network = {"encoders": ["squares"], "policy_hidden": [16], "initial_std": 0.5}
    run = jaxrl.train(
        "nudge",
        algo="reinforce",
        reinforce={"learning_rate": 0.02, "network": network},
        num_envs=32,
        total_timesteps=32 * 10 * 60,
        eval={"every": 3200, "episodes": 8, "final_episodes": 8},
        log={"sinks": ["lines"], "tensorboard": False},
        out=str(tmp_path / "run"),
        progress=False,
    )
    assert run.summary["return"]["mean"] > 4.0  # of 5; no policy at all: 0
    lines = (run.folder / "lines.json").read_text().splitlines()
    assert len(lines) == len(run.history["train/loss"])
    assert run.policy(np.zeros(2, np.float32)).shape == (1,)
    again = jaxrl.resume(run, total_timesteps=32 * 10 * 70, progress=False)
    assert again.status == 0


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"algo": "reenforce"}, r"algo: got 'reenforce'; did you mean 'reinforce'\?"),
        ({"log": {"sinks": ["line"]}}, r"log.sinks: got 'line'"),
        ({"ppo": {"network": {"encoders": ["broken"]}}}, r"jaxrl.encoders: 'broken' is 'stranger:"),
    ],
)
def test_names_that_no_package_has_and_packages_that_are_broken(
    stranger, tmp_path, settings, pattern
):
    with pytest.raises(UserError, match=pattern):
        jaxrl.train("nudge", out=str(tmp_path / "run"), **settings)
