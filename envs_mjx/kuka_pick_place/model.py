"""The MuJoCo model of a Kuka iiwa with a parallel gripper, a table and a cube.

The arm's kinematics, masses, inertias and joint ranges are those of the iiwa description
that PyBullet ships. The gripper is our own design. The robot's drawn geoms touch nothing; its
collision geoms are primitives in group 3. All pairs that may touch are listed.

* `friction`: eight small spheres, four on each pad, hold the cube by friction.
* `magnet`: the pads pass through the cube, and the equality `magnet`, off at first, ties the
  cube's centre to the grip site.
"""

from __future__ import annotations

import numpy as np

from envs_mjx.physics import View
from envs_mjx.scenery import LIGHT, SCENERY, ground, text

ARM_JOINTS = tuple(f"joint_{i}" for i in range(1, 8))
FINGER_JOINTS = ("finger", "finger_2")
GRASPS = ("friction", "magnet")

# Offset (m) and roll, pitch, yaw (rad) of each joint in the frame of the link before it;
# every joint turns about its own z axis.
_R = np.pi / 2
JOINT_ORIGINS = (
    ((0.0, 0.0, 0.1575), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.2025), (_R, 0.0, np.pi)),
    ((0.0, 0.2045, 0.0), (_R, 0.0, np.pi)),
    ((0.0, 0.0, 0.2155), (_R, 0.0, 0.0)),
    ((0.0, 0.1845, 0.0), (-_R, np.pi, 0.0)),
    ((0.0, 0.0, 0.2155), (_R, 0.0, 0.0)),
    ((0.0, 0.081, 0.0), (-_R, np.pi, 0.0)),
)
JOINT_LIMITS = np.deg2rad([170.0, 120.0, 170.0, 120.0, 170.0, 120.0, 175.0])  # rad, +-
TORQUE_LIMITS = (320.0, 320.0, 176.0, 176.0, 110.0, 40.0, 40.0)  # N m
LINK_MASSES = (4.0, 4.0, 3.0, 2.7, 1.7, 1.8, 0.3)  # kg
LINK_COMS = (  # m, in the link's frame
    (0.0, -0.03, 0.12),
    (0.0003, 0.059, 0.042),
    (0.0, 0.03, 0.13),
    (0.0, 0.067, 0.034),
    (0.0001, 0.021, 0.076),
    (0.0, 0.0006, 0.0004),
    (0.0, 0.0, 0.02),
)
LINK_INERTIAS = (  # kg m^2, about the centre of mass, along the link's axes
    (0.1, 0.09, 0.02),
    (0.05, 0.018, 0.044),
    (0.08, 0.075, 0.01),
    (0.03, 0.01, 0.029),
    (0.02, 0.018, 0.005),
    (0.005, 0.0036, 0.0047),
    (0.001, 0.001, 0.001),
)
JOINT_DAMPING = 0.5  # N m s/rad
ARMATURE = 0.1  # kg m^2, rotor inertia reflected to the joints
SERVO_KP = 2000.0  # N m/rad; kp / kv is the inverse of the servo's time constant
SERVO_KV = 83.0  # N m s/rad

FLANGE = 0.045  # m, from joint 7 along its axis
GRIP = 0.15  # m, from the flange to the centre between the pads
HAND_MASS = 0.4  # kg
FINGER_MASS = 0.08  # kg, each
FINGER_OPENING = 0.04  # m, largest distance of a pad from the centre
FINGER_KP = 350.0  # N/m
FINGER_KV = 60.0  # N s/m, slow enough that closing does not knock the cube away
FINGER_DAMPING = 10.0  # N s/m
FINGER_ARMATURE = 0.05  # kg
PAD_SPACING = 0.008  # m, of the spheres from the pad's centre
PAD_RADIUS = 0.006  # m, of the spheres

CUBE_HALF = 0.025  # m
CUBE_MASS = 0.1  # kg

HOME = np.array([0.0, 0.0, 0.0, -1.57, 0.0, 1.57, 0.0])  # rad
# Ranges of the random positions of cubes and targets (m); a gripper that points down reaches all.
X_RANGE = (0.45, 0.65)
Y_RANGE = (-0.25, 0.25)
TARGET_Z_RANGE = (CUBE_HALF, 0.3)
MIN_DISTANCE = 0.15  # m, between the cube's start and the target

PAD_GEOMS = tuple(tuple(f"{side}_pad_{i}" for i in range(4)) for side in ("left", "right"))
WATCHED = {
    "left_pad_cube": tuple((geom, "cube") for geom in PAD_GEOMS[0]),
    "right_pad_cube": tuple((geom, "cube") for geom in PAD_GEOMS[1]),
    "cube_table": (("table", "cube"),),
}

