"""Kuka pick and place: a magnet at the flange fetches a cube and brings it to a target."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium.spaces import Box

from envs_legacy.bullet import TIMESTEP, BulletEnv, Camera, pybullet
from jaxrl.errors import UserError

HOME = np.array([0.0, 0.0, 0.0, -1.57, 0.0, 1.57, 0.0])  # rad
JOINTS = tuple(range(7))
HAND = 6  # the last link
FACE = 0.026  # m from the last link's centre of mass to the flange's face, along the tool
MOTOR_TORQUE = 300.0  # N m
CUBE_EDGE = 0.05  # m
CUBE_MASS = 0.1  # kg
TABLE_TOP = 0.025  # m, so that a cube at rest is at the height of the published start
TABLE_HALF = (0.4, 0.5, TABLE_TOP / 2)  # m
TABLE_X = 0.55  # m, its centre
MAGNET_FORCE = 200.0  # N
APART = 0.15  # m, smallest distance of the target from the cube
SPREAD = np.array([0.1, 0.2])  # m, half size of the regions of cube and target
CENTRE = np.array([0.5, 0.0])  # m, their centre
TARGET_HEIGHT = (0.05, 0.2)  # m
MENDED_SUCCESS = 0.05  # m
MENDED_SUBSTEPS = 8  # physics steps in a control step: 30 Hz
PROGRESS, GRASPED, PLACED, STEP_COST = 10.0, 5.0, 10.0, 0.01  # rewards of the mended task


@dataclasses.dataclass(frozen=True)
class Variant:
    """A published parameter set.

    Attributes:
      speed: speed of a joint at |action| = 1 (rad/s).
      steps: control steps of a published episode, one physics step each.
      mended_steps: control steps of a mended episode, `MENDED_SUBSTEPS` physics steps each.
      cube, target: [3] positions in the published task (m).
      attach_radius: the cube sticks to the hand within this distance from its centre (m).
      success_radius: distance of the cube from the target for success, as published (m).
    """

    speed: float
    steps: int
    mended_steps: int
    cube: tuple[float, float, float]
    target: tuple[float, float, float]
    attach_radius: float
    success_radius: float


VARIANTS = {
    "guide": Variant(0.5, 200, 300, (0.5, 0.0, 0.05), (0.5, 0.2, 0.05), 0.03, 0.05),
    "final": Variant(2.0, 1000, 200, (0.35, 0.0, 0.05), (0.35, 0.08, 0.05), 0.08, 0.08),
}


class KukaPickPlace(BulletEnv):
    """A Kuka iiwa, a 5 cm cube on a low table, and a target.

    The cube sticks to the hand once the hand comes within the variant's radius of the
    cube's centre, and is not released. Success, which ends the episode: the cube sticks to the
    hand and is near the target. The time limit is set at registration (see `episode_steps`).

    Action [7]: joint velocities as shares of the variant's speed.

    Mended (corrected; the default): 30 Hz control of 8 physics steps. Cube and target are drawn
    at random over x .4 to .6 m, y -.2 to .2 m, at least .15 m apart, the target .05 to .2 m
    high. The hand is the centre of the flange's face. Success within .05 m. Reward: 10 for
    each metre by which the distances hand to cube and cube to target decrease, 5 for the grasp,
    10 for success, -.01 in each step. Observation [33]: joint angles 7 (rad), joint velocities 7
    (rad/s), hand 3 (m), cube 3 (m), cube's velocity 3 (m/s), target 3 (m), cube - hand 3 (m),
    target - cube 3 (m), attached 1.

    Not mended: the task as published, with one physics step per action at 240 Hz, a fixed start,
    and no target in the observation. The hand is the last link's centre of mass, 26 mm
    inside the flange. Observation [21]: joint angles 7, joint velocities 7, hand 3, cube 3,
    attached 1. Reward of "guide": in each step -.01 and -.1 times the distance hand to cube
    (after the grasp: cube to target), 50 for the grasp, 100 for success. Reward of "final": 50
    for each metre nearer to the cube before the grasp, 100 for the grasp, 80 for each metre of
    lift after it, 500 for success.

    info: `is_success`, `distance` (m, cube to target), `attached`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 30}
    camera = Camera(target=(0.3, 0.0, 0.3), distance=1.5)

    def __init__(
        self,
        variant: Literal["final", "guide"] = "final",
        mended: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"variant: got {variant!r}, must be one of {sorted(VARIANTS)}")
        super().__init__(render_mode)
        self.variant, self.mended, self.numbers = variant, mended, VARIANTS[variant]
        self.substeps = MENDED_SUBSTEPS if mended else 1
        self.success_radius = MENDED_SUCCESS if mended else self.numbers.success_radius
        if not mended:
            self.metadata = self.metadata | {"render_fps": round(1 / TIMESTEP)}
        place, offset = [2.0] * 3, [4.0] * 3  # m
        joints = [3.2] * 7 + [20.0] * 7  # rad, rad/s
        others = [*place, *[10.0] * 3, *place, *offset, *offset, 1.0] if mended else [*place, 1.0]
        high = np.array(joints + place + others, np.float32)
        low = -high
        low[-1] = 0.0
        self.observation_space = Box(low, high)
        self.action_space = Box(-1.0, 1.0, (7,), np.float32)

    @property
    def episode_steps(self) -> int:
        """The time limit that belongs to these settings (control steps)."""
        return self.numbers.mended_steps if self.mended else self.numbers.steps

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"the cube sticks to the hand and is within {self.success_radius:g} m of the target"

    @property
    def control_dt(self) -> float:
        """Length of a control step (s)."""
        return self.substeps * TIMESTEP

    # -- the world --------------------------------------------------------------------

    def _build(self) -> None:
        client = self._client
        import pybullet_data

        self._empty()
        client.setAdditionalSearchPath(pybullet_data.getDataPath())
        client.loadURDF("plane.urdf")
        self.arm = client.loadURDF("kuka_iiwa/model.urdf", useFixedBase=True)
        slab = client.createCollisionShape(pybullet().GEOM_BOX, halfExtents=TABLE_HALF)
        client.createMultiBody(0, slab, -1, (TABLE_X, 0, TABLE_TOP / 2))
        half = [CUBE_EDGE / 2] * 3
        self._solid = client.createCollisionShape(pybullet().GEOM_BOX, halfExtents=half)
        self._skin = client.createVisualShape(
            pybullet().GEOM_BOX, halfExtents=half, rgbaColor=(0.9, 0.2, 0.1, 1)
        )
        mark = client.createVisualShape(
            pybullet().GEOM_SPHERE, radius=0.02, rgbaColor=(0.1, 0.8, 0.2, 1)
        )
        self.cube: int | None = None
        self.mark = client.createMultiBody(0, -1, mark, self.numbers.target)
        self._magnet: int | None = None

    def _drive(self, velocity: np.ndarray) -> None:
        """Sets the motors to joint velocities [7] (rad/s)."""
        self.client.setJointMotorControlArray(
            self.arm,
            JOINTS,
            pybullet().VELOCITY_CONTROL,
            targetVelocities=list(velocity),
            forces=[MOTOR_TORQUE] * 7,
        )

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Joint angles [7] (rad) and velocities [7] (rad/s)."""
        states = self.client.getJointStates(self.arm, JOINTS)
        return np.array([s[0] for s in states]), np.array([s[1] for s in states])

    def hand(self) -> np.ndarray:
        """[3] position of the point that attracts the cube (m)."""
        place, turn = self._hand_pose()
        if not self.mended:
            return np.array(place)
        return np.array(self.client.multiplyTransforms(place, turn, (0, 0, FACE), (0, 0, 0, 1))[0])

    def cube_place(self) -> np.ndarray:
        """[3] position of the cube's centre (m)."""
        return np.array(self.client.getBasePositionAndOrientation(self.cube)[0])

    def _hand_pose(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.client.getLinkState(self.arm, HAND, computeForwardKinematics=1)[:2]

    def _attach(self) -> None:
        """Fixes the cube to the hand in its present pose; the arm no longer collides with it."""
        client = self.client
        inverse = client.invertTransform(*self._hand_pose())
        cube = client.getBasePositionAndOrientation(self.cube)
        place, turn = client.multiplyTransforms(*inverse, *cube)
        self._magnet = client.createConstraint(
            self.arm,
            HAND,
            self.cube,
            -1,
            pybullet().JOINT_FIXED,
            (0, 0, 0),
            place,
            (0, 0, 0),
            turn,
            (0, 0, 0, 1),
        )
        client.changeConstraint(self._magnet, maxForce=MAGNET_FORCE)
        for link in (-1, *JOINTS):
            client.setCollisionFilterPair(self.arm, self.cube, link, -1, 0)

    # -- the task ---------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts with the arm at home. `options` may set `cube` [3] and `target` [3] (m)."""
        super().reset(seed=seed)
        client = self.client
        if self._magnet is not None:
            client.removeConstraint(self._magnet)
            self._magnet = None
        for joint, angle in zip(JOINTS, HOME):
            client.resetJointState(self.arm, joint, angle)
        cube, target = self._places()
        options = options or {}
        cube, self.target = (
            np.array(options.get(name, drawn), np.float64)
            for name, drawn in (("cube", cube), ("target", target))
        )
        # A new cube, because contacts of an old one are kept: an episode would not be repeatable.
        if self.cube is not None:
            client.removeBody(self.cube)
        self.cube = client.createMultiBody(CUBE_MASS, self._solid, self._skin, cube)
        client.resetBasePositionAndOrientation(self.mark, self.target, (0, 0, 0, 1))
        self._gaps = self._measure()
        return self._observe(), self._info(self._gaps[1])

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the cube [3] and the target [3] at the start of an episode (m)."""
        if not self.mended:
            return np.array(self.numbers.cube), np.array(self.numbers.target)
        while True:
            cube, target = (CENTRE + SPREAD * self.np_random.uniform(-1, 1, 2) for _ in range(2))
            if np.linalg.norm(cube - target) >= APART:
                height = self.np_random.uniform(*TARGET_HEIGHT)
                return np.append(cube, TABLE_TOP + CUBE_EDGE / 2), np.append(target, height)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; `action` [7] is clipped to [-1, 1]."""
        self._drive(self.numbers.speed * np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        for _ in range(self.substeps):
            self.client.stepSimulation()
        before, self._gaps = self._gaps, self._measure()
        hand_distance, distance, _ = self._gaps
        grasped = self._magnet is None and hand_distance <= self.numbers.attach_radius
        # For the reward the cube counts as held if it was held when the step began.
        reward = self._reward(before, self._gaps, self._magnet is not None)
        if grasped:
            self._attach()
        info = self._info(distance)
        bonus = self._bonus(grasped, info["is_success"])
        return self._observe(), float(reward + bonus), info["is_success"], False, info

    def _measure(self) -> tuple[float, float, float]:
        """Distances hand to cube and cube to target, and height of the cube (m)."""
        cube = self.cube_place()
        hand_distance = np.linalg.norm(self.hand() - cube)
        return float(hand_distance), float(np.linalg.norm(cube - self.target)), float(cube[2])

    def _reward(
        self, before: tuple[float, float, float], now: tuple[float, float, float], held: bool
    ) -> float:
        """Reward without the bonuses, from `_measure` before and after the step."""
        if self.mended:
            return PROGRESS * (sum(before[:2]) - sum(now[:2])) - STEP_COST
        if self.variant == "guide":
            return -0.1 * now[held] - 0.01  # hand to cube, or cube to target if held
        return 80.0 * (now[2] - before[2]) if held else 50.0 * (before[0] - now[0])

    def _bonus(self, grasped: bool, success: bool) -> float:
        if self.mended:
            return GRASPED * grasped + PLACED * success
        if self.variant == "guide":
            return 50.0 * grasped + 100.0 * success
        return 100.0 * grasped + 500.0 * success

    def _info(self, distance: float) -> dict[str, Any]:
        attached = self._magnet is not None
        success = attached and distance <= self.success_radius
        return {"is_success": success, "distance": distance, "attached": attached}

    def _observe(self) -> np.ndarray:
        angles, speeds = self.joints()
        hand, cube, attached = self.hand(), self.cube_place(), self._magnet is not None
        if not self.mended:
            return self._clipped([angles, speeds, hand, cube, attached])
        cube_velocity = self.client.getBaseVelocity(self.cube)[0]
        gaps = [cube - hand, self.target - cube]
        return self._clipped(
            [angles, speeds, hand, cube, cube_velocity, self.target, *gaps, attached]
        )
