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

from envs_legacy.bullet import connect, pybullet
from envs_mjx.kuka_pick_place import model as m
from envs_mjx.physics import Physics

GRAVITY = 9.81  # m/s^2
SLIDING = 0.6  # friction coefficient of all pairs that touch
FINGER_FORCE = 100.0  # N, more than the finger's servo asks for
MAGNET_FORCE = 500.0  # N


def _link(name: str, mass: float, centre: str, inertia: str, shapes: str = "") -> str:
    ixx, iyy, izz = inertia.split()
    return f"""
  <link name="{name}">
    <inertial><origin xyz="{centre}"/><mass value="{mass}"/>
      <inertia ixx="{ixx}" ixy="0" ixz="0" iyy="{iyy}" iyz="0" izz="{izz}"/></inertial>{shapes}
  </link>"""


def _ball(place: str, radius: float) -> str:
    return (
        f'<collision><origin xyz="{place}"/><geometry><sphere radius="{radius}"/></geometry>'
        "</collision>"
    )


def _gripper(least: float) -> str:
    """Links and joints to add to the arm: hand, palm and two fingers."""
    hand = (
        '<collision><origin xyz="0 0 .048" rpy="1.5707963 0 0"/>'
        '<geometry><capsule length=".09" radius=".022"/></geometry></collision>'
    )
    parts = [
        _link("hand", m.HAND_MASS, "0 0 .035", "6e-4 4e-4 6e-4", hand),
        f"""
  <joint name="flange" type="fixed"><parent link="lbr_iiwa_link_7"/><child link="hand"/>
    <origin xyz="0 0 {m.FLANGE}"/></joint>""",
        _link("palm", 1e-3, "0 0 0", "1e-7 1e-7 1e-7", _ball("0 0 0", 0.026)),
        """
  <joint name="palm" type="fixed"><parent link="hand"/><child link="palm"/>
    <origin xyz="0 0 .045"/></joint>""",
    ]
    for joint, yaw in zip(m.FINGER_JOINTS, ("0", "3.14159265359"), strict=True):
        tip = _ball("0 .012 .008", 0.007)
        parts += [
            _link(f"{joint}_link", m.FINGER_MASS, "0 .015 -.03", "8e-5 8e-5 2e-5", tip),
            f"""
  <joint name="{joint}" type="prismatic"><parent link="hand"/><child link="{joint}_link"/>
    <origin xyz="0 0 {m.GRIP}" rpy="0 0 {yaw}"/><axis xyz="0 1 0"/>
    <limit lower="{least}" upper="{m.FINGER_OPENING}" effort="{FINGER_FORCE}" velocity="10"/>
    <dynamics damping="{m.FINGER_DAMPING}"/></joint>""",
        ]
    return "".join(parts)


