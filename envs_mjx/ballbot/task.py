"""The ballbot task: drive in a commanded direction at a commanded speed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_mjx.ballbot import model as m
from envs_mjx.ballbot.controllers import (
    gravity_in_body,
    linear_control,
    lqr_gain,
    pd_gain,
    to_heading,
)
from envs_mjx.ballbot.sight import FAR, IMAGES, depth_images
from envs_mjx.physics import NamedModel, Physics, PhysicsState, make_physics
from envs_mjx.rotations import tilted
from envs_mjx.sight import Sighted
from envs_mjx.terrain import HeightFields, Kind, make_fields
from jaxrl import assets
from jaxrl.envs import ArraySpec, CurriculumConfig, State
from jaxrl.errors import UserError
from jaxrl.nets.autoencoder import FrozenEncoder
from jaxrl.options import option

PPO = {
    "num_steps": 32,
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "schedule": {"kind": "linear", "final": 0.05},
    "network": {"initial_std": 0.4},
}
# A small replay (steps from early falls soon lose their use), fast target networks, and little
# noise: actions beyond the torque's rate limit have no effect, so critics learn no gradient there.
OFF_POLICY = {
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "schedule": {"kind": "linear", "final": 0.2},
    "gamma": 0.98,
    "n_step": 3,
    "buffer_size": 40_000,
    "learning_starts": 2000,
    "batch_size": 256,
    "gradient_steps": 8,
    "tau": 0.1,
    "network": {"policy_hidden": [64, 64], "value_hidden": [256, 256], "layer_norm": True},
}
SAC = OFF_POLICY | {
    "initial_temperature": 0.02,
    "target_entropy": -1.0,
    "network": OFF_POLICY["network"] | {"initial_std": 0.15},
}
TD3 = OFF_POLICY | {
    "exploration_noise": 0.12,
    "exploration_noise_minimum": 0.02,
    "target_noise": 0.05,
    "target_noise_clip": 0.15,
}
# Many worlds and large batches instead of many updates.
MANY = {"buffer_size": 1_000_000, "batch_size": 8192, "gradient_steps": 4}
RARE = {"eval": {"every": 50_000}, "checkpoint": {"every": 100_000}}


@struct.dataclass
class Info:
    """The task's memory within an episode.

    Attributes:
      step: int32, control steps so far.
      commands: [C, 2] velocity commands (m/s, world frame), one for each period.
      last_action: [3] wheel torques of the last control step (10 N m).
      settled: [2] sum of the speeds along the command since `settle_time` (m/s), and the number
        of control steps in this sum.
      original_return: return so far, by the reward of the original task.
    """

    step: jax.Array
    commands: jax.Array
    last_action: jax.Array
    settled: jax.Array
    original_return: jax.Array


@struct.dataclass
class Ground:
    """The ground of one world.

    Attributes:
      field: int32, index of its height field.
      scale: factor on the heights.
    """

    field: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class Ballbot(Sighted):
    """A ballbot that drives at commanded velocities; the fields are the task's settings.

    Observation [17], all of which the robot itself can measure, in the frame of its heading:
    gravity direction 3 (body frame), angular velocity 3 (rad/s), velocity 3 (m/s), wheel
    speeds 3 (10 rad/s), last action 3, commanded velocity 2 (m/s). Position and yaw are left
    out, because the task is the same in every direction.

    With `sight` the observation is a dictionary: these 17 numbers and the age of the images (s)
    are "body", and "depth" are the images of two cameras, [64, 64, 2] bytes, of which 255 is 1 m.
    With an encoder there is "code" instead of "depth".

    Action [3]: wheel torques as shares of 10 N m.
    """

    drive: Literal["no_slip", "omniwheel"] = option(
        "no_slip",
        "physics of the wheels: they roll on the ball exactly (no_slip), or three "
        "wheels touch it (omniwheel)",
    )
    goal: Literal["random", "original"] = option(
        "random",
        "commanded velocities: random directions and speeds, or always +y at full speed"
        " as in the original task",
    )
    terrain: Kind = option(
        "flat",
        "ground: flat, simplex noise (as in the original task), ramp, hills, steps, sinusoid, bowl "
        "or ridges; a new one in each episode",
    )
    terrain_height: float = option(
        0.1,
        "height of the terrain (m); of a ramp: its rise in 1 m; steps are a tenth of it",
        minimum=0,
        maximum=1,
    )
    terrain_count: int = option(
        64,
        "number of different terrains of 10 m x 10 m, on which episodes start anywhere",
        minimum=1,
        maximum=1000,
    )
    terrain_seed: int = option(0, "seed of the terrains", minimum=0)
    sight: Literal["none", "depth"] = option(
        "none", "whether two depth cameras that look at the ground are observed, too"
    )
    encoder: str | None = option(
        None,
        "file or folder of an encoder from jaxrl.pretrain, whose code of the images is observed "
        "instead of the images",
    )
    max_speed: float = option(0.425, "largest commanded speed (m/s)", greater_than=0)
    command_period: float = option(
        4.0,
        "time after which a new velocity is commanded (s)",
        greater_than=0,
        minimum=1e-3,
        maximum=1e6,
    )
    episode_seconds: float = option(8.0, "time limit of an episode (s)", greater_than=0)
    max_tilt: float = option(
        20.0, "an episode terminates when the tilt exceeds this (deg)", greater_than=0, maximum=90
    )
    start_tilt: float = option(
        3.0, "largest tilt at the start of an episode (deg)", minimum=0, maximum=20
    )
    torque_rate: float = option(
        100.0,
        "largest rate of change of a wheel's torque (N m/s); faster changes would make it slip",
        greater_than=0,
    )
    timestep: float = option(0.005, "length of a physics step (s)", greater_than=0, maximum=0.01)
    substeps: int = option(4, "number of physics steps in one control step", minimum=1)
    settle_time: float = option(
        2.0, "time in an episode after which the speed along the command is measured (s)", minimum=0
    )
    tracking_weight: float = option(
        1.0, "weight of the reward for following the commanded velocity"
    )
    tracking_scale: float = option(
        0.2, "velocity error at which the tracking reward has fallen by 63 % (m/s)", greater_than=0
    )
    upright_weight: float = option(
        0.5, "reward for each control step in which the robot is upright"
    )
    fall_weight: float = option(0.0, "penalty when the robot falls")
    tilt_weight: float = option(5.0, "weight of the penalty on 1 - cos(tilt)")
    action_weight: float = option(
        0.0, "weight of the penalty on squared torques, in units of 10 N m"
    )
    smooth_weight: float = option(
        1.5, "weight of the penalty on squared changes of the torques that the policy asks for"
    )

    curriculum: CurriculumConfig = option(
        CurriculumConfig(start=(1.0,), raise_at=0.9),
        "height of the terrain as a share of terrain_height; 1: the full height from the start",
    )

    # Evaluations are on terrains that training has not seen.
    eval_overrides: ClassVar[dict[str, Any]] = {"terrain_seed": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {"num_envs": 256, "total_timesteps": 2_500_000, "ppo": PPO},
            "sac": {"num_envs": 64, "total_timesteps": 300_000, "sac": SAC} | RARE,
            "td3": {"num_envs": 64, "total_timesteps": 300_000, "td3": TD3} | RARE,
        },
        "gpu": {
            "ppo": {"num_envs": 4096, "total_timesteps": 20_000_000, "ppo": PPO},
            "sac": {"num_envs": 1024, "total_timesteps": 10_000_000, "sac": SAC | MANY},
            "td3": {"num_envs": 1024, "total_timesteps": 10_000_000, "td3": TD3 | MANY},
        },
    }

    observation_parts: ClassVar[dict[str, int]] = {
        "gravity": 3,
        "gyro": 3,
        "velocity": 3,
        "wheel": 3,
        "last_action": 3,
        "command": 2,
    }

    def __post_init__(self) -> None:
        if self.episode_length < 1:
            raise UserError(
                f"env.episode_seconds: got {self.episode_seconds}, must be at least one control "
                f"step of {self.control_dt} s"
            )
        if self.start_tilt >= self.max_tilt:
            raise UserError(
                f"env.start_tilt: got {self.start_tilt}, must be below max_tilt, {self.max_tilt}"
            )

    @functools.cached_property
    def physics(self) -> Physics:
        return make_physics(
            m.mjcf(self.drive, self.timestep, m.MOVING_FLOOR if self.fields else ""),
            engine=self.engine,
            substeps=self.substeps,
            before_step=self._move_floor if self.fields else None,
            rolling_geoms=m.WHEEL_GEOMS if self.drive == "omniwheel" else (),
        )

    @functools.cached_property
    def fields(self) -> HeightFields | None:
        """The terrains; None on flat ground."""
        if self.terrain == "flat":
            return None
        return make_fields(self.terrain, self.terrain_height, self.terrain_count, self.terrain_seed)

    @property
    def control_dt(self) -> float:
        return self.timestep * self.substeps

    @property
    def episode_length(self) -> int:
        return round(self.episode_seconds / self.control_dt)

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"upright to the end, never beyond {self.max_tilt:g} deg"

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        body = ArraySpec.of_parts(self.observation_parts)
        if self.sight == "none":
            return body
        body = ArraySpec((body.shape[0] + 1,), names=(*body.names, "image_age"))
        if self._encoder:
            return {"body": body, "code": ArraySpec((self._encoder.code_size,), -1.0, 1.0)}
        return {"body": body, "depth": ArraySpec(IMAGES, 0, 255, dtype="uint8")}

    constants_setting: ClassVar[str] = "encoder"

    @property
    def constants(self) -> Mapping[str, Any]:
        return self._encoder.arrays if self._encoder else {}

    def with_constants(self, arrays: Mapping[str, Any]) -> Ballbot:
        task = dataclasses.replace(self)
        task.__dict__["_encoder"] = FrozenEncoder(arrays)
        return task

    @functools.cached_property
    def _encoder(self) -> FrozenEncoder | None:
        if self.sight == "none" or not self.encoder:
            return None
        encoder = FrozenEncoder.load(assets.find(Path(self.encoder), "checkpoints"))
        if encoder.shape != IMAGES:
            raise UserError(
                f"env.encoder: {self.encoder} encodes images of the shape {list(encoder.shape)}, "
                f"but the cameras' have {list(IMAGES)}"
            )
        return encoder

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((3,), -1.0, 1.0, tuple(f"wheel_{i}" for i in range(3)))

    # -- episodes -------------------------------------------------------------------

    def reset(self, key: jax.Array, level: jax.Array | float = 1.0) -> State:
        """Starts with any yaw, a small random tilt and a small angular velocity; at the origin, or
        anywhere on a terrain, whose height grows with the level of the curriculum."""
        key_pose, key_gyro, key_command = jax.random.split(key, 3)
        yaw, tilt, about = jax.random.uniform(key_pose, (3,))
        quat = tilted(2 * jnp.pi * yaw, jnp.deg2rad(self.start_tilt) * tilt, 2 * jnp.pi * about)
        qpos = jnp.asarray(self.physics.rest, jnp.float32).at[3:7].set(quat)
        gyro = jax.random.uniform(key_gyro, (3,), minval=-0.1, maxval=0.1)
        qvel = jnp.zeros(self.physics.nv).at[3:6].set(gyro)
        if self.fields:
            ground, rise = self._ground(jax.random.fold_in(key, 1), self.fields, level)
            for body in self._free_bodies:
                qpos = qpos.at[body].add(rise)
            physics = self.physics.init(qpos, qvel, extra=ground)
        else:
            physics = self.physics.init(qpos, qvel)
        info = Info(
            step=jnp.zeros((), jnp.int32),
            commands=self._commands(key_command),
            last_action=jnp.zeros(3),
            settled=jnp.zeros(2),
            original_return=jnp.zeros(()),
        )
        state = self._judge(physics, info, jnp.zeros(3), jnp.zeros(3))
        state = state.replace(
            reward=jnp.zeros(()), metrics=jax.tree.map(jnp.zeros_like, state.metrics), info=info
        )
        return self.first_look(state)

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; `action` [3]: the desired wheel torques (10 N m)."""
        largest_change = self.torque_rate * self.control_dt / m.MAX_TORQUE
        last = state.info.last_action
        change = jnp.clip(action, -1.0, 1.0) - last
        action = last + jnp.clip(change, -largest_change, largest_change)
        physics = self.physics.step(state.physics, m.MAX_TORQUE * action)
        return self.look(state, self._judge(physics, state.info, action, change))

    def views(self, physics: PhysicsState) -> jax.Array:
        return depth_images(self.drive, self.timestep, self.fields, physics) / FAR

    def images(self, views: jax.Array) -> dict[str, jax.Array]:
        images = jnp.moveaxis(views, 0, 2)
        if self._encoder:
            return {"code": self._encoder(images)}
        return {"depth": jnp.round(255 * images).astype(jnp.uint8)}

    def _ground(
        self, key: jax.Array, fields: HeightFields, level: jax.Array | float
    ) -> tuple[Ground, jax.Array]:
        """A random terrain, and the move [3] (m) from the reference pose to a place on it."""
        key_field, key_place = jax.random.split(key)
        field = jax.random.randint(key_field, (), 0, self.terrain_count)
        scale = jnp.reshape(level, ())
        place = fields.size * jax.random.uniform(key_place, (2,), minval=-0.5, maxval=0.5)
        point, normal = fields.surface(field, scale, place)
        center = point + (m.BALL_RADIUS - m.GROUND_SINK) * normal
        return Ground(field, scale), center - jnp.array([0.0, 0.0, m.BALL_RADIUS])

    @property
    def _free_bodies(self) -> list[slice]:
        """The positions in `qpos` of the bodies that move freely; the last one is the ball's."""
        joints = {"no_slip": ["base"], "omniwheel": ["base", "ball"]}[self.drive]
        starts = [self.physics.qpos_slice(joint).start for joint in joints]
        return [slice(start, start + 3) for start in starts]

    def _move_floor(self, state: PhysicsState) -> PhysicsState:
        """Lays the floor, a plane, onto the terrain at the point that is closest to the ball."""
        fields, ground = cast(HeightFields, self.fields), cast(Ground, state.extra)
        point, normal = fields.foot(ground.field, ground.scale, state.qpos[self._free_bodies[-1]])
        turn = jnp.stack([1.0 + normal[2], -normal[1], normal[0], 0.0])  # from the z axis
        quat = turn / jnp.linalg.norm(turn)
        return state.replace(mocap_pos=point[None], mocap_quat=quat[None])

    def _commands(self, key: jax.Array) -> jax.Array:
        """[C, 2] commanded velocities of an episode (m/s, world frame)."""
        count = math.ceil(self.episode_seconds / self.command_period)
        if self.goal == "original":
            return jnp.tile(jnp.array([0.0, self.max_speed]), (count, 1))
        key_angle, key_speed = jax.random.split(key)
        angle = jax.random.uniform(key_angle, (count,), maxval=2 * jnp.pi)
        # Half the commands ask for full speed, the others for any speed down to rest.
        speed = jax.random.uniform(key_speed, (count,), minval=-1.0, maxval=1.0)
        speed = self.max_speed * jnp.where(speed > 0, 1.0, -speed)
        return speed[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)

    def command(self, info: Info) -> jax.Array:
        """[2] velocity commanded now (m/s, world frame)."""
        period = max(round(self.command_period / self.control_dt), 1)
        return info.commands[jnp.minimum(info.step // period, info.commands.shape[0] - 1)]

    def _judge(
        self, physics: PhysicsState, before: Info, action: jax.Array, change: jax.Array
    ) -> State:
        """Reward, metrics and observation of the step that led to `physics`."""
        velocity, up = physics.qvel[:2], -gravity_in_body(physics.qpos[3:7])[2]
        command = self.command(before)
        upright = up >= math.cos(math.radians(self.max_tilt))
        error = jnp.linalg.norm(velocity - command)
        effort = jnp.sum(jnp.square(action))
        rewards = {
            "reward/tracking": self.tracking_weight * jnp.exp(-error / self.tracking_scale),
            "reward/upright": self.upright_weight * upright.astype(jnp.float32),
            "reward/fall": -self.fall_weight * (1.0 - upright),
            "reward/tilt": -self.tilt_weight * (1.0 - up),
            "reward/action": -self.action_weight * effort,
            "reward/smooth": -self.smooth_weight * jnp.sum(jnp.square(change)),
        }
        speed = velocity @ command / jnp.maximum(jnp.linalg.norm(command), 1e-6)
        settled = (before.step >= self.settle_time / self.control_dt).astype(jnp.float32)
        original = 0.01 * speed - 0.0001 * effort + 0.02 * upright  # per original step of 2 ms
        info = Info(
            step=before.step + 1,
            commands=before.commands,
            last_action=action,
            settled=before.settled + settled * jnp.stack([speed, 1.0]),
            original_return=before.original_return + original * self.control_dt / 0.002,
        )
        metrics = rewards | {
            "success": upright.astype(jnp.float32),
            "final/goal_speed": info.settled[0] / jnp.maximum(info.settled[1], 1.0),
            "final/original_return": info.original_return,
            "speed_error": error,
        }
        return State(
            physics=physics,
            obs=self._observe(physics, info),
            reward=sum(rewards.values()),
            terminated=~upright,
            metrics=metrics,
            info=info,
        )

    def _observe(self, physics: PhysicsState, info: Info) -> jax.Array:
        """Observation [17]."""
        quat, qvel = physics.qpos[3:7], physics.qvel
        return self.observe(
            gravity=gravity_in_body(quat),
            gyro=qvel[3:6],
            velocity=jnp.append(to_heading(qvel[:2], quat), qvel[2]),
            wheel=self.wheel_speeds(physics) / 10.0,
            last_action=info.last_action,
            command=to_heading(self.command(info), quat),
        )

    def wheel_speeds(self, physics: PhysicsState) -> jax.Array:
        """[3] wheel speeds (rad/s)."""
        if self.drive == "omniwheel":
            wheels = [self.physics.qvel_slice(name) for name in m.WHEEL_GEOMS]
            return jnp.concatenate([physics.qvel[wheel] for wheel in wheels])
        # The ball joint's velocity is in the ball's frame; the gears act in the body's.
        quat = physics.qpos[self.physics.qpos_slice("ball")]
        w, axis, spin = quat[0], quat[1:], physics.qvel[self.physics.qvel_slice("ball")]
        spin = spin + 2.0 * jnp.cross(axis, jnp.cross(axis, spin) + w * spin)
        return jnp.asarray(m.GEAR, jnp.float32) @ spin

    # -- baselines and pictures -------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Scripted controllers that read the full state: State -> action [3]."""
        return {
            "lqr": self._linear(lqr_gain(self.timestep, self.substeps)),
            "pd": self._linear(pd_gain()),
        }

    def _linear(self, gain: np.ndarray) -> Callable[[State], jax.Array]:
        """A controller that holds the commanded velocity; the position is not controlled."""
        gain = gain * np.array([0, 0, 1, 1, 1, 1, 1, 1, 1])

        def act(state: State) -> jax.Array:
            qpos, qvel = state.physics.qpos, state.physics.qvel
            torque = linear_control(
                gain, qpos, qvel, position=qpos[:2], velocity=self.command(state.info)
            )
            return torque / m.MAX_TORQUE

        return act

    def render(self, states: PhysicsState, stride: int) -> np.ndarray:
        """[F, H, W, 3] pictures of every `stride`-th of the physics states [T, ...]; with `sight`,
        what the cameras see is in a corner."""
        return self.with_views(self._drawn(states, stride), states, stride)

    def _drawn(self, states: PhysicsState, stride: int) -> np.ndarray:
        if not self.fields:
            return self.physics.render(states, m.VIEW, stride=stride)
        # A model with the terrain around the robot's way, for the pictures only.
        middle = np.asarray(states.qpos[:, :2]).mean(0)
        heights = self._heights(states, middle)
        floor = m.terrain_geom(heights.shape[0], self.fields.size, middle)
        model = NamedModel(m.mjcf(self.drive, self.timestep, floor), substeps=1)
        model.model.hfield_data[:] = heights.ravel()
        return model.render(states.replace(mocap_pos=None), m.VIEW, stride=stride)

    def _heights(self, states: PhysicsState, middle: np.ndarray) -> np.ndarray:
        """[P, P] heights (m) of the terrain of a trajectory, in a square around a place [2]."""
        fields, ground = cast(HeightFields, self.fields), cast(Ground, states.extra)
        line = fields.size * np.linspace(-0.5, 0.5, fields.heights.shape[-1])
        places = jnp.stack(jnp.meshgrid(middle[0] + line, middle[1] + line), -1)
        height = jax.vmap(jax.vmap(lambda place: fields.height(ground.field[0], place)[0]))
        return np.asarray(ground.scale[0] * jax.jit(height)(places))
