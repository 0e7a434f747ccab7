"""The pick-and-place task: grasp a cube, bring it to a target, keep it there."""

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
from envs_mjx.kuka_pick_place import model as m
from envs_mjx.kuka_pick_place.expert import ExpertInput, cube_yaw, expert
from envs_mjx.physics import Physics, PhysicsState, make_physics
from jaxrl.envs import ArraySpec, CurriculumConfig, State, Task
from jaxrl.envs.rewards import weighted
from jaxrl.errors import UserError
from jaxrl.options import option

# From reward alone. With a std of 0.5 the noise shakes the cube out of the gripper, and the policy
# learns to hold it still on the table until the std has fallen below 0.3.
PPO = {
    "num_steps": 20,
    "learning_rate": 5e-4,
    "gamma": 0.98,
    "num_epochs": 4,
    "num_minibatches": 8,
    "max_grad_norm": 1.0,
    "normalize_reward": True,
    "schedule": {"kind": "linear", "final": 0.05},
    "network": {
        "policy_hidden": [256, 256],
        "value_hidden": [256, 256],
        "activation": "swish",
        "initial_std": 0.25,
    },
}

# Distances (m) at which the fine copies of the two offsets saturate: a grasp needs millimetres,
# positions on the table span decimetres.
FINE_GRASP, FINE_PLACE = 0.015, 0.03
LIFT = 0.03  # m, height above the table at which the cube counts as lifted


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Weights of the reward's terms, in the order in which a good episode earns them."""

    reach: float = option(
        1.0,
        "weight of the reward for reaching: 1 - tanh(5 d), with d the distance of the "
        "grip from the cube (m)",
    )
    grasp: float = option(
        1.0, "weight of the reward for each control step in which both pads press on the cube"
    )
    lift: float = option(
        3.0,
        "weight of the reward for lifting: height above the table / 3 cm, at most 1, and 1 ever "
        "after, while the cube is grasped",
    )
    place: float = option(
        4.0,
        "weight of the reward for placing: 1 - tanh(5 d), with d the distance of the "
        "cube from its target (m), while it is grasped",
    )
    success: float = option(
        4.0, "weight of the reward for each control step in which the cube is at its target"
    )
    action: float = option(-0.001, "weight of the sum of squared actions; negative: a penalty")
    velocity: float = option(
        -0.002, "weight of the sum of squared joint velocities (rad/s); negative: a penalty"
    )


@struct.dataclass
class Info:
    """The task's memory within an episode.

    Attributes:
      controls: [8] targets of the servos: joints (rad) and finger (m).
      target: [3] target position of the cube (m).
      lifted: scalar, 1 once the cube was grasped and `LIFT` above the table.
    """

    controls: jax.Array
    target: jax.Array
    lifted: jax.Array


