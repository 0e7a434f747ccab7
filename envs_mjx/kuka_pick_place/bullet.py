"""The magnet variant's physics in PyBullet, to judge policies in.

The arm is the iiwa that PyBullet ships, with the gripper of our model at its flange. What is
matched: joint order, joint limits, torque limits, the servos' time constants, gravity (on the
cube only), friction, which bodies may touch, the magnet (a point-to-point constraint), the
physics step and the control rate. What differs: PyBullet's servo drives a joint's velocity by a
constraint, and knows no inertia of rotors; its contacts and limits are hard, and its cube lies on
a plane by up to four points.
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
from envs_mjx.physics import Physics

SLIDING = 0.6  # friction coefficient of all pairs that touch
FINGER_FORCE = 100.0  # N, more than the finger's servo asks for
MAGNET_FORCE = 500.0  # N
APART = 10.0  # m, between worlds


def _link(name: str, body: Any, shapes: str = "") -> str:
    """A link with the mass and inertia of a body of the model."""
    ixx, iyy, izz = body.inertia
    return f"""
  <link name="{name}">
    <inertial><origin xyz="{_text(body.ipos)}"/><mass value="{body.mass[0]}"/>
      <inertia ixx="{ixx}" ixy="0" ixz="0" iyy="{iyy}" iyz="0" izz="{izz}"/></inertial>{shapes}
  </link>"""


def _ball(place: Any, radius: float) -> str:
    return (
        f'<collision><origin xyz="{_text(place)}"/><geometry><sphere radius="{radius}"/>'
        "</geometry></collision>"
    )


def _text(numbers: Any) -> str:
    return " ".join(map(str, numbers))


def _gripper(model: Any) -> str:
    """Links and joints to add to the arm: hand, palm and two fingers, as the model has them."""
    bar, palm = model.geom("hand"), model.geom("palm")  # the bar lies along y
    radius, half_length = bar.size[:2]
    shape = (
        f'<collision><origin xyz="{_text(bar.pos)}" rpy="{np.pi / 2} 0 0"/><geometry>'
        f'<capsule length="{2 * half_length}" radius="{radius}"/></geometry></collision>'
    )
    parts = [
        _link("hand", model.body("hand"), shape),
        f"""
  <joint name="flange" type="fixed"><parent link="lbr_iiwa_link_7"/><child link="hand"/>
    <origin xyz="{_text(model.body("hand").pos)}"/></joint>
  <link name="palm">
    <inertial><mass value="1e-3"/>
      <inertia ixx="1e-7" ixy="0" ixz="0" iyy="1e-7" iyz="0" izz="1e-7"/></inertial>
    {_ball((0, 0, 0), palm.size[0])}
  </link>
  <joint name="palm" type="fixed"><parent link="hand"/><child link="palm"/>
    <origin xyz="{_text(palm.pos)}"/></joint>""",
    ]
    for joint, side, yaw in zip(m.FINGER_JOINTS, ("left", "right"), (0.0, np.pi), strict=True):
        body, tip = model.body(f"{side}_finger"), model.geom(f"{side}_tip")
        low, high = model.joint(joint).range
        parts += [
            _link(f"{joint}_link", body, _ball(tip.pos, tip.size[0])),
            f"""
  <joint name="{joint}" type="prismatic"><parent link="hand"/><child link="{joint}_link"/>
    <origin xyz="{_text(body.pos)}" rpy="0 0 {yaw}"/><axis xyz="0 1 0"/>
    <limit lower="{low}" upper="{high}" effort="{FINGER_FORCE}" velocity="10"/>
    <dynamics damping="{m.FINGER_DAMPING}"/></joint>""",
        ]
    return "".join(parts)


class BulletWorlds:
    """Worlds in PyBullet, as `HostPhysics` advances them.

    A world that does not come back as it was left (a new episode) is set anew.

    Args:
      physics: the model with the magnet.
    """

    def __init__(self, physics: Physics):
        pybullet()  # fails here, where the user can still see why
        self.physics = physics
        names = m.ARM_JOINTS + m.FINGER_JOINTS
        self.joints = np.array([physics.qpos_slice(name).start for name in names])
        self.dofs = np.array([physics.qvel_slice(name).start for name in names])
        self.place, self.turn = physics.qpos_slice("cube"), physics.qvel_slice("cube")
        self.tie = physics.equality_id("magnet")
        # As many worlds are stepped together as come together; and how each was left.
        self.scenes: dict[int, _Scene] = {}
        self._left: dict[int, np.ndarray] = {}

    def __call__(
        self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, eq_active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(qpos)
        if count not in self.scenes:
            self.scenes[count] = _Scene(self.physics.model, count)
            self._left[count] = np.full((count, qpos.shape[1] + qvel.shape[1]), np.nan, np.float32)
        scene, left = self.scenes[count], self._left[count]
        came = np.float32(np.hstack([qpos, qvel]))
        for n in np.flatnonzero((came != left).any(1)):
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
            scene.tie(n, bool(eq_active[n, self.tie]))
            scene.drive(n, ctrl[n, :7], ctrl[n, 7])
        for _ in range(self.physics.substeps):
            scene.step()
        qpos, qvel = qpos.copy(), qvel.copy()
        for n in range(count):
            qpos[n, self.joints], qvel[n, self.dofs], (place, quat), (velocity, spin) = scene.get(n)
            qpos[n, self.place] = [*place, quat[3], *quat[:3]]
            # PyBullet tells angular velocity in the world, MuJoCo in the body.
            qvel[n, self.turn] = [*velocity, *(scene.rotation(quat).T @ spin)]
        self._left[count] = np.float32(np.hstack([qpos, qvel]))
        return qpos, qvel, np.zeros((count, 0))


class _Scene:
    """`count` arms, each with a cube, side by side in one client: a client takes 35 MB."""

    def __init__(self, model: Any, count: int):
        import pybullet_data

        bullet = pybullet()
        self.client = client = connect(bullet.DIRECT)
        step = model.opt.timestep
        client.setTimeStep(step)
        client.setGravity(0, 0, 0)  # the arms' weight is balanced; the cubes' is a force
        self.offsets = [np.array([0.0, APART * n, 0.0]) for n in range(count)]
        folder = Path(pybullet_data.getDataPath()) / "kuka_iiwa"
        # The arm's own shapes touch nothing, as in our model.
        text = re.sub(
            r"<(visual|collision)>.*?</\1>", "", (folder / "model.urdf").read_text(), flags=re.S
        )
        table = client.createMultiBody(0, client.createCollisionShape(bullet.GEOM_PLANE))
        box = client.createCollisionShape(bullet.GEOM_BOX, halfExtents=[m.CUBE_HALF] * 3)
        with tempfile.TemporaryDirectory() as scratch:
            urdf = Path(scratch) / "kuka.urdf"
            urdf.write_text(text.replace("</robot>", _gripper(model) + "</robot>"))
            self.arms = [
                client.loadURDF(str(urdf), list(offset), useFixedBase=True)
                for offset in self.offsets
            ]
        self.cubes = [
            client.createMultiBody(m.CUBE_MASS, box, -1, offset + [0.5, 0.0, m.CUBE_HALF])
            for offset in self.offsets
        ]
        links = range(-1, client.getNumJoints(self.arms[0]))
        infos = [client.getJointInfo(self.arms[0], j) for j in links[1:]]
        link = {info[12].decode(): info[0] for info in infos}
        joint = {info[1].decode(): info[0] for info in infos}
        arm_joints = [f"lbr_iiwa_joint_{i}" for i in range(1, 8)]
        self.joints = [joint[name] for name in (*arm_joints, *m.FINGER_JOINTS)]
        self.hand = link["hand"]
        self.grip = list(
            model.site("grip").pos - model.body("hand").ipos
        )  # from its centre of mass
        on_table = {link["hand"], *(link[f"{name}_link"] for name in m.FINGER_JOINTS)}
        parts = [(arm, j) for arm in self.arms for j in links]
        for body, j in [(table, -1), *((cube, -1) for cube in self.cubes), *parts]:
            client.changeDynamics(
                body, j, lateralFriction=SLIDING**0.5, linearDamping=0, angularDamping=0
            )
        # As the model's pairs: nothing else touches.
        for arm, cube in zip(self.arms, self.cubes, strict=True):
            for j in links:
                client.setCollisionFilterPair(arm, table, j, -1, int(j in on_table))
                client.setCollisionFilterPair(arm, cube, j, -1, int(j == link["palm"]))
        self._ties: list[int | None] = [None] * count
        # A first-order velocity servo: time constant step / gain, MuJoCo's is kv / kp.
        gains = [m.SERVO_KP / m.SERVO_KV] * 7
        gains += [m.FINGER_KP / (m.FINGER_KV + m.FINGER_DAMPING)] * 2
        self.gains = [step * gain for gain in gains]
        self.forces = [*m.TORQUE_LIMITS, *[FINGER_FORCE] * 2]

    def rotation(self, quat: Any) -> np.ndarray:
        """[3, 3] of a quaternion x, y, z, w."""
        return np.array(self.client.getMatrixFromQuaternion(quat)).reshape(3, 3)

    def set(self, n: int, angles: Any, speeds: Any, pose: Any, velocities: Any) -> None:
        """World `n`: joints [9] (rad, m) and their speeds [9]; the cube's pose and velocities."""
        client = self.client
        self.tie(n, False)
        for joint, angle, speed in zip(self.joints, angles, speeds, strict=True):
            client.resetJointState(self.arms[n], joint, angle, speed)
        place, quat = pose
        client.resetBasePositionAndOrientation(self.cubes[n], place + self.offsets[n], quat)
        client.resetBaseVelocity(self.cubes[n], *velocities)

    def tie(self, n: int, tied: bool) -> None:
        """Holds the cube's centre at the grip, or lets it go."""
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
        """The servos' targets: joints [7] (rad), and of both fingers (m)."""
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
        """As the arguments of `set`."""
        client, cube = self.client, self.cubes[n]
        states = client.getJointStates(self.arms[n], self.joints)
        place, quat = client.getBasePositionAndOrientation(cube)
        velocity, spin = client.getBaseVelocity(cube)
        angles, speeds = [s[0] for s in states], [s[1] for s in states]
        return angles, speeds, (np.array(place) - self.offsets[n], quat), (velocity, spin)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.client.disconnect()