VIEW = View(target=(0.35, 0.0, 0.33), azimuth=140.0, elevation=-22.0)

_STIFF = 'solref=".01 1" solimp=".95 .99 .001"'


def _quat(rpy) -> np.ndarray:
    """[4] quaternion (w first) of roll, pitch and yaw about fixed axes."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(np.divide(rpy, 2)), np.sin(np.divide(rpy, 2))
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


def _link_looks(i: int) -> str:
    """The drawn shapes of link `i`: a tube to the next joint, and a cap across its own axis."""
    end = np.array(JOINT_ORIGINS[i + 1][0]) if i < 6 else np.array([0, 0, FLANGE])
    radius = (0.062, 0.06, 0.058, 0.056, 0.05, 0.046, 0.04)[i]
    if i == 6:
        return f'<geom type="cylinder" fromto="0 0 0 {text(end)}" size="{radius}" material="grey"/>'
    tube = f'<geom type="capsule" fromto="0 0 0 {text(end)}" size="{radius}" material="white"/>'
    if i % 2 == 0:  # turns about the tube's own axis
        height = 0.1 if i < 4 else 0.09
        return tube + (
            f'<geom type="cylinder" fromto="0 0 {height} 0 0 {height + 0.012}" '
            f'size="{radius + 0.002}" material="orange"/>'
        )
    length = radius + 0.022
    return tube + (
        f'<geom type="cylinder" fromto="0 0 {-length} 0 0 {length}" size="{0.8 * radius:.3g}" '
        f'material="orange"/>'
        f'<geom type="cylinder" fromto="0 0 {-length - 0.004} 0 0 {length + 0.004}" '
        f'size="{0.55 * radius:.3g}" material="grey"/>'
    )


def _finger(side: str, joint: str, sign: int, lowest: float) -> str:
    """A finger that opens along +y (sign 1) or -y (sign -1) of the hand."""
    turn = "" if sign > 0 else 'quat="0 0 0 1"'
    spheres = "".join(
        f'<geom name="{side}_pad_{i}" class="touch" type="sphere" '
        f'pos="{text([x * PAD_SPACING, PAD_RADIUS, z * PAD_SPACING])}" size="{PAD_RADIUS}"/>'
        for i, (x, z) in enumerate([(-1, -1), (1, -1), (-1, 1), (1, 1)])
    )
    return f"""
      <body name="{side}_finger" pos="0 0 {GRIP}" {turn} gravcomp="1">
        <joint name="{joint}" type="slide" axis="0 1 0" range="{lowest} {FINGER_OPENING}"
               damping="{FINGER_DAMPING}" armature="{FINGER_ARMATURE}"/>
        <inertial pos="0 .015 -.03" mass="{FINGER_MASS}" diaginertia="8e-5 8e-5 2e-5"/>
        <geom type="box" pos="0 .0046 0" size=".013 .004 .014" material="steel"/>
        <geom type="box" pos="0 .0145 -.0335" size=".011 .006 .0475" material="dark"/>
        <geom type="box" pos="0 .0185 -.073" size=".013 .014 .008" material="dark"/>
        <geom name="{side}_tip" class="touch" type="sphere" pos="0 .012 .008" size=".007"/>
        {spheres}
      </body>"""


def _arm(lowest: float) -> str:
    """The base, and the seven links and the gripper as nested bodies."""
    inner = f"""
    <site name="flange" pos="0 0 {FLANGE}"/>
    <body name="hand" pos="0 0 {FLANGE}" gravcomp="1">
      <inertial pos="0 0 .035" mass="{HAND_MASS}" diaginertia="6e-4 4e-4 6e-4"/>
      <geom type="cylinder" fromto="0 0 0 0 0 .02" size=".038" material="grey"/>
      <geom type="box" pos="0 0 .043" size=".026 .062 .025" material="dark"/>
      <geom type="box" pos="0 0 .055" size=".0265 .0625 .003" material="orange"/>
      <geom name="hand" class="touch" type="capsule" fromto="0 -.045 .048 0 .045 .048"
            size=".022"/>
      <geom name="palm" class="touch" type="sphere" pos="0 0 .045" size=".026"/>
      <site name="grip" pos="0 0 {GRIP}"/>
      {_finger("left", "finger", 1, lowest)}
      {_finger("right", "finger_2", -1, lowest)}
    </body>"""
    for i in reversed(range(7)):
        offset, rpy = JOINT_ORIGINS[i]
        limit = JOINT_LIMITS[i]
        inner = f"""
    <body name="link_{i + 1}" pos="{text(offset)}" quat="{text(_quat(rpy))}" gravcomp="1">
      <joint name="joint_{i + 1}" axis="0 0 1" range="{-limit:.9g} {limit:.9g}"
             damping="{JOINT_DAMPING}" armature="{ARMATURE}"/>
      <inertial pos="{text(LINK_COMS[i])}" mass="{LINK_MASSES[i]}"
                diaginertia="{text(LINK_INERTIAS[i])}"/>
      {_link_looks(i)}
      {inner}
    </body>"""
    return f"""
    <geom type="cylinder" fromto="0 0 0 0 0 .02" size=".11" material="dark"/>
    <geom type="cylinder" fromto="0 0 .02 0 0 .15" size=".075" material="grey"/>
    {inner}"""


def _pairs(grasp: str) -> str:
    slides, grips = 'friction=".6 .6 .005 .0001 .0001"', 'friction="1 1 .005 .0001 .0001"'
    pairs = [("table", "cube", slides)]
    pairs += [("table", geom, slides) for geom in ("left_tip", "right_tip", "hand")]
    pairs += [("palm", "cube", slides)]
    if grasp == "friction":
        pairs += [(geom, "cube", grips) for side in PAD_GEOMS for geom in side]
    return "".join(
        f'<pair geom1="{first}" geom2="{second}" condim="3" {_STIFF} {friction}/>'
        for first, second, friction in pairs
    )


def _equalities(grasp: str) -> str:
    """The fingers move as one; `magnet` ties the cube to the grip while it is active."""
    fingers = f'<joint name="fingers" joint1="finger" joint2="finger_2" {_STIFF}/>'
    magnet = f'<connect name="magnet" site1="grip" site2="cube" active="false" {_STIFF}/>'
    return fingers + magnet if grasp == "magnet" else fingers


def _actuators(lowest: float) -> str:
    servos = "".join(
        f'<position name="{name}" joint="{name}" kp="{SERVO_KP}" kv="{SERVO_KV}" '
        f'ctrlrange="{-limit:.9g} {limit:.9g}" forcerange="{-torque} {torque}"/>'
        for name, limit, torque in zip(ARM_JOINTS, JOINT_LIMITS, TORQUE_LIMITS, strict=True)
    )
    return (
        f'{servos}<position name="gripper" joint="finger" kp="{FINGER_KP}" kv="{FINGER_KV}" '
        f'ctrlrange="{lowest} {FINGER_OPENING}"/>'
    )


_OBJECTS = f"""
    <body name="cube" pos=".5 0 {CUBE_HALF}">
      <freejoint name="cube"/>
      <inertial pos="0 0 0" mass="{CUBE_MASS}"
                diaginertia="{text([CUBE_MASS * CUBE_HALF**2 * 2 / 3] * 3)}"/>
      <geom name="cube" type="box" size="{text([CUBE_HALF] * 3)}" material="cube"/>
      <site name="cube"/>
    </body>
    <body name="target" mocap="true" pos=".5 .2 {CUBE_HALF}">
      <geom type="box" size="{text([CUBE_HALF + 0.002] * 3)}" material="goal"/>
    </body>"""


def mjcf(timestep: float = 0.005, grasp: str = "friction") -> str:
    """The model as an MJCF string.

    Args:
      timestep: physics step (s).
      grasp: "friction" or "magnet".
    """
    if grasp not in GRASPS:
        raise ValueError(f"grasp: got {grasp!r}, must be one of {GRASPS}")
    # Fingers that do not touch the cube are stopped at its faces by their joints' range.
    lowest = 0.0 if grasp == "friction" else CUBE_HALF - 0.0005
    return f"""
<mujoco model="kuka_pick_place_{grasp}">
  <compiler angle="radian"/>
  <option timestep="{timestep}" integrator="implicitfast" solver="Newton" cone="pyramidal"
          impratio="1" iterations="5" ls_iterations="8">
    <flag eulerdamp="disable" island="disable"/>
  </option>
  <custom>
    <numeric name="max_contact_points" data="12"/>
  </custom>
  <default>
    <geom contype="0" conaffinity="0" mass="0"/>
    <site group="4"/>
    <default class="touch">
      <geom group="3" material="contact"/>
    </default>
  </default>
  {SCENERY}
  <asset>
    <texture name="cube" type="cube" builtin="flat" mark="edge" rgb1=".15 .4 .85"
             rgb2=".15 .4 .85" markrgb=".9 .93 1" width="64" height="64"/>
    <material name="cube" texture="cube"/>
  </asset>
  <worldbody>
    {LIGHT}
    {ground("table")}
    {_arm(lowest)}
    {_OBJECTS}
  </worldbody>
  <contact>{_pairs(grasp)}</contact>
  <equality>{_equalities(grasp)}</equality>
  <actuator>{_actuators(lowest)}</actuator>
</mujoco>"""
