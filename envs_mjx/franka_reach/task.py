"""The reaching task: bring the point between the fingers to a target and hold it there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_mjx.arm import Arm, ArmTask
from envs_mjx.franka_reach import model as m
from envs_mjx.ik import damped_least_squares
from envs_mjx.physics import Physics, PhysicsState, make_physics
from envs_mjx.sight import Pictured
from envs_mjx.vision import Camera
from jaxrl.envs import ArraySpec, CurriculumConfig, State
from jaxrl.envs.randomization import Randomization, Range, draw
from jaxrl.envs.rewards import weighted
from jaxrl.options import option

PPO = {
    "num_steps": 25,
    "learning_rate": 1e-3,
    "gamma": 0.97,
    "schedule": {"kind": "linear", "final": 0.05},
    "network": {"policy_hidden": [128, 128], "value_hidden": [128, 128], "initial_std": 0.5},
}

TARGET_LOW = np.array([0.3, -0.3, 0.2])  # m
TARGET_HIGH = np.array([0.7, 0.3, 0.5])


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Weights of the reward's terms; d is the distance to the target."""

    distance: float = option(
        1.0,
        "weight of the reward for nearness: 1 - tanh(5 d), with d the distance from the target (m)",
    )
    progress: float = option(
        0.0, "weight of the decrease of the distance from the target since the last step (m)"
    )
    velocity: float = option(
        -0.01,
        "weight of the sum of squared joint velocities (rad/s) while the target is "
        "reached; negative: a penalty",
    )
    action: float = option(-0.001, "weight of the sum of squared actions; negative: a penalty")
    success: float = option(
        1.0, "weight of the reward for each control step in which the target is reached"
    )


@dataclasses.dataclass(frozen=True)
class Randomize:
    """Ranges of the random changes of the model for each episode, in training and evaluation."""

    gravity: Range = option(Range(-0.3, 0.3), "number added to gravity's components (m/s^2)")
    damping: Range = option(Range(0.7, 1.3), "factor of each joint's damping")
    gains: Range = option(Range(0.9, 1.1), "factor of each servo's gains")
    mass: Range = option(Range(0.9, 1.1), "factor of each link's mass")


@struct.dataclass
class Info:
    """The task's memory within an episode.

    Attributes:
      target: [3] position of the target (m, world).
      controls: [7] targets of the servos (rad).
      distance: scalar, distance from the target (m).
      held: scalar int32, consecutive control steps within `tolerance` up to now.
    """

    target: jax.Array
    controls: jax.Array
    distance: jax.Array
    held: jax.Array


