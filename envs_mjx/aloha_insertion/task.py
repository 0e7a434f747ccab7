"""The insertion task: two arms grasp a peg and a socket and join them in the air."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_mjx.aloha_insertion import model as m
from envs_mjx.aloha_insertion.expert import (
    MEETING,
    PEG_GRASP_Z,
    SOCKET_GRASP_Z,
    Hand,
    View,
    expert,
    grasp_rotation,
)
from envs_mjx.arm import Arm, ArmTask
from envs_mjx.physics import Physics, PhysicsState, make_physics
from envs_mjx.rotations import tilted
from envs_mjx.sight import Pictured
from envs_mjx.vision import Camera
from jaxrl.envs import ArraySpec, CurriculumConfig, State
from jaxrl.envs.rewards import weighted
from jaxrl.options import option

STAGES = 4
# Simulation takes nearly all of the time, so each sample is used for many updates. The policy
# imitates the scripted controller in the states that it visits.
PPO = {
    "num_steps": 20,
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "num_epochs": 8,
    "num_minibatches": 4,
    "max_grad_norm": 1.0,
    "normalize_reward": True,
    "schedule": {"kind": "linear", "final": 0.05},
    "expert": {"name": "scripted", "coef": 3.0, "until": 1.0},
    "network": {
        "policy_hidden": [256, 256],
        "value_hidden": [256, 256],
        "activation": "swish",
        "initial_std": 0.15,
    },
}

_ARM_PARTS = {"q": 6, "qdot": 6, "error": 6, "finger": 1, "grip": 3, "grip_axes": 6, "held": 1}
_OBJECT = {"position": 3, "axes": 6, "velocity": 3, "in_grip": 3, "in_grip_fine": 3}
_BETWEEN = {"between": 3, "to_pin_fine": 3, "aside": 1, "turned": 3}
# Distance (m) at which the fine copies of offsets saturate: grasps and the insertion need
# millimetres, positions on the table span decimetres.
FINE = 0.015
HOLDS = {"left": "socket", "right": "peg"}
RESET = {"socket": m.SOCKET_RESET, "peg": m.PEG_RESET}  # m
REST_Z = {"socket": m.SOCKET_REST_Z, "peg": m.PEG_REST_Z}  # m
# For each object: half its width (m), and the height of the grasp above its centre (m).
GRASP = {"socket": (m.SOCKET_HALF[1], SOCKET_GRASP_Z), "peg": (m.PEG_HALF[1], PEG_GRASP_Z)}


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Weights of the shaped reward's terms, in the order in which a good episode earns them."""

    reach: float = option(
        0.5,
        "weight of the reward for reaching: 1 - tanh(5 d), with d the distance of each "
        "gripper from its object (m)",
    )
    hold: float = option(
        0.5, "weight of the reward for each object that both pads of its gripper press on"
    )
    lift: float = option(
        1.0,
        "weight of the reward for lifting: height / 5 cm, at most 1, of each object "
        "while it is held",
    )
    align: float = option(
        2.0,
        "weight of the reward for aligning: exp(-20 d), with d the distance of the "
        "peg's end from the socket's axis (m), while both are lifted",
    )
    approach: float = option(
        2.0,
        "weight of the reward for approaching: that for aligning times exp(-10 g), with g the "
        "gap between the peg's end and the socket's opening (m)",
    )
    insert: float = option(
        4.0,
        "weight of the reward for inserting: the share of the way into the socket, "
        "while the peg is near its axis",
    )
    stage: float = option(1.0, "weight of the stage that is reached, 0 to 4")
    action: float = option(-0.001, "weight of the sum of squared actions; negative: a penalty")
    velocity: float = option(
        -0.001, "weight of the sum of squared joint velocities (rad/s); negative: a penalty"
    )


@struct.dataclass
class Info:
    """The task's memory within an episode.

    Attributes:
      controls: [14] targets of the servos: left joints, finger, right joints, finger (rad, m).
      best: scalar, highest stage so far.
    """

    controls: jax.Array
    best: jax.Array