@dataclasses.dataclass(frozen=True)
class KukaPickPlace(ArmTask):
    """A Kuka iiwa fetches a 5 cm cube from anywhere on the table and holds it at a target on
    the table or in the air, at least 15 cm away.

    Observation [55]: joint positions 7 (rad), velocities 7 (rad/s), joint targets minus
    positions 7 (rad), finger opening 1 (m), grasped 1, position of the grip 3 (m), its closing
    and pointing axes 6, position 3 (m) and velocity 3 (m/s) of the cube, cosine and sine of
    four times the angle between its faces and the fingers 2, target 3 (m), offset x = cube
    minus grip in the grip's frame 3 (m), tanh(x / 15 mm) 3, offset y = target minus cube 3 (m),
    tanh(y / 3 cm) 3.

    Action [8]: changes of the joint targets as shares of `joint_step`; opening of the
    gripper, -1 closed and 1 open.

    Success: at the end of the episode the cube is within `tolerance` of the target.
    """

    grasp: Literal["friction", "magnet"] = option(
        "friction",
        "how the gripper holds the cube: by the friction of its pads, or by a magnet "
        "that ties it to the closing gripper",
    )
    magnet_radius: float = option(
        0.02,
        "distance of the cube from the grip within which the magnet holds it (m)",
        greater_than=0,
    )
    joint_step: float = option(
        0.04, "largest change of a joint's target in one control step (rad)", greater_than=0
    )
    tolerance: float = option(
        0.02, "the cube counts as placed within this distance from its target (m)", greater_than=0
    )
    grasped_starts: float = option(
        0.3,
        "share of episodes that start with the cube in the gripper, at curriculum level 0",
        minimum=0,
        maximum=1,
    )
    episode_seconds: float = option(4.0, "time limit of an episode (s)", greater_than=0)
    start_noise: float = option(
        0.1,
        "largest offset of a joint from its home position at the start of an episode (rad)",
        minimum=0,
    )
    timestep: float = option(0.005, "length of a physics step (s)", greater_than=0, maximum=0.01)
    substeps: int = option(4, "number of physics steps in one control step", minimum=1)
    rewards: Rewards = option(Rewards(), "weights of the reward's terms")
    curriculum: CurriculumConfig = option(
        CurriculumConfig(start=(0.0,), raise_at=0.5, step=0.2),
        "0: some episodes start with the cube in the gripper, 1: none",
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {
                "num_envs": 256,
                "total_timesteps": 4_000_000,
                "ppo": PPO,
                "eval": {"every": 500_000},
                "checkpoint": {"every": 500_000},
            }
        },
        "gpu": {
            "ppo": {
                "num_envs": 2048,
                "total_timesteps": 20_000_000,
                "ppo": PPO | {"num_minibatches": 32},
            }
        },
    }

    observation_parts: ClassVar[dict[str, int]] = {
        "q": 7,
        "qdot": 7,
        "error": 7,
        "finger": 1,
        "grasped": 1,
        "grip": 3,
        "grip_axes": 6,
        "cube": 3,
        "cube_velocity": 3,
        "faces": 2,
        "target": 3,
        "to_cube": 3,
        "to_cube_fine": 3,
        "to_target": 3,
        "to_target_fine": 3,
    }

    simulators: ClassVar[tuple[str, ...]] = (*ArmTask.simulators, "pybullet")

    @functools.cached_property
    def physics(self) -> Physics:
        return make_physics(engine=self.engine, **self._model)

    @property
    def _model(self) -> dict[str, Any]:
        """Arguments of `make_physics` but for the engine."""
        watched = m.WATCHED["left_pad_cube"] + m.WATCHED["right_pad_cube"]
        return {
            "xml": m.mjcf(self.timestep, self.grasp),
            "substeps": self.substeps,
            "watch": watched if self.grasp == "friction" else (),
            "sites": ("grip",),
            "bodies": ("cube",),
            "jacobians": True,
        }

    def on(self, simulator: str) -> Task:
        if simulator != "pybullet":
            return super().on(simulator)
        if self.grasp != "magnet":
            raise UserError(
                "--on: in PyBullet the cube is held by the magnet; add --set env.grasp=magnet, or "
                "evaluate a policy that was trained with env.grasp=magnet"
            )
        from envs_mjx.kuka_pick_place.bullet import BulletPhysics

        task = dataclasses.replace(self)
        vars(task)["physics"] = BulletPhysics(**self._model)  # replaces the cached property
        return task

    @functools.cached_property
    def arm(self) -> Arm:
        return Arm(self.physics, m.ARM_JOINTS, "grip", self.joint_step)

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"at the end the cube is within {self.tolerance:g} m of the target"

    @property
    def action_spec(self) -> ArraySpec:
        return ArraySpec((8,), -1.0, 1.0, (*m.ARM_JOINTS, "gripper"))

    # -- episodes -------------------------------------------------------------------

    def reset(self, key: jax.Array, level: jax.Array | float = 1.0) -> State:
        """Starts at rest, with cube and target anywhere. At a low level of the curriculum some
        episodes start with the cube in the gripper."""
        key_place, key_yaw, key_pose, key_start, key_which = jax.random.split(key, 5)
        cube, target = self._places(key_place)
        half_yaw = jnp.pi * jax.random.uniform(key_yaw)
        quat = jnp.stack([jnp.cos(half_yaw), 0.0, 0.0, jnp.sin(half_yaw)])
        offset = self.start_noise * jax.random.uniform(key_pose, (7,), minval=-1.0)
        qpos = (
            jnp.asarray(self.physics.rest, jnp.float32)
            .at[self.arm.qpos].set(jnp.clip(m.HOME + offset, *self.arm.limits))
            .at[self._fingers].set(m.FINGER_OPENING)
            .at[self._cube].set(jnp.concatenate([cube, quat]))
        )  # fmt: skip
        held = jax.random.bernoulli(key_start, self.grasped_starts * (1.0 - jnp.squeeze(level)))
        bank = jnp.asarray(self._grasped_bank, jnp.float32)
        qpos = jnp.where(held, bank[jax.random.randint(key_which, (), 0, len(bank))], qpos)
        physics = self.physics.init(qpos, mocap_pos=target[None])
        info = Info(
            controls=jnp.append(qpos[self.arm.qpos], qpos[self._fingers[0]]),
            target=target,
            lifted=jnp.zeros(()),
        )
        return self.at_start(self._judge(physics, info, jnp.zeros(8)))

    def _places(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Random positions [3] of the cube, on the table, and of the target, far enough apart."""
        key_cube, key_target, key_height = jax.random.split(key, 3)
        low, high = (jnp.array(ends) for ends in zip(m.X_RANGE, m.Y_RANGE, strict=True))
        cube = jax.random.uniform(key_cube, (2,), minval=low, maxval=high)
        # The first of eight draws that is far enough; the chance that none of them is: 0.3 %.
        targets = jax.random.uniform(key_target, (8, 2), minval=low, maxval=high)
        far = jnp.linalg.norm(targets - cube, axis=1) >= m.MIN_DISTANCE
        target = targets[jnp.argmax(far)]
        # Half of the targets lie on the table.
        lowest, highest = m.TARGET_Z_RANGE
        height = jax.random.uniform(key_height, minval=2 * lowest - highest, maxval=highest)
        return jnp.append(cube, m.CUBE_HALF), jnp.append(target, jnp.maximum(height, lowest))

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; `action` [8] moves the joint targets and sets the gripper."""
        before, info = state.physics, self.commanded(state.info, action)
        if self.grasp == "magnet":
            tied = self._magnet(before, action[7])
            before = before.replace(eq_active=before.eq_active.at[self._tie].set(tied))
        return self._judge(self.physics.step(before, info.controls), info, action)

    def commanded(self, info: Info, action: jax.Array) -> Info:
        """The memory with the servos' targets after an action [8]."""
        lowest = self.physics.joint_range("finger")[0]
        closed = (1.0 - jnp.clip(action[7], -1.0, 1.0)) / 2.0
        opening = m.FINGER_OPENING - closed * (m.FINGER_OPENING - lowest)
        joints = self.arm.moved(info.controls[:7], action[:7])
        return info.replace(controls=jnp.append(joints, opening))

    def _magnet(self, physics: PhysicsState, gripper: jax.Array) -> jax.Array:
        """Scalar bool: the cube is tied to the grip in the next step."""
        grip, _ = self.physics.site_pose(physics, "grip")
        near = jnp.linalg.norm(grip - physics.qpos[self._cube][:3]) < self.magnet_radius
        return (gripper < 0) & (near | physics.eq_active[self._tie])

    @functools.cached_property
    def _tie(self) -> int:
        return self.physics.equality_id("magnet")

    @functools.cached_property
    def _cube(self) -> slice:
        return self.physics.qpos_slice("cube")

    @functools.cached_property
    def _fingers(self) -> np.ndarray:
        return np.array([self.physics.qpos_slice(name).start for name in m.FINGER_JOINTS])

    @functools.cached_property
    def _grasped_bank(self) -> np.ndarray:
        """[B, nq] states at rest with the cube in the closed gripper, half of them on the table."""
        rng, physics = np.random.default_rng(0), self.physics
        low, high = zip(m.X_RANGE, m.Y_RANGE, m.TARGET_Z_RANGE, strict=True)
        below = np.subtract(low, [0.0, 0.0, high[2] - low[2]])
        bank = []
        for point in np.maximum(rng.uniform(below, high, (64, 3)), low):
            yaw = rng.uniform(-np.pi / 4, np.pi / 4)
            c, s = np.cos(yaw), np.sin(yaw)
            down = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])
            qpos = physics.rest.copy()
            qpos[self._fingers] = m.CUBE_HALF - 0.0005
            qpos[self.arm.qpos] = self.arm.solve(m.HOME, point, down)
            qpos[self._cube] = [*point, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            bank.append(qpos)
        return np.stack(bank)

    def _judge(self, physics: PhysicsState, before: Info, action: jax.Array) -> State:
        """Reward, metrics and observation of the step that led to `physics`."""
        grip, grip_axes = self.physics.site_pose(physics, "grip")
        cube, cube_axes = self.physics.body_pose(physics, "cube")
        grasped = self._grasped(physics)
        height = cube[2] - m.CUBE_HALF
        to_cube, to_target = cube - grip, before.target - cube
        distance = jnp.linalg.norm(to_target)
        placed = (distance < self.tolerance).astype(jnp.float32)
        lifted = jnp.maximum(before.lifted, grasped * (height > LIFT))
        info = before.replace(lifted=lifted)
        reward, shares = weighted(
            {
                "reach": 1.0 - jnp.tanh(5.0 * jnp.linalg.norm(to_cube)),
                "grasp": grasped,
                "lift": grasped * jnp.maximum(lifted, jnp.clip(height / LIFT, 0.0, 1.0)),
                "place": grasped * (1.0 - jnp.tanh(5.0 * distance)),
                "success": placed,
                "action": jnp.sum(jnp.square(action)),
                "velocity": jnp.sum(jnp.square(physics.qvel[self.arm.dofs])),
            },
            self.rewards,
        )
        return State(
            physics=physics,
            obs=self._observe(physics, info, (grip, grip_axes), (cube, cube_axes), grasped),
            reward=reward,
            terminated=jnp.zeros((), bool),
            metrics=shares
            | {
                "success": placed,
                "final/distance": distance,
                "final/grasped": grasped,
                "final/lifted": lifted,
            },
            info=info,
        )

    def _observe(
        self,
        physics: PhysicsState,
        info: Info,
        grip: tuple[jax.Array, jax.Array],
        cube: tuple[jax.Array, jax.Array],
        grasped: jax.Array,
    ) -> jax.Array:
        """The observation; `grip` and `cube` are positions [3] and rotations [3, 3]."""
        (place, axes), (cube_place, cube_axes) = grip, cube
        q, to_target = physics.qpos[self.arm.qpos], info.target - cube_place
        in_grip = axes.T @ (cube_place - place)
        turn = cube_yaw(cube_axes) - jnp.arctan2(axes[1, 1], axes[0, 1])
        return self.observe(
            q=q,
            qdot=physics.qvel[self.arm.dofs],
            error=info.controls[:7] - q,
            finger=physics.qpos[self._fingers[0]],
            grasped=grasped,
            grip=place,
            grip_axes=axes[:, 1:].T,
            cube=cube_place,
            cube_velocity=physics.qvel[self.physics.qvel_slice("cube")][:3],
            faces=jnp.stack([jnp.cos(4 * turn), jnp.sin(4 * turn)]),
            target=info.target,
            to_cube=in_grip,
            to_cube_fine=jnp.tanh(in_grip / FINE_GRASP),
            to_target=to_target,
            to_target_fine=jnp.tanh(to_target / FINE_PLACE),
        )

    def _grasped(self, physics: PhysicsState) -> jax.Array:
        """Scalar, 1 if the gripper holds the cube."""
        if self.grasp == "magnet":
            return physics.eq_active[self._tie].astype(jnp.float32)
        left, right = physics.touch.reshape(2, -1).sum(1)
        return ((left > 0) & (right > 0)).astype(jnp.float32)

    # -- baselines and pictures -------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Inverse kinematics and geometry, State -> action [8]."""
        return {"scripted": self._scripted}

    def _scripted(self, state: State) -> jax.Array:
        physics = state.physics
        cube, cube_axes = self.physics.body_pose(physics, "cube")
        arm = self.arm.view(physics, state.info.controls[:7])
        return expert(
            ExpertInput(
                arm=arm,
                finger=physics.qpos[self._fingers[0]],
                cube_position=cube,
                cube_rotation=cube_axes,
                target_position=state.info.target,
            ),
            joint_step=self.joint_step,
        )

    def render(self, states: PhysicsState, stride: int) -> np.ndarray:
        """[F, H, W, 3] pictures of every `stride`-th of the physics states [T, ...]."""
        return self.physics.render(states, m.VIEW, stride=stride)