@dataclasses.dataclass(frozen=True)
class FrankaReach(ArmTask, Pictured):
    """A Franka Panda (7 joints) reaches points in a box of .4 x .6 x .3 m.

    Observation [30]: joint positions 7 (rad), velocities 7 (rad/s), joint targets minus
    positions 7 (rad), position of the grip 3, target 3, target minus grip 3 (m, world).

    With `sight` rgb, two cameras show target and robot, and the numbers of the target are left out.

    Action [7]: "delta": change of the joint targets as a share of `joint_step`; "absolute":
    joint targets, where -1 and 1 are the joints' limits; the targets move by at most
    `joint_step` in a control step.

    Success: the grip has been within `tolerance` for at least the last `hold_seconds`.
    """

    action: Literal["delta", "absolute"] = option(
        "delta",
        "meaning of an action: a change of the joints' targets (delta), or the targets "
        "themselves (absolute)",
    )
    joint_step: float = option(
        0.04, "largest change of a joint's target in one control step (rad)", greater_than=0
    )
    tolerance: float = option(
        0.02, "the target counts as reached within this distance (m)", greater_than=0
    )
    hold_seconds: float = option(
        0.2, "success is to be at the target for this time without a break (s)", greater_than=0
    )
    episode_seconds: float = option(2.0, "time limit of an episode (s)", greater_than=0)
    start_noise: float = option(
        0.1,
        "largest offset of a joint from its home position at the start of an episode (rad)",
        minimum=0,
    )
    timestep: float = option(0.005, "length of a physics step (s)", greater_than=0, maximum=0.01)
    substeps: int = option(4, "number of physics steps in one control step", minimum=1)
    rewards: Rewards = option(Rewards(), "weights of the reward's terms")
    randomize: Randomize = option(Randomize(), "domain randomisation, drawn for each episode")
    curriculum: CurriculumConfig = option(
        CurriculumConfig(start=(0.2,)),
        "share of the box that targets are drawn from, about its centre; 1: the whole box",
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {
                "num_envs": 256,
                "total_timesteps": 1_000_000,
                "ppo": PPO,
                "eval": {"every": 200_000},
            }
        },
        "gpu": {"ppo": {"num_envs": 4096, "total_timesteps": 20_000_000, "ppo": PPO}},
    }

    observation_parts: ClassVar[dict[str, int]] = {
        "q": 7,
        "qdot": 7,
        "error": 7,
        "grip": 3,
        "target": 3,
        "to_target": 3,
    }
    CAMERAS: ClassVar[tuple[Camera, ...]] = m.CAMERAS

    @functools.cached_property
    def physics(self) -> Physics:
        xml = m.mjcf(self.timestep)
        return make_physics(
            xml,
            engine=self.engine,
            substeps=self.substeps,
            sites=("grip",),
            bodies=self.seen_bodies(xml),
            jacobians=True,
        )

    @functools.cached_property
    def arm(self) -> Arm:
        return Arm(self.physics, m.JOINTS, "grip", self.joint_step)

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"within {self.tolerance:g} m for the last {self.hold_seconds:g} s"

    @property
    def shown(self) -> tuple[str, ...]:
        """Parts of the observation that the cameras' images show."""
        return ("target", "to_target")

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((7,), -1.0, 1.0, m.JOINTS)

    # -- episodes -------------------------------------------------------------------

    @functools.cached_property
    def randomizations(self) -> tuple[Randomization, ...]:
        """The fields of the model that are changed at random for each episode."""
        r, every = self.randomize, slice(None)
        gains = (
            ("actuator_gainprm", (every, 0)),
            ("actuator_biasprm", (every, 1)),
            ("actuator_biasprm", (every, 2)),
        )
        return (
            Randomization((("opt.gravity", every),), "add", r.gravity),
            Randomization((("dof_damping", every),), "scale", r.damping),
            Randomization(gains, "scale", r.gains),
            Randomization((("body_mass", every),), "scale", r.mass),
        )

    def reset(self, key: jax.Array, level: jax.Array | float = 1.0) -> State:
        """Starts at rest near home. The target is anywhere in the box, but near its centre at a
        low level of the curriculum."""
        key_pose, key_target, key_model = jax.random.split(key, 3)
        offset = self.start_noise * jax.random.uniform(key_pose, (7,), minval=-1.0)
        q = jnp.clip(m.HOME + offset, *self.arm.limits)
        centre, half = (TARGET_LOW + TARGET_HIGH) / 2, (TARGET_HIGH - TARGET_LOW) / 2
        target = centre + level * half * jax.random.uniform(key_target, (3,), minval=-1.0)
        fields = draw(self.randomizations, self.physics.field, key_model)
        physics = self.physics.init(q, mocap_pos=target[None], fields=fields)
        info = Info(
            target=target,
            controls=q,
            distance=jnp.zeros(()),
            held=jnp.zeros((), jnp.int32),
        )
        return self.first_look(self.at_start(self._judge(physics, info, jnp.zeros(7))))

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; `action` [7] moves the joint targets."""
        info = self.commanded(state.info, action)
        physics = self.physics.step(state.physics, info.controls)
        return self.look(state, self._judge(physics, info, action))

    def commanded(self, info: Info, action: jax.Array) -> Info:
        """The memory with the servos' targets after an action [7]."""
        move = self.arm.moved if self.action == "delta" else self.arm.approached
        return info.replace(controls=move(info.controls, action))

    def _judge(self, physics: PhysicsState, before: Info, action: jax.Array) -> State:
        """Reward, metrics and observation of the step that led to `physics`."""
        grip, _ = self.physics.site_pose(physics, "grip")
        distance = jnp.linalg.norm(grip - before.target)
        reached = (distance < self.tolerance).astype(jnp.float32)
        held = jnp.where(reached > 0, before.held + 1, 0)
        info = before.replace(distance=distance, held=held)
        reward, shares = weighted(
            {
                "distance": 1.0 - jnp.tanh(5.0 * distance),
                "progress": before.distance - distance,
                "velocity": reached * jnp.sum(jnp.square(physics.qvel)),
                "action": jnp.sum(jnp.square(action)),
                "success": reached,
            },
            self.rewards,
        )
        metrics = shares | {
            "success": (held * self.control_dt >= self.hold_seconds - 1e-6).astype(jnp.float32),
            "final/distance": distance,
        }
        obs = self.observe(
            q=physics.qpos,
            qdot=physics.qvel,
            error=info.controls - physics.qpos,
            grip=grip,
            target=info.target,
            to_target=info.target - grip,
        )
        return State(
            physics=physics,
            obs=obs,
            reward=reward,
            terminated=jnp.zeros((), bool),
            metrics=metrics,
            info=info,
        )

    # -- baselines and pictures -------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Inverse kinematics, State -> action [7]."""
        return {"scripted": self._scripted}

    def _scripted(self, state: State) -> jax.Array:
        """Moves the grip straight to the target, and the rest of the arm towards home."""
        arm = self.arm.view(state.physics, state.info.controls)
        # Motion that the servos' present targets still cause is subtracted.
        underway = arm.jacobian[:3] @ (arm.targets - arm.q)
        dq = damped_least_squares(
            arm.jacobian[:3],
            state.info.target - arm.position - underway,
            posture=0.1 * (m.HOME - arm.targets),
        )
        if self.action == "delta":
            share = dq / self.joint_step
            return share / jnp.maximum(jnp.abs(share).max(), 1.0)
        low, high = self.arm.limits
        return jnp.clip(2.0 * (arm.targets + dq - low) / (high - low) - 1.0, -1.0, 1.0)

    def render(self, states: PhysicsState, stride: int) -> np.ndarray:
        """[F, H, W, 3] pictures of every `stride`-th of the physics states [T, ...]."""
        frames = self.physics.render(states, m.VIEW, stride=stride)
        return self.with_views(frames, states, stride)