@dataclasses.dataclass(frozen=True)
class AlohaInsertion(ArmTask, Pictured):
    """Two ViperX arms: the left one grasps a socket, the right one a peg; both lift, and the
    peg goes 20 mm into the socket until it touches the pin inside.

    Observation [104], for each arm: joint positions 6 (rad), velocities 6 (rad/s), targets
    minus positions 6 (rad), finger 1 (m), gripper's position 3 (m) and two axes 6, whether it
    holds its object 1; for socket and peg: centre 3 (m), two axes 6, velocity 3 (m/s), offset
    x = centre minus gripper in the gripper's frame 3 (m), tanh(x / 15 mm) 3; the peg's centre in
    the socket's frame 3 (m), tanh(y / 15 mm) 3 with y its offset from the place at the pin,
    distance of the peg's entering end from the socket's axis 1 (m), cross product of the two
    objects' axes 3.

    With `sight` rgb, a camera above the table shows the objects, and the observation has no numbers
    about them.

    Action [14]: left arm's changes of joint targets as shares of `joint_step` 6 and gripper
    opening 1 (-1 closed, 1 open), then the right arm's.

    Stages: 1 both objects between the pads of their grippers; 2 and both off the table;
    3 and the peg touches the socket, or its end is inside; 4 and the peg touches the pin.
    Success: stage 4 has been reached. At evaluation the reward of a step is its stage, as in
    the original task.
    """

    shaped: bool = option(
        True,
        "a dense reward; if false, the reward of a step is the stage that is reached "
        "(evaluations always use that)",
    )
    joint_step: float = option(
        0.03, "largest change of a joint's target in one control step (rad)", greater_than=0
    )
    near_starts: float = option(
        0.6,
        "share of episodes that start with the objects grasped or just before the "
        "insertion, at curriculum level 0",
        minimum=0,
        maximum=1,
    )
    start_yaw: float = option(
        10.0, "largest yaw of the objects at the start of an episode (deg)", minimum=0, maximum=20
    )
    start_noise: float = option(
        0.05,
        "largest offset of a joint from its home position at the start of an episode (rad)",
        minimum=0,
    )
    episode_seconds: float = option(6.0, "time limit of an episode (s)", greater_than=0)
    timestep: float = option(0.004, "length of a physics step (s)", greater_than=0, maximum=0.01)
    substeps: int = option(5, "number of physics steps in one control step", minimum=1)
    rewards: Rewards = option(Rewards(), "weights of the shaped reward's terms")
    curriculum: CurriculumConfig = option(
        CurriculumConfig(start=(0.0,), raise_at=0.5, step=0.2),
        "0: some episodes start near the grasp or the insertion, 1: none",
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {
                "num_envs": 128,
                "total_timesteps": 400_000,
                "ppo": PPO,
                "eval": {"every": 100_000},
                "checkpoint": {"every": 100_000},
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
    eval_overrides: ClassVar[dict[str, Any]] = {"shaped": False}
    CAMERAS: ClassVar[tuple[Camera, ...]] = m.CAMERAS

    @functools.cached_property
    def physics(self) -> Physics:
        xml = m.mjcf(self.timestep)
        watched = [pair for pairs in m.WATCHED.values() for pair in pairs]
        return make_physics(
            xml,
            engine=self.engine,
            substeps=self.substeps,
            watch=watched,
            sites=[f"{side}/gripper" for side in m.SIDES],
            bodies=tuple(dict.fromkeys(("socket", "peg", *self.seen_bodies(xml)))),
            jacobians=True,
        )

    @functools.cached_property
    def arms(self) -> dict[str, Arm]:
        return {
            side: Arm(
                self.physics,
                tuple(f"{side}/{name}" for name in m.ARM_JOINTS),
                f"{side}/gripper",
                self.joint_step,
            )
            for side in m.SIDES
        }

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return "the peg touched the pin inside the socket, both held (stage 4)"

    @property
    def observation_parts(self) -> dict[str, int]:
        return (
            {f"{side}_{part}": size for side in m.SIDES for part, size in _ARM_PARTS.items()}
            | {f"{name}_{part}": n for name in ("socket", "peg") for part, n in _OBJECT.items()}
            | _BETWEEN
        )

    @property
    def shown(self) -> tuple[str, ...]:
        """Parts of the observation that the camera's images show: all about the objects."""
        objects = tuple(f"{name}_{part}" for name in ("socket", "peg") for part in _OBJECT)
        return (*objects, *_BETWEEN)

    @property
    def action_spec(self) -> ArraySpec:
        names = [f"{side}/{name}" for side in m.SIDES for name in (*m.ARM_JOINTS, "gripper")]
        return ArraySpec((14,), -1.0, 1.0, tuple(names))

    # -- episodes -------------------------------------------------------------------

    def reset(self, key: jax.Array, level: jax.Array | float = 1.0) -> State:
        """Starts at rest, with the objects on the table. At a low level of the curriculum some
        episodes start with both objects grasped, or lifted and facing each other."""
        key_objects, key_pose, key_near, key_which = jax.random.split(key, 4)
        qpos = jnp.asarray(self.physics.rest, jnp.float32)
        keys = jax.random.split(key_objects, 4)
        for i, name in enumerate(("socket", "peg")):
            place = jax.random.uniform(
                keys[2 * i], (2,), minval=RESET[name][0], maxval=RESET[name][1]
            )
            yaw = jnp.deg2rad(self.start_yaw) * jax.random.uniform(keys[2 * i + 1], minval=-1.0)
            pose = jnp.concatenate([jnp.stack([*place, REST_Z[name]]), tilted(yaw)])
            qpos = qpos.at[self._objects[name]].set(pose)
        offsets = self.start_noise * jax.random.uniform(key_pose, (2, 6), minval=-1.0)
        for side, offset in zip(m.SIDES, offsets, strict=True):
            arm = self.arms[side]
            qpos = qpos.at[arm.qpos].set(jnp.clip(m.HOME + offset, *arm.limits))
            qpos = qpos.at[self._fingers[side]].set(m.FINGER_OPEN)
        near = jax.random.bernoulli(key_near, self.near_starts * (1.0 - jnp.squeeze(level)))
        bank = jnp.asarray(self._bank, jnp.float32)
        qpos = jnp.where(near, bank[jax.random.randint(key_which, (), 0, len(bank))], qpos)
        controls = []
        for side in m.SIDES:
            opening = jnp.where(near, m.FINGER_CLOSED, m.FINGER_OPEN)
            controls += [qpos[self.arms[side].qpos], opening[None]]
        info = Info(controls=jnp.concatenate(controls), best=jnp.zeros(()))
        start = self._judge(self.physics.init(qpos), info, jnp.zeros(14))
        return self.first_look(self.at_start(start))

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; `action` [14] moves the joint targets and sets the grippers."""
        info = self.commanded(state.info, action)
        physics = self.physics.step(state.physics, info.controls)
        return self.look(state, self._judge(physics, info, action))

    def commanded(self, info: Info, action: jax.Array) -> Info:
        """The memory with the servos' targets after an action [14]."""
        controls = []
        for i, side in enumerate(m.SIDES):
            arm_action, old_targets = action[7 * i : 7 * i + 7], info.controls[7 * i : 7 * i + 6]
            opening = 0.5 * (1.0 + jnp.clip(arm_action[6:], -1.0, 1.0))
            controls.append(self.arms[side].moved(old_targets, arm_action[:6]))
            controls.append(m.FINGER_CLOSED + opening * (m.FINGER_OPEN - m.FINGER_CLOSED))
        return info.replace(controls=jnp.concatenate(controls))

    @functools.cached_property
    def _objects(self) -> dict[str, slice]:
        return {name: self.physics.qpos_slice(name) for name in ("socket", "peg")}

    @functools.cached_property
    def _fingers(self) -> dict[str, np.ndarray]:
        names = {side: (f"{side}/finger", f"{side}/finger_2") for side in m.SIDES}
        return {
            side: np.array([self.physics.qpos_slice(name).start for name in pair])
            for side, pair in names.items()
        }

    @functools.cached_property
    def _bank(self) -> np.ndarray:
        """[B, nq] states at rest with both objects held: in one half of the states on the table,
        in the other half in the air, facing each other."""
        rng, bank = np.random.default_rng(0), []
        for i in range(64):
            qpos = self.physics.rest.copy()
            for side, name in HOLDS.items():
                if i % 2:
                    place = MEETING[name] + rng.uniform(-0.01, 0.01, 3)
                    yaw = 0.0
                else:
                    place = np.append(rng.uniform(*RESET[name]), REST_Z[name])
                    yaw = np.deg2rad(self.start_yaw) * rng.uniform(-1, 1)
                self._grasp(qpos, side, place, yaw)
            bank.append(qpos)
        return np.stack(bank)

    def _grasp(self, qpos: np.ndarray, side: str, place: np.ndarray, yaw: float) -> None:
        """Places an object, with its arm's gripper closed around it, in `qpos`."""
        name, arm = HOLDS[side], self.arms[side]
        half, raised = GRASP[name]
        axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        with jax.ensure_compile_time_eval():
            rotation = np.asarray(grasp_rotation(axis, 1.0 if side == "left" else -1.0))
        guess = np.array([0.0, 0.0, 0.7, 0.0, 0.7, 0.0])
        qpos[self._objects[name]] = [*place, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        qpos[self._fingers[side]] = m.FINGER_CLOSED + half - 0.0001
        qpos[arm.qpos] = arm.solve(guess, place + [0, 0, raised], rotation)

    # -- reward and observation ----------------------------------------------------------

    def _touches(self, physics: PhysicsState) -> dict[str, jax.Array]:
        """Normal forces (N) by the names in `WATCHED`, one for each of a name's pairs."""
        forces, start = {}, 0
        for name, pairs in m.WATCHED.items():
            forces[name] = physics.touch[start : start + len(pairs)]
            start += len(pairs)
        return forces

    def _judge(self, physics: PhysicsState, before: Info, action: jax.Array) -> State:
        """Reward, metrics and observation of the step that led to `physics`."""
        touch = self._touches(physics)
        held = {name: (touch[f"{name}_held"] > 0).all() for name in REST_Z}
        poses = {name: self.physics.body_pose(physics, name) for name in REST_Z}
        geometry = _Geometry.of(poses["peg"], poses["socket"])
        rise = {name: pose[0][2] - REST_Z[name] for name, pose in poses.items()}
        lifted = {
            name: held[name] & (touch[f"{name}_table"] <= 0).all() & (rise[name] > 0.02)
            for name in GRASP
        }
        both_lifted = lifted["peg"] & lifted["socket"]
        stage = _stage(
            held["peg"] & held["socket"],
            both_lifted,
            (touch["peg_socket"] > 0).any() | ((geometry.depth > 0) & (geometry.aside < 0.01)),
            (touch["peg_pin"] > 0).any(),
        )
        info = before.replace(best=jnp.maximum(before.best, stage))
        grips = {side: self.physics.site_pose(physics, f"{side}/gripper") for side in m.SIDES}
        velocities = [physics.qvel[arm.dofs] for arm in self.arms.values()]
        aligned = both_lifted * jnp.exp(-20.0 * geometry.aside)
        terms = {
            "reach": sum(
                1.0 - jnp.tanh(5.0 * jnp.linalg.norm(poses[name][0] - grips[side][0]))
                for side, name in HOLDS.items()
            ),
            "hold": sum(held[name].astype(jnp.float32) for name in REST_Z),
            "lift": sum(held[t] * jnp.clip(rise[t] / 0.05, 0.0, 1.0) for t in REST_Z),
            "align": aligned,
            "approach": aligned * jnp.exp(-10.0 * geometry.gap),
            "insert": both_lifted * jnp.where(geometry.aside < 0.012, geometry.depth, 0.0),
            "stage": stage,
            "action": jnp.sum(jnp.square(action)),
            "velocity": sum(jnp.sum(jnp.square(v)) for v in velocities),
        }
        reward, shares = weighted(terms, self.rewards)
        metrics = {
            **{f"final/stage_{k}": (info.best >= k).astype(jnp.float32) for k in range(1, 5)},
            "success": (info.best >= STAGES).astype(jnp.float32),
            "final/stage": stage,
            "final/aside": geometry.aside,
            "final/depth": geometry.depth,
        }
        return State(
            physics=physics,
            obs=self._observe(physics, info, poses, grips, held, geometry),
            reward=reward if self.shaped else stage,
            terminated=jnp.zeros((), bool),
            metrics=shares | metrics if self.shaped else metrics,
            info=info,
        )

    def _observe(
        self,
        physics: PhysicsState,
        info: Info,
        poses: dict[str, tuple[jax.Array, jax.Array]],
        grips: dict[str, tuple[jax.Array, jax.Array]],
        held: dict[str, jax.Array],
        geometry: _Geometry,
    ) -> jax.Array:
        """Observation [104]."""
        parts = {}
        for i, side in enumerate(m.SIDES):
            arm, (position, axes) = self.arms[side], grips[side]
            q = physics.qpos[arm.qpos]
            parts |= {
                f"{side}_q": q,
                f"{side}_qdot": physics.qvel[arm.dofs],
                f"{side}_error": info.controls[7 * i : 7 * i + 6] - q,
                f"{side}_finger": physics.qpos[self._fingers[side][0]],
                f"{side}_grip": position,
                f"{side}_grip_axes": axes[:, ::2].T,
                f"{side}_held": held[HOLDS[side]].astype(jnp.float32),
            }
        for side, name in HOLDS.items():
            position, axes = poses[name]
            in_grip = grips[side][1].T @ (position - grips[side][0])
            parts |= {
                f"{name}_position": position,
                f"{name}_axes": axes[:, ::2].T,
                f"{name}_velocity": physics.qvel[self.physics.qvel_slice(name)][:3],
                f"{name}_in_grip": in_grip,
                f"{name}_in_grip_fine": jnp.tanh(in_grip / FINE),
            }
        to_pin = geometry.between - jnp.array([m.FULL_DISTANCE, 0.0, 0.0])
        return self.observe(
            **parts,
            between=geometry.between,
            to_pin_fine=jnp.tanh(to_pin / FINE),
            aside=geometry.aside,
            turned=geometry.turned,
        )

    # -- baselines and pictures -------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Inverse kinematics and geometry, State -> action [14]."""
        return {"scripted": self._scripted}

    def _scripted(self, state: State) -> jax.Array:
        return expert(self._view(state), joint_step=self.joint_step)

    def _view(self, state: State) -> View:
        physics, hands = state.physics, {}
        for i, side in enumerate(m.SIDES):
            targets = state.info.controls[7 * i : 7 * i + 6]
            hands[side] = Hand(
                arm=self.arms[side].view(physics, targets),
                finger=physics.qpos[self._fingers[side][0]],
            )
        peg, peg_axes = self.physics.body_pose(physics, "peg")
        socket, socket_axes = self.physics.body_pose(physics, "socket")
        return View(
            **hands, peg=peg, peg_rotation=peg_axes, socket=socket, socket_rotation=socket_axes
        )

    def render(self, states: PhysicsState, stride: int) -> np.ndarray:
        """[F, H, W, 3] pictures of every `stride`-th of the physics states [T, ...]."""
        frames = self.physics.render(states, m.VIEW, stride=stride)
        return self.with_views(frames, states, stride)


@struct.dataclass
class _Geometry:
    """The peg's pose relative to the socket.

    Attributes:
      between: [3] the peg's centre in the socket's frame (m).
      aside: scalar, distance of the peg's entering end from the socket's axis (m).
      gap: scalar, distance of the peg's end from the socket's opening along the axis (m); 0 inside.
      depth: scalar, 0 outside of the socket, 1 at the pin.
      turned: [3] cross product of the two axes, in the world.
    """

    between: jax.Array
    aside: jax.Array
    gap: jax.Array
    depth: jax.Array
    turned: jax.Array

    @classmethod
    def of(cls, peg: tuple[jax.Array, jax.Array], socket: tuple[jax.Array, jax.Array]) -> _Geometry:
        between = socket[1].T @ (peg[0] - socket[0])
        along = jnp.sign(peg[1][:, 0] @ socket[1][:, 0]) * peg[1][:, 0]
        end = between - socket[1].T @ (m.PEG_HALF[0] * along)
        full_depth = m.ENTRY_DISTANCE - m.FULL_DISTANCE
        return cls(
            between=between,
            aside=jnp.linalg.norm(end[1:]),
            gap=jnp.maximum(between[0] - m.ENTRY_DISTANCE, 0.0),
            depth=jnp.clip((m.ENTRY_DISTANCE - between[0]) / full_depth, 0.0, 1.0),
            turned=jnp.cross(along, socket[1][:, 0]),
        )


def _stage(*conditions: jax.Array) -> jax.Array:
    """Number of conditions that hold before the first that does not."""
    reached = jnp.cumprod(jnp.stack([c.astype(jnp.float32) for c in conditions]))
    return reached.sum()
