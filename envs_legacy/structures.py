"""Four bar robots and two spheres that build a structure: a high one, or to withstand a press."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box

from envs_legacy.bullet import TIMESTEP, BulletEnv, Camera, pybullet
from jaxrl.errors import UserError

BARS, SPHERES = 4, 2  # number of robots of each kind
TIPS = 2 * BARS
HUB_RADIUS, HUB_MASS = 0.025, 0.1  # m, kg
# Inertia of the rotors of a hub's six motors (kg m^2). Without it the hub is so light that the
# solver drops the motors' constraints, and bars sink into the floor.
HUB_INERTIA = 0.002
BAR_LENGTH, BAR_RADIUS, BAR_MASS = 0.5, 0.015, 0.5  # m, m, kg
SPHERE_RADIUS, SPHERE_MASS = 0.167, 1.0  # m, kg
SPAWN_RADIUS, SPAWN_APART = 3.0, 0.4  # m
CONNECT, RELEASE = 0.2, 0.5  # m from a bar's tip to a sphere's centre
CONNECTION_FORCE = 100.0  # N, more than all robots weigh together
SUBSTEPS = 4  # physics steps of 1/240 s in a control step: 60 Hz
CONTROL_DT = SUBSTEPS * TIMESTEP  # s

JOINT_ANGLE = math.pi / 2  # rad, component of a rotation vector at |action| = 1
JOINT_SPEED = 3.0  # rad/s, approximate speed that a joint reaches
JOINT_TORQUE = 5.0  # N m
LEAD = 1.7 * JOINT_SPEED * CONTROL_DT  # rad; a servo covers 59 % of its lead in a control step
SPHERE_FORCE = 5.0  # N, horizontal; a sphere weighs 9.81 N
SPHERE_TORQUE = 0.5  # N m, about the vertical
ON_FLOOR = SPHERE_RADIUS + 0.02  # m, a sphere with a higher centre has no floor to roll on

HEIGHT_STEPS, CRUSH_STEPS, BUILD_STEPS = 1000, 3000, 1800
HEIGHT_GOAL = 1.0  # m, twice the height that the scripted policy reaches
PRESS_START, PRESS_SPEED = 5.0, 0.05  # m, m/s
PRESS_HALF = (5.0, 5.0, 0.5)  # m, so thick that nothing is squeezed out at the top
CRUSHED = 0.3  # m

# Rolling friction keeps bodies at rest from slowly turning about their own axis.
FRICTION, ROLLING_FRICTION = 0.8, 0.002  # -, m
BAR_COLOUR, SPHERE_COLOUR = (0.9, 0.5, 0.1, 1.0), (0.2, 0.4, 0.8, 1.0)


def rotation_vector(quat: tuple[float, ...]) -> np.ndarray:
    """[3] axis times angle (rad, at most pi) of a quaternion x, y, z, w."""
    x, y, z, w = quat if quat[3] >= 0 else [-q for q in quat]
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2 * math.atan2(sine, w) / sine if sine > 1e-9 else 2.0
    return scale * np.array([x, y, z])


def quaternion(vector: np.ndarray) -> tuple[float, ...]:
    """x, y, z, w of a rotation vector [3] (rad)."""
    angle = math.sqrt(float(vector @ vector))
    scale = math.sin(angle / 2) / angle if angle > 1e-9 else 0.5
    return (*(scale * vector), math.cos(angle / 2))


class StructureEnv(BulletEnv):
    """Four bar robots and two spheres on a floor; 60 Hz control of 4 physics steps.

    A bar robot is a hub with two bars on motorised ball joints; at rest the bars point away
    from each other along the hub's x axis. The tip of a bar that comes within .2 m of a
    sphere's centre is connected to the sphere at its present place, by a ball joint, until it is
    pulled beyond .5 m. A tip holds at most one sphere.

    Action [30]: for each bar robot the desired orientations of bar 0 and bar 1 relative to the
    hub, each as a rotation vector 3 in shares of pi/2 (joints turn at about 3 rad/s with at most
    5 N m); then for each sphere a horizontal force 2, of at most 5 N and only while it lies on
    the floor, and a torque 1 about the vertical (.5 N m). A sphere can roll, not fly.

    Observation [119], one more with a press. The original 102: for each bar robot [19] the
    hub's position 3 (m), quaternion 4 (w first), velocity 3 (m/s), angular velocity 3 (rad/s),
    and the two joints' rotation vectors 3 + 3 (rad); for each sphere [13] position, quaternion,
    velocity, angular velocity. Added here: connections 16 (for each tip and sphere, 1 if they
    are connected), remaining share of the episode 1, the press's height 1 (m, with a press).

    The height of a robot is that of its hub or sphere centre. The environment itself truncates
    an episode after `episode_steps`, because some rewards are paid at the end.

    info: `best_z` (m, largest height so far), `connections` (their number), `is_success`.
    """

    camera: ClassVar[Camera] = Camera(target=(0.0, 0.0, 0.3), distance=6.0)
    has_press: ClassVar[bool] = False

    def __init__(self, episode_steps: int, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if episode_steps < 1:
            raise UserError(f"episode_steps: got {episode_steps}, must be at least 1")
        self.episode_steps = episode_steps
        body = [20.0] * 3 + [1.0] * 4 + [50.0] * 3 + [200.0] * 3  # m, -, m/s, rad/s
        high = (body + [3.2] * 6) * BARS + body * SPHERES + [1.0] * (TIPS * SPHERES + 1)
        low = [-h for h in high]
        low[-TIPS * SPHERES - 1 :] = [0.0] * (TIPS * SPHERES + 1)
        if self.has_press:
            low, high = low + [-1.0], high + [20.0]
        self.observation_space = Box(np.array(low, np.float32), np.array(high, np.float32))
        self.action_space = Box(-1.0, 1.0, (6 * BARS + 3 * SPHERES,), np.float32)

    # -- the world --------------------------------------------------------------------

    def _build(self) -> None:
        """Does nothing: each episode fills an empty world, so that episodes are independent."""

    def _fill(self, places: np.ndarray, yaws: np.ndarray) -> None:
        """Fills an empty world with the floor, the bar robots and the spheres.

        Args:
          places: [6, 2] positions (m), bar robots first.
          yaws: [6] yaws (rad).
        """
        client, bullet = self.client, pybullet()
        self._empty()
        floor = client.createMultiBody(0, client.createCollisionShape(bullet.GEOM_PLANE))
        client.changeDynamics(floor, -1, lateralFriction=FRICTION)
        hub = client.createCollisionShape(bullet.GEOM_SPHERE, radius=HUB_RADIUS)
        ball = client.createCollisionShape(bullet.GEOM_SPHERE, radius=SPHERE_RADIUS)
        bars = [self._bar_shape(sign) for sign in (1, -1)]
        self.robots, self.spheres = [], []
        for index, (place, yaw) in enumerate(zip(places, yaws)):
            turn = (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2))
            if index < BARS:
                self.robots.append(self._bar_robot(hub, bars, (*place, HUB_RADIUS), turn))
                continue
            sphere = client.createMultiBody(SPHERE_MASS, ball, -1, (*place, SPHERE_RADIUS), turn)
            client.changeDynamics(
                sphere, -1, lateralFriction=FRICTION, rollingFriction=ROLLING_FRICTION
            )
            client.changeVisualShape(sphere, -1, rgbaColor=SPHERE_COLOUR)
            self.spheres.append(sphere)

    def _bar_shape(self, sign: int) -> int:
        """Collision shape of a bar from the hub's centre along x (+-1)."""
        return self.client.createCollisionShape(
            pybullet().GEOM_CAPSULE,
            radius=BAR_RADIUS,
            height=BAR_LENGTH - 2 * BAR_RADIUS,
            collisionFramePosition=(sign * BAR_LENGTH / 2, 0, 0),
            collisionFrameOrientation=quaternion(np.array([0, math.pi / 2, 0])),
        )

    def _bar_robot(
        self, hub: int, bars: list[int], place: tuple[float, ...], turn: tuple[float, ...]
    ) -> int:
        level = (0.0, 0.0, 0.0, 1.0)
        robot = self.client.createMultiBody(
            HUB_MASS,
            hub,
            -1,
            place,
            turn,
            linkMasses=[BAR_MASS] * 2,
            linkCollisionShapeIndices=bars,
            linkVisualShapeIndices=[-1] * 2,
            linkPositions=[(0, 0, 0)] * 2,
            linkOrientations=[level] * 2,
            linkInertialFramePositions=[(BAR_LENGTH / 2, 0, 0), (-BAR_LENGTH / 2, 0, 0)],
            linkInertialFrameOrientations=[level] * 2,
            linkParentIndices=[0] * 2,
            linkJointTypes=[pybullet().JOINT_SPHERICAL] * 2,
            linkJointAxis=[(0, 0, 1)] * 2,
        )
        self.client.changeDynamics(robot, -1, localInertiaDiagonal=[HUB_INERTIA] * 3)
        for link in (-1, 0, 1):
            self.client.changeDynamics(
                robot, link, lateralFriction=FRICTION, rollingFriction=ROLLING_FRICTION
            )
            self.client.changeVisualShape(robot, link, rgbaColor=BAR_COLOUR)
        return robot

    def _layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Random places [6, 2] (m) and yaws [6] (rad); no bar touches another or a sphere."""
        count = BARS + SPHERES
        along = np.linspace(-BAR_LENGTH, BAR_LENGTH, 21)  # m
        while True:
            radius = SPAWN_RADIUS * np.sqrt(self.np_random.uniform(size=count))
            angle, yaws = self.np_random.uniform(-math.pi, math.pi, (2, count))
            places = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            directions = np.stack([np.cos(yaws), np.sin(yaws)], axis=1)
            # Points along each robot; a sphere is a point.
            points = [
                place + (along[:, None] * direction if index < BARS else np.zeros((1, 2)))
                for index, (place, direction) in enumerate(zip(places, directions))
            ]
            if all(
                np.linalg.norm(places[i] - places[j]) >= SPAWN_APART
                and _gap(points[i], points[j]) >= (0.1 if j < BARS else CONNECT + 0.05)
                for i in range(count)
                for j in range(i + 1, count)
            ):
                return places, yaws

    def tips(self) -> np.ndarray:
        """[8, 3] the bars' ends (m): bar 0 and bar 1 of robot 0, of robot 1, and so on."""
        client = self.client
        ends = []
        for robot in self.robots:
            states = client.getLinkStates(robot, (0, 1), computeForwardKinematics=1)
            for sign, state in zip((1, -1), states):
                x, y, z, w = state[1]
                direction = np.array(
                    [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
                )
                ends.append(np.array(state[0]) + sign * BAR_LENGTH / 2 * direction)
        return np.array(ends)

    def heights(self) -> np.ndarray:
        """[6] heights of hubs and sphere centres (m)."""
        place = self.client.getBasePositionAndOrientation
        return np.array([place(body)[0][2] for body in (*self.robots, *self.spheres)])

    # -- acting -----------------------------------------------------------------------

    def _aim(self, rotations: np.ndarray) -> None:
        """Turns the joints towards rotation vectors [4, 2, 3] (rad) at no more than their speed."""
        client, mode = self.client, pybullet().POSITION_CONTROL
        for robot, targets in zip(self.robots, rotations):
            for joint, target in enumerate(targets):
                now = client.getJointStateMultiDof(robot, joint)[0]
                goal = quaternion(target)
                if sum(a * b for a, b in zip(now, goal)) < 0:
                    goal = tuple(-g for g in goal)
                angle = 2 * math.acos(min(1.0, sum(a * b for a, b in zip(now, goal))))
                if angle > LEAD:
                    goal = client.getQuaternionSlerp(now, goal, LEAD / angle)
                client.setJointMotorControlMultiDof(
                    robot,
                    joint,
                    mode,
                    targetPosition=goal,
                    positionGain=1.0,
                    velocityGain=1.0,
                    force=[JOINT_TORQUE] * 3,
                )

    def _push(self, actions: np.ndarray) -> None:
        """Applies the forces on the spheres for one physics step; `actions` [2, 3]."""
        client, world = self.client, pybullet().WORLD_FRAME
        for sphere, action in zip(self.spheres, actions):
            place = client.getBasePositionAndOrientation(sphere)[0]
            if place[2] <= ON_FLOOR:
                force = SPHERE_FORCE * action[:2] / max(1.0, float(np.hypot(*action[:2])))
                client.applyExternalForce(sphere, -1, (*force, 0.0), place, world)
            client.applyExternalTorque(sphere, -1, (0, 0, SPHERE_TORQUE * action[2]), world)

    def _connect(self) -> None:
        """Breaks connections that are pulled too far apart, and joins tips to near spheres."""
        client, tips = self.client, self.tips()
        poses = [client.getBasePositionAndOrientation(sphere) for sphere in self.spheres]
        centres = np.array([pose[0] for pose in poses])
        gaps = np.linalg.norm(tips[:, None] - centres, axis=2)  # [8, 2]
        for pair in [p for p in self.links if gaps[p] > RELEASE]:
            client.removeConstraint(self.links.pop(pair))
        held = {tip for tip, _ in self.links}
        for tip, gap in enumerate(gaps):
            sphere = int(np.argmin(gap))
            if tip not in held and gap[sphere] <= CONNECT:
                self.links[tip, sphere] = self._join(tip, tips[tip], sphere, poses[sphere])

    def _join(self, tip: int, place: np.ndarray, sphere: int, pose: Any) -> int:
        """Connects a tip to a sphere by a ball joint at the tip's place [3]; returns its id."""
        client = self.client
        inside, _ = client.multiplyTransforms(
            *client.invertTransform(*pose), list(place), (0, 0, 0, 1)
        )
        end = (BAR_LENGTH / 2 if tip % 2 == 0 else -BAR_LENGTH / 2, 0, 0)
        joint = client.createConstraint(
            self.robots[tip // 2],
            tip % 2,
            self.spheres[sphere],
            -1,
            pybullet().JOINT_POINT2POINT,
            (0, 0, 0),
            end,
            inside,
        )
        client.changeConstraint(joint, maxForce=CONNECTION_FORCE)
        return joint

    # -- the task ---------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts with the robots scattered on the floor. `options` may set `places` [6, 2] (m) and
        `yaws` [6] (rad)."""
        super().reset(seed=seed)
        places, yaws = self._layout()
        options = options or {}
        self._fill(np.asarray(options.get("places", places)), np.asarray(options.get("yaws", yaws)))
        self.links: dict[tuple[int, int], int] = {}  # (tip, sphere): the constraint's id
        self.elapsed = 0
        self.best_z = float(self.heights().max())
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; `action` [30] is clipped to [-1, 1]."""
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self._aim(JOINT_ANGLE * action[: 6 * BARS].reshape(BARS, 2, 3))
        pushes = action[6 * BARS :].reshape(SPHERES, 3)
        for _ in range(SUBSTEPS):
            self._push(pushes)
            self._move_press()
            self.client.stepSimulation()
        self._connect()
        self.elapsed += 1
        heights = self.heights()
        self.best_z = max(self.best_z, float(heights.max()))
        truncated = self.elapsed >= self.episode_steps
        reward, terminated = self._judge(heights, truncated)
        return self._observe(), reward, terminated, truncated and not terminated, self._info()

    def _move_press(self) -> None:
        """Moves the press before each physics step; does nothing without a press."""

    def _observe_press(self) -> list[float]:
        """The press's part of the observation."""
        return []

    def _judge(self, heights: np.ndarray, last: bool) -> tuple[float, bool]:
        """Reward, and whether the episode terminates, from the robots' heights [6] (m)."""
        raise NotImplementedError

    def _info(self) -> dict[str, Any]:
        return {"best_z": self.best_z, "connections": len(self.links)}

    def _body(self, body: int) -> list[Any]:
        """Position (m), quaternion (w first), velocity (m/s) and angular velocity (rad/s)."""
        place, (x, y, z, w) = self.client.getBasePositionAndOrientation(body)
        return [place, (w, x, y, z), *self.client.getBaseVelocity(body)]

    def _observe(self) -> np.ndarray:
        parts: list[Any] = []
        for robot in self.robots:
            joints = self.client.getJointStatesMultiDof(robot, (0, 1))
            parts += [*self._body(robot), *(rotation_vector(joint[0]) for joint in joints)]
        for sphere in self.spheres:
            parts += self._body(sphere)
        held = np.zeros((TIPS, SPHERES))
        for pair in self.links:
            held[pair] = 1.0
        remaining = 1 - self.elapsed / self.episode_steps
        return self._clipped([*parts, held.ravel(), remaining, *self._observe_press()])


class StructureHeight(StructureEnv):
    """The robots build as high as they can.

    Reward: .1 times the highest robot's height (m) in each step, and at the end 10 times the
    largest height of the episode. Success: a robot was `goal` (m) high. Actions and observations:
    see `StructureEnv`.
    """

    def __init__(
        self,
        episode_steps: int = HEIGHT_STEPS,
        goal: float = HEIGHT_GOAL,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(episode_steps, render_mode)
        self.goal = goal

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"a robot was {self.goal:g} m high"

    def _info(self) -> dict[str, Any]:
        return super()._info() | {"is_success": self.best_z >= self.goal}

    def _judge(self, heights: np.ndarray, last: bool) -> tuple[float, bool]:
        return 0.1 * float(heights.max()) + 10.0 * self.best_z * last, False


class StructureCrush(StructureEnv):
    """The robots withstand a press.

    The press stays above the floor for 1800 steps, the time to build. Then it comes down at
    .05 m/s, whatever pushes against it. From then on the episode terminates as soon as all robots
    are below .3 m. Reward: 1 + .5 times the mean height (m) in each step, and at the end 10 for
    each second survived since the press started.

    The published press starts at 5 m and comes down to 4 m in the remaining 20 s: it never
    touches anything, and the task is to hold a robot above .3 m. `press_start` lowers it.

    Success: the robots survive all steps of the episode, including the last.

    Actions and observations: see `StructureEnv`. info also has `survival_seconds` and
    `press_height` (m, its lower face).
    """

    success_criterion = "a robot is still up at the end, under the press"
    camera = Camera(target=(0.0, 0.0, 0.5), distance=6.0, pitch=-6.0)  # below the press
    has_press = True

    def __init__(
        self,
        episode_steps: int = CRUSH_STEPS,
        build_steps: int = BUILD_STEPS,
        press_start: float = PRESS_START,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(episode_steps, render_mode)
        if not 0 <= build_steps < episode_steps:
            raise UserError(
                f"build_steps: got {build_steps}, must be from 0 to below episode_steps, "
                f"{episode_steps}"
            )
        if press_start <= 2 * SPHERE_RADIUS:
            raise UserError(
                f"press_start: got {press_start}, must be above a sphere, {2 * SPHERE_RADIUS} m"
            )
        self.build_steps, self.press_start = build_steps, press_start

    def _fill(self, places: np.ndarray, yaws: np.ndarray) -> None:
        super()._fill(places, yaws)
        client, box = self.client, pybullet().GEOM_BOX
        solid = client.createCollisionShape(box, halfExtents=PRESS_HALF)
        skin = client.createVisualShape(box, halfExtents=PRESS_HALF, rgbaColor=(0.4, 0.4, 0.5, 0.3))
        self.press_height = self.press_start
        self.survived = 0  # control steps under the press
        self.press = client.createMultiBody(0, solid, skin, self._press_place())

    def _press_place(self) -> tuple[float, float, float]:
        return 0.0, 0.0, self.press_height + PRESS_HALF[2]

    def _move_press(self) -> None:
        """Puts the press, a body without mass, a little lower: nothing can hold it up."""
        if self.elapsed >= self.build_steps:
            self.press_height -= PRESS_SPEED * CONTROL_DT / SUBSTEPS
            self.client.resetBasePositionAndOrientation(
                self.press, self._press_place(), (0, 0, 0, 1)
            )

    def _judge(self, heights: np.ndarray, last: bool) -> tuple[float, bool]:
        pressing = self.elapsed > self.build_steps
        # A robot that is squeezed into the press does not count as standing.
        lost = (heights < CRUSHED) | (heights > self.press_height)
        terminated = pressing and bool(lost.all())
        self.survived += pressing and not terminated
        bonus = 10.0 * self.survived * CONTROL_DT if terminated or last else 0.0
        return 1.0 + 0.5 * float(heights.mean()) + bonus, terminated

    def _info(self) -> dict[str, Any]:
        return super()._info() | {
            "survival_seconds": self.survived * CONTROL_DT,
            "is_success": self.survived >= self.episode_steps - self.build_steps,
            "press_height": self.press_height,
        }

    def _observe_press(self) -> list[float]:
        return [self.press_height]


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    """Smallest distance (m) between points [N, 2] and points [M, 2]."""
    return float(np.linalg.norm(first[:, None] - second, axis=2).min())
