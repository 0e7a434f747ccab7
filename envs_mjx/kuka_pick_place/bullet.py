"""The physics of the magnet variant in PyBullet, to evaluate policies.

The arm is the iiwa that PyBullet ships, with the gripper of our MuJoCo model at its flange. The
same in both simulators: joint order, joint limits, torque limits, the servos' time constants,
gravity (on the cube only), friction, which bodies may touch, the magnet (a point-to-point
constraint), the physics step and the control rate. Different in PyBullet: a servo drives a joint's
velocity by a constraint and has no rotor inertia; contacts and limits are hard; the cube rests on
a plane with up to four contact points.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from envs_legacy.bullet import GRAVITY, connect, pybullet
from envs_mjx.kuka_pick_place import model as m
from envs_mjx.physics import CPhysics
from envs_mjx.physics.host import Arrays
from envs_mjx.scenery import text

SLIDING = 0.6  # friction coefficient of all pairs that touch
FINGER_FORCE = 100.0  # N, more than the finger's servo needs
MAGNET_FORCE = 500.0  # N
APART = 10.0  # m, distance between neighbouring worlds


def _link(name: str, body: Any, shapes: str = "") -> str:
    """A link with the mass and inertia of a body of the model."""
    ixx, iyy, izz = body.inertia
    return f"""
  <link name="{name}">
    <inertial><origin xyz="{text(body.ipos)}"/><mass value="{body.mass[0]}"/>
      <inertia ixx="{ixx}" ixy="0" ixz="0" iyy="{iyy}" iyz="0" izz="{izz}"/></inertial>{shapes}
  </link>"""


def _ball(place: Any, radius: float) -> str:
    return (
        f'<collision><origin xyz="{text(place)}"/><geometry><sphere radius="{radius}"/>'
        "</geometry></collision>"
    )


def _gripper(model: Any) -> str:
    """Links and joints to add to the arm: hand, palm and two fingers, as in the MuJoCo model."""
    bar, palm = model.geom("hand"), model.geom("palm")  # the bar lies along y
    radius, half_length = bar.size[:2]
    shape = (
        f'<collision><origin xyz="{text(bar.pos)}" rpy="{np.pi / 2} 0 0"/><geometry>'
        f'<capsule length="{2 * half_length}" radius="{radius}"/></geometry></collision>'
    )
    parts = [
        _link("hand", model.body("hand"), shape),
        f"""
  <joint name="flange" type="fixed"><parent link="lbr_iiwa_link_7"/><child link="hand"/>
    <origin xyz="{text(model.body("hand").pos)}"/></joint>
  <link name="palm">
    <inertial><mass value="1e-3"/>
      <inertia ixx="1e-7" ixy="0" ixz="0" iyy="1e-7" iyz="0" izz="1e-7"/></inertial>
    {_ball((0, 0, 0), palm.size[0])}
  </link>
  <joint name="palm" type="fixed"><parent link="hand"/><child link="palm"/>
    <origin xyz="{text(palm.pos)}"/></joint>""",
    ]
    for joint, side, yaw in zip(m.FINGER_JOINTS, ("left", "right"), (0.0, np.pi), strict=True):
        body, tip = model.body(f"{side}_finger"), model.geom(f"{side}_tip")
        low, high = model.joint(joint).range
        parts += [
            _link(f"{joint}_link", body, _ball(tip.pos, tip.size[0])),
            f"""
  <joint name="{joint}" type="prismatic"><parent link="hand"/><child link="{joint}_link"/>
    <origin xyz="{text(body.pos)}" rpy="0 0 {yaw}"/><axis xyz="0 1 0"/>
    <limit lower="{low}" upper="{high}" effort="{FINGER_FORCE}" velocity="10"/>
    <dynamics damping="{m.FINGER_DAMPING}"/></joint>""",
        ]
    return "".join(parts)


class BulletPhysics(CPhysics):
    """The model with the magnet, whose worlds are stepped in PyBullet; C MuJoCo computes poses.

    If a world's state is not the one that the last call returned (in a new episode), PyBullet's
    world is first set to that state.
    """

    engine = "pybullet"

    def __init__(self, xml: str, **arguments: Any):
        pybullet()  # reports a missing PyBullet here, not from inside a compiled program
        super().__init__(xml, **arguments)
        names = m.ARM_JOINTS + m.FINGER_JOINTS
        self.joints = np.array([self.qpos_slice(name).start for name in names])
        self.dofs = np.array([self.qvel_slice(name).start for name in names])
        self.place, self.turn = self.qpos_slice("cube"), self.qvel_slice("cube")
        self.tie = self.equality_id("magnet")
        # By the number of worlds in a call: their scene, and the states that it last returned.
        self.scenes: dict[int, _Scene] = {}
        self._returned: dict[int, np.ndarray] = {}

    def advance(self, inputs: Arrays, steps: int) -> Arrays:
        if steps:
            qpos, qvel = self._step_in_bullet(inputs, steps)
            inputs = inputs | {"qpos": qpos, "qvel": qvel}
        return super().advance(inputs, 0)

    def _step_in_bullet(self, inputs: Arrays, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [N, nq] and velocities [N, nv] after the steps."""
        qpos, qvel, count = inputs["qpos"], inputs["qvel"], len(inputs["qpos"])
        if count not in self.scenes:
            self.scenes[count] = _Scene(self.model, count)
            size = qpos.shape[1] + qvel.shape[1]
            self._returned[count] = np.full((count, size), np.nan, np.float32)
        scene, returned = self.scenes[count], self._returned[count]
        given = np.float32(np.hstack([qpos, qvel]))
        qpos, qvel = qpos.astype(np.float64), qvel.astype(np.float64)
        for n in np.flatnonzero((given != returned).any(1)):
            x, y, z, w = qpos[n, self.place][[4, 5, 6, 3]]
            spin = scene.rotation((x, y, z, w)) @ qvel[n, self.turn][3:]
            scene.set(
                n,
                qpos[n, self.joints],
                qvel[n, self.dofs],
                (qpos[n, self.place][:3], (x, y, z, w)),
                (qvel[n, self.turn][:3], spin),
            )
        for n in range(count):
            scene.tie(n, bool(inputs["eq_active"][n, self.tie]))
            scene.drive(n, inputs["ctrl"][n, :7].astype(float), float(inputs["ctrl"][n, 7]))
        for _ in range(steps):
            scene.step()
        for n in range(count):
            qpos[n, self.joints], qvel[n, self.dofs], (place, quat), (velocity, spin) = scene.get(n)
            qpos[n, self.place] = [*place, quat[3], *quat[:3]]
            # PyBullet gives angular velocity in the world frame, MuJoCo in the body frame.
            qvel[n, self.turn] = [*velocity, *(scene.rotation(quat).T @ spin)]
        self._returned[count] = np.float32(np.hstack([qpos, qvel]))
        return qpos, qvel