class BulletWorlds:
    """Worlds in PyBullet, one client each, as `HostPhysics` advances them.

    A world that does not come back as it was left (a new episode) is set anew.

    Args:
      physics: the model with the magnet.
    """

    def __init__(self, physics: Physics):
        self.physics = physics
        self.substeps = physics.substeps
        model = physics.model
        self.joints = np.array(
            [physics.qpos_slice(name).start for name in m.ARM_JOINTS + m.FINGER_JOINTS]
        )
        self.dofs = np.array(
            [physics.qvel_slice(name).start for name in m.ARM_JOINTS + m.FINGER_JOINTS]
        )
        self.place, self.turn = physics.qpos_slice("cube"), physics.qvel_slice("cube")
        self.tie = model.equality("magnet").id
        self._worlds: list[_World] = []

    def __call__(
        self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, eq_active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        while len(self._worlds) < len(qpos):
            self._worlds.append(_World(self.physics.model))
        qpos, qvel = qpos.copy(), qvel.copy()
        for n, world in enumerate(self._worlds[: len(qpos)]):
            self._advance(world, qpos[n], qvel[n], ctrl[n], bool(eq_active[n, self.tie]))
        return qpos, qvel, np.zeros((len(qpos), 0))

    def _advance(self, world: _World, qpos, qvel, ctrl, tied: bool) -> None:
        """A control step of one world; `qpos` and `qvel` change in place."""
        was = np.float32([*qpos, *qvel])
        if world.left is None or not np.array_equal(was, world.left):
            x, y, z, w = qpos[self.place][[4, 5, 6, 3]]
            rotation = world.rotation((x, y, z, w))
            world.set(
                qpos[self.joints],
                qvel[self.dofs],
                (qpos[self.place][:3], (x, y, z, w)),
                (qvel[self.turn][:3], rotation @ qvel[self.turn][3:]),
            )
        world.tie(tied)
        world.drive(ctrl[:7], ctrl[7])
        for _ in range(self.substeps):
            world.step()
        angles, speeds, (place, quat), (velocity, spin) = world.state()
        qpos[self.joints], qvel[self.dofs] = angles, speeds
        qpos[self.place] = [*place, quat[3], *quat[:3]]
        # PyBullet tells angular velocity in the world, MuJoCo in the body.
        qvel[self.turn] = [*velocity, *(world.rotation(quat).T @ spin)]
        world.left = np.float32([*qpos, *qvel])


class _World:
    """One client with the arm and the cube."""

    def __init__(self, model: Any):
        import pybullet_data

        bullet = pybullet()
        self.client = client = connect(bullet.DIRECT)
        self.left: np.ndarray | None = None  # what it was at last, as the caller knows it
        self._tied: int | None = None
        step = model.opt.timestep
        client.setTimeStep(step)
        client.setGravity(0, 0, 0)  # the arm's weight is balanced; the cube's is a force
        folder = Path(pybullet_data.getDataPath()) / "kuka_iiwa"
        least = model.joint(m.FINGER_JOINTS[0]).range[0]
        # The arm's own shapes touch nothing, as in our model.
        text = re.sub(
            r"<(visual|collision)>.*?</\1>", "", (folder / "model.urdf").read_text(), flags=re.S
        )
        with tempfile.TemporaryDirectory() as scratch:
            urdf = Path(scratch) / "kuka.urdf"
            urdf.write_text(text.replace("</robot>", _gripper(least) + "</robot>"))
            self.arm = client.loadURDF(str(urdf), useFixedBase=True)
        count = client.getNumJoints(self.arm)
        names = [client.getJointInfo(self.arm, j) for j in range(count)]
        links = {info[12].decode(): info[0] for info in names}
        joints = {info[1].decode(): info[0] for info in names}
        arm = [f"lbr_iiwa_joint_{i}" for i in range(1, 8)]
        self.joints = [joints[name] for name in (*arm, *m.FINGER_JOINTS)]
        self.hand = links["hand"]
        self.table = client.createMultiBody(0, client.createCollisionShape(bullet.GEOM_PLANE))
        box = client.createCollisionShape(bullet.GEOM_BOX, halfExtents=[m.CUBE_HALF] * 3)
        self.cube = client.createMultiBody(m.CUBE_MASS, box, -1, (0.5, 0, m.CUBE_HALF))
        for body, link in [(self.table, -1), (self.cube, -1)] + [
            (self.arm, j) for j in range(-1, count)
        ]:
            client.changeDynamics(
                body, link, lateralFriction=SLIDING**0.5, linearDamping=0, angularDamping=0
            )
        # As the model's pairs: nothing else touches.
        tips = {links[f"{name}_link"] for name in m.FINGER_JOINTS}
        for link in range(-1, count):
            on_table = link in tips | {self.hand}
            client.setCollisionFilterPair(self.arm, self.table, link, -1, int(on_table))
            client.setCollisionFilterPair(self.arm, self.cube, link, -1, int(link == links["palm"]))
        # A first-order velocity servo: time constant step / gain, MuJoCo's is kv / kp.
        gains = [m.SERVO_KP / m.SERVO_KV] * 7
        gains += [m.FINGER_KP / (m.FINGER_KV + m.FINGER_DAMPING)] * 2
        self.gains = [step * gain for gain in gains]
        self.forces = [*m.TORQUE_LIMITS, *[FINGER_FORCE] * 2]

    def rotation(self, quat: Any) -> np.ndarray:
        """[3, 3] of a quaternion x, y, z, w."""
        return np.array(self.client.getMatrixFromQuaternion(quat)).reshape(3, 3)

    def set(self, angles: Any, speeds: Any, pose: Any, velocities: Any) -> None:
        """Joints [9] (rad, m) and their speeds [9]; the cube's pose and velocities."""
        client = self.client
        self.tie(False)
        for joint, angle, speed in zip(self.joints, angles, speeds, strict=True):
            client.resetJointState(self.arm, joint, angle, speed)
        client.resetBasePositionAndOrientation(self.cube, *pose)
        client.resetBaseVelocity(self.cube, *velocities)

    def tie(self, tied: bool) -> None:
        """Holds the cube's centre at the grip, or lets it go."""
        client = self.client
        if tied and self._tied is None:
            self._tied = client.createConstraint(
                self.arm,
                self.hand,
                self.cube,
                -1,
                pybullet().JOINT_POINT2POINT,
                (0, 0, 0),
                # From the link's centre of mass.
                (0, 0, m.GRIP - 0.035),
                (0, 0, 0),
            )
            client.changeConstraint(self._tied, maxForce=MAGNET_FORCE)
        elif not tied and self._tied is not None:
            client.removeConstraint(self._tied)
            self._tied = None

    def drive(self, angles: np.ndarray, finger: float) -> None:
        """The servos' targets: joints [7] (rad), and of both fingers (m)."""
        self.client.setJointMotorControlArray(
            self.arm,
            self.joints,
            pybullet().POSITION_CONTROL,
            targetPositions=[*angles, finger, finger],
            positionGains=self.gains,
            velocityGains=[1.0] * 9,
            forces=self.forces,
        )

    def step(self) -> None:
        """One physics step."""
        place = self.client.getBasePositionAndOrientation(self.cube)[0]
        weight = (0, 0, -GRAVITY * m.CUBE_MASS)
        self.client.applyExternalForce(self.cube, -1, weight, place, pybullet().WORLD_FRAME)
        self.client.stepSimulation()

    def state(self) -> tuple[Any, Any, Any, Any]:
        """As the arguments of `set`."""
        states = self.client.getJointStates(self.arm, self.joints)
        return (
            [s[0] for s in states],
            [s[1] for s in states],
            self.client.getBasePositionAndOrientation(self.cube),
            tuple(np.array(v) for v in self.client.getBaseVelocity(self.cube)),
        )

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.client.disconnect()