class _Scene:
    """`count` arms, each with a cube, in one PyBullet client, because a client takes 35 MB."""

    def __init__(self, model: Any, count: int):
        bullet = pybullet()
        self.client = client = connect(bullet.DIRECT)
        step = model.opt.timestep
        client.setTimeStep(step)
        client.setGravity(0, 0, 0)  # arms are weightless; cubes get their weight as a force
        self.offsets = [np.array([0.0, APART * n, 0.0]) for n in range(count)]
        table = client.createMultiBody(0, client.createCollisionShape(bullet.GEOM_PLANE))
        self.arms = self._load_arms(model)
        box = client.createCollisionShape(bullet.GEOM_BOX, halfExtents=[m.CUBE_HALF] * 3)
        self.cubes = [
            client.createMultiBody(m.CUBE_MASS, box, -1, offset + [0.5, 0.0, m.CUBE_HALF])
            for offset in self.offsets
        ]
        infos = [client.getJointInfo(self.arms[0], j) for j in range(self._joint_count)]
        link = {info[12].decode(): info[0] for info in infos}
        joint = {info[1].decode(): info[0] for info in infos}
        arm_joints = [f"lbr_iiwa_joint_{i}" for i in range(1, 8)]
        self.joints = [joint[name] for name in (*arm_joints, *m.FINGER_JOINTS)]
        self.hand = link["hand"]
        # Position of the grip relative to the hand's centre of mass.
        self.grip = list(model.site("grip").pos - model.body("hand").ipos)
        self._set_contacts(table, link)
        self._ties: list[int | None] = [None] * count
        # A servo of first order with time constant step / gain; in MuJoCo it is kv / kp.
        gains = [m.SERVO_KP / m.SERVO_KV] * 7
        gains += [m.FINGER_KP / (m.FINGER_KV + m.FINGER_DAMPING)] * 2
        self.gains = [step * gain for gain in gains]
        self.forces = [*m.TORQUE_LIMITS, *[FINGER_FORCE] * 2]

    @property
    def _joint_count(self) -> int:
        """Number of joints of an arm with its gripper; links have their joints' indices, the
        base has -1."""
        return self.client.getNumJoints(self.arms[0])

    def _load_arms(self, model: Any) -> list[int]:
        """PyBullet's arm with the model's gripper, once for each world."""
        import pybullet_data

        folder = Path(pybullet_data.getDataPath()) / "kuka_iiwa"
        # The arm's own shapes are removed, since they touch nothing in our model.
        arm = re.sub(
            r"<(visual|collision)>.*?</\1>", "", (folder / "model.urdf").read_text(), flags=re.S
        )
        with tempfile.TemporaryDirectory() as scratch:
            urdf = Path(scratch) / "kuka.urdf"
            urdf.write_text(arm.replace("</robot>", _gripper(model) + "</robot>"))
            return [
                self.client.loadURDF(str(urdf), list(offset), useFixedBase=True)
                for offset in self.offsets
            ]

    def _set_contacts(self, table: int, link: dict[str, int]) -> None:
        """Sets friction, and allows contacts of the pairs that can touch in the model only."""
        client, links = self.client, range(-1, self._joint_count)
        on_table = {link["hand"], *(link[f"{name}_link"] for name in m.FINGER_JOINTS)}
        parts = [(arm, j) for arm in self.arms for j in links]
        for body, j in [(table, -1), *((cube, -1) for cube in self.cubes), *parts]:
            client.changeDynamics(
                body, j, lateralFriction=SLIDING**0.5, linearDamping=0, angularDamping=0
            )
        for arm, cube in zip(self.arms, self.cubes, strict=True):
            for j in links:
                client.setCollisionFilterPair(arm, table, j, -1, int(j in on_table))
                client.setCollisionFilterPair(arm, cube, j, -1, int(j == link["palm"]))

    def rotation(self, quat: Any) -> np.ndarray:
        """[3, 3] rotation matrix of a quaternion (x, y, z, w)."""
        return np.array(self.client.getMatrixFromQuaternion(quat)).reshape(3, 3)

    def set(self, n: int, angles: Any, speeds: Any, pose: Any, velocities: Any) -> None:
        """Sets world `n`: joint positions [9] (rad, m) and velocities [9]; the cube's pose
        (position, quaternion) and velocities (linear, angular)."""
        client = self.client
        self.tie(n, False)
        for joint, angle, speed in zip(self.joints, angles, speeds, strict=True):
            client.resetJointState(self.arms[n], joint, angle, speed)
        place, quat = pose
        client.resetBasePositionAndOrientation(self.cubes[n], place + self.offsets[n], quat)
        client.resetBaseVelocity(self.cubes[n], *velocities)

    def tie(self, n: int, tied: bool) -> None:
        """Ties the cube's centre to the grip, or releases it."""
        client = self.client
        if tied and self._ties[n] is None:
            self._ties[n] = client.createConstraint(
                self.arms[n],
                self.hand,
                self.cubes[n],
                -1,
                pybullet().JOINT_POINT2POINT,
                (0, 0, 0),
                self.grip,
                (0, 0, 0),
            )
            client.changeConstraint(self._ties[n], maxForce=MAGNET_FORCE)
        elif not tied and self._ties[n] is not None:
            client.removeConstraint(self._ties[n])
            self._ties[n] = None

    def drive(self, n: int, angles: np.ndarray, finger: float) -> None:
        """Sets the servos' targets: joints [7] (rad), and both fingers (m)."""
        self.client.setJointMotorControlArray(
            self.arms[n],
            self.joints,
            pybullet().POSITION_CONTROL,
            targetPositions=[*angles, finger, finger],
            positionGains=self.gains,
            velocityGains=[1.0] * 9,
            forces=self.forces,
        )

    def step(self) -> None:
        """One physics step of all worlds."""
        client, frame = self.client, pybullet().WORLD_FRAME
        for cube in self.cubes:
            place = client.getBasePositionAndOrientation(cube)[0]
            client.applyExternalForce(cube, -1, (0, 0, -GRAVITY * m.CUBE_MASS), place, frame)
        client.stepSimulation()

    def get(self, n: int) -> tuple[Any, Any, Any, Any]:
        """The state of world `n`, in the form of the arguments of `set`."""
        client, cube = self.client, self.cubes[n]
        states = client.getJointStates(self.arms[n], self.joints)
        place, quat = client.getBasePositionAndOrientation(cube)
        velocity, spin = client.getBaseVelocity(cube)
        angles, speeds = [s[0] for s in states], [s[1] for s in states]
        return angles, speeds, (np.array(place) - self.offsets[n], quat), (velocity, spin)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be shutting down
            self.client.disconnect()
