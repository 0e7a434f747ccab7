"""Two ViperX 300s arms, a peg and a socket on a table, as an MJCF string.

The arms face each other along x, 0.938 m apart. The table's top is z = 0. Only listed pairs
collide: the right gripper with the peg, the left one with the socket, peg with socket, and all
of them with the table.

Source: the kinematics, masses and inertias of Interbotix's ViperX 300s description; the
task's sizes from gym-aloha; the servos from MuJoCo Menagerie's ALOHA.
"""

from __future__ import annotations

import numpy as np

from envs_mjx.physics import View
from envs_mjx.scenery import LIGHT, SCENERY, ground, text
from envs_mjx.vision import Camera, as_mjcf

SIDES = ("left", "right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
HOME = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])  # rad, one arm
JOINT_RANGE = np.array(  # rad
    [
        [-3.14158, 3.14158],
        [-1.85005, 1.25664],
        [-1.76278, 1.6057],
        [-3.14158, 3.14158],
        [-1.8675, 2.23402],
        [-3.14158, 3.14158],
    ]
)
BASE_X = 0.469  # m, of the arms' bases: left at -x, right at +x
BASE_Y = 0.5  # m

# Published link offsets (m): each joint's position in the frame of the previous link.
LINK_OFFSETS = np.array(
    [
        [0, 0, 0.079],  # waist
        [0, 0, 0.04805],  # shoulder
        [0.05955, 0, 0.3],  # elbow
        [0.2, 0, 0],  # forearm_roll
        [0.1, 0, 0],  # wrist_angle
        [0.069744, 0, 0],  # wrist_rotate
    ]
)
GRIPPER_SITE_X = 0.15  # m, from the wrist_rotate joint to the point between the pads
FINGER_LINK_X = 0.0687  # m, from the wrist_rotate joint to the fingers' rails

# A finger's coordinate is its pad's distance from the gripper's middle plane plus FINGER_CLOSED.
FINGER_CLOSED = 0.021  # m, the pads touch each other
FINGER_OPEN = 0.057  # m
PAD_HALF = np.array([0.012, 0.003, 0.012])  # m, along the finger, thickness, width
TIP_RADIUS = 0.004  # m, of the sphere that touches the table

# Published for four of the joints. Waist and wrist_rotate get one too: without it, their servos
# would drive only the small inertia of the thin links.
ARMATURE = np.array([0.1, 0.395, 0.383, 0.14, 0.008, 0.01])  # kg m^2
STIFFNESS = np.array([43.0, 265.0, 227.0, 78.0, 37.0, 10.4])  # N m/rad
DAMPING = np.array([5.76, 20.0, 18.49, 6.78, 6.28, 1.2])  # N m s/rad
TORQUE = np.array([35.0, 144.0, 59.0, 22.0, 35.0, 35.0])  # N m
# Dry friction is left out: it would add a solver row per joint, and the damping is enough.

# Menagerie's 2000 N/m tilts the peg between the pads.
FINGER_STIFFNESS = 365.0  # N/m
FINGER_DAMPING = 40.0  # N s/m
FINGER_ARMATURE = 0.243  # kg
FINGER_FORCE = 35.0  # N

OBJECT_MASS = 0.05  # kg, peg and socket each
PEG_HALF = np.array([0.06, 0.01, 0.01])  # m
PIN_HALF = np.array([0.04, 0.01, 0.01])  # m, the end of the socket's bore
SOCKET_HALF = np.array([0.06, 0.022, 0.022])  # m, outside
PLATE_HALF_WIDTH = 0.018  # m, also half the opening
PLATE_HALF_THICKNESS = 0.002  # m
# Distance of the centres along the axis when the peg enters, and when it touches the pin (m).
ENTRY_DISTANCE = SOCKET_HALF[0] + PEG_HALF[0]
FULL_DISTANCE = PIN_HALF[0] + PEG_HALF[0]

PEG_RESET = np.array([[0.1, 0.4], [0.2, 0.6]])  # m, lowest and highest (x, y)
SOCKET_RESET = np.array([[-0.2, 0.4], [-0.1, 0.6]])
PEG_REST_Z = PEG_HALF[2]
SOCKET_REST_Z = SOCKET_HALF[2]

PLATES = ("socket_bottom", "socket_top", "socket_left", "socket_right")
PADS = {side: (f"{side}/pad", f"{side}/pad_2") for side in SIDES}
# Contacts that define the stages of the task: {name: ((geom, geom), ...)}.
WATCHED = {
    "peg_held": tuple((pad, "peg") for pad in PADS["right"]),  # both
    "socket_held": tuple((pad, "socket_shell") for pad in PADS["left"]),  # both
    "peg_table": (("table", "peg"),),
    "socket_table": (("table", "socket_shell"),),
    "peg_socket": tuple(("peg", plate) for plate in PLATES),  # any
    "peg_pin": (("peg", "pin"),),
}
VIEW = View(target=(0.0, 0.5, 0.12), distance=1.05, azimuth=90.0, elevation=-25.0)
# Above the table, as the original's camera "top", and as high as shows all places of the objects.
CAMERAS = (Camera(position=(0.0, 0.5, 0.72), look=(0.0, 0.0, -1.0), up=(0.0, 1.0, 0.0), fovy=50.0),)

# Of each link: mass, centre of mass, quaternion of the principal axes, principal inertia.
_INERTIALS = {
    "shoulder_link": (
        ".798614 | .000259233 -3.3552e-06 .0116129 | -.476119 .476083 .52279 .522826"
        " | .00120156 .00113744 .0009388"
    ),
    "upper_arm_link": (
        ".792592 | .0206949 4e-10 .226459 | 0 .0728458 0 .997343 | .00911338 .008925 .000759317"
    ),
    "upper_forearm_link": (
        ".322228 | .105723 0 0 | -.000621631 .704724 .0105292 .709403"
        " | .00144107 .00134228 .000152047"
    ),
    "lower_forearm_link": (
        ".414823 | .0513477 .00680462 0 | -.702604 -.0796724 -.702604 .0796724"
        " | .0005911 .000546493 .000155707"
    ),
    "wrist_link": (
        ".115395 | .046743 -7.6652e-06 .010565 | -.00100191 .544586 .0026583 .8387"
        " | 5.45707e-05 4.63101e-05 4.32692e-05"
    ),
    "gripper_link": (
        ".251652 | .0395662 -2.56311e-07 .00400649 | .62033 .619916 -.339682 .339869"
        " | .000689546 .000650316 .000468142"
    ),
    "prop_link": (
        ".008009 | .002378 2.85e-08 0 | 0 0 .897698 .440611 | 4.2979e-06 2.8868e-06 1.5314e-06"
    ),
    "finger_link": (
        ".034796 | .017344 -.0060692 0 | .449364 .449364 -.54596 -.54596"
        " | 2.48003e-05 1.417e-05 1.20797e-05"
    ),
    "finger_2_link": (
        ".034796 | .017344 .0060692 0 | .44937 -.44937 .545955 -.545955"
        " | 2.48002e-05 1.417e-05 1.20798e-05"
    ),
}
_AXES = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
_FRICTION = "1 1 .005 .0001 .0001"
_STIFF = 'solref=".01 1" solimp=".95 .99 .001"'


def box_inertia(mass: float, half: np.ndarray) -> np.ndarray:
    """[3] inertia of a solid box about its centre."""
    square = np.asarray(half) ** 2
    return mass / 3 * (square.sum() - square)


def socket_inertia() -> np.ndarray:
    """[3] inertia about the centre of the four plates and the pin, all of the same density."""
    t, w, long = PLATE_HALF_THICKNESS, PLATE_HALF_WIDTH, SOCKET_HALF[0]
    flat, upright = np.array([long, w, t]), np.array([long, t, w])
    offset = SOCKET_HALF[1] - t
    parts = [(flat, [0, 0, offset])] * 2 + [(upright, [0, offset, 0])] * 2
    parts.append((PIN_HALF, [0, 0, 0]))
    density = OBJECT_MASS / sum(half.prod() for half, _ in parts)
    total = np.zeros(3)
    for half, center in parts:
        mass, square = density * half.prod(), np.square(center)
        total += box_inertia(mass, half) + mass * (square.sum() - square)
    return total


def _inertial(link: str) -> str:
    mass, com, quat, inertia = (part.strip() for part in _INERTIALS[link].split("|"))
    return f'<inertial mass="{mass}" pos="{com}" quat="{quat}" diaginertia="{inertia}"/>'


def _finger(side: str, name: str, sign: int) -> str:
    """One finger; `sign`: its side of the gripper's middle plane, as the direction along y."""
    pad = sign * (PAD_HALF[1] - FINGER_CLOSED)
    center_x = GRIPPER_SITE_X - FINGER_LINK_X
    end = "pad" if name == "finger" else "pad_2"
    tip = "tip" if name == "finger" else "tip_2"
    tip_x = center_x + PAD_HALF[0] - TIP_RADIUS
    behind = sign * (2.2 * PAD_HALF[1] - FINGER_CLOSED)
    rail = sign * (0.012 - FINGER_CLOSED)
    return f"""
      <body name="{side}/{name}_link" pos="{FINGER_LINK_X} 0 0" gravcomp="1">
        {_inertial(f"{name}_link")}
        <joint name="{side}/{name}" type="slide" axis="0 {sign} 0"
               range="{FINGER_CLOSED} {FINGER_OPEN}" damping="{FINGER_DAMPING}"
               armature="{FINGER_ARMATURE}"/>
        <geom type="box" pos="0 {rail:.6g} 0" size=".014 .012 .016" material="dark"/>
        <geom type="box" pos=".045 {behind + sign * 0.005:.6g} 0" size=".05 .004 .01"
              euler="0 0 {-sign * 0.07}" material="dark"/>
        <geom name="{side}/{end}" type="box" pos="{center_x:.6g} {pad:.6g} 0"
              size="{text(PAD_HALF)}" material="steel"/>
        <geom name="{side}/{tip}" type="sphere" pos="{tip_x:.6g} {pad:.6g} 0"
              size="{TIP_RADIUS}" material="steel"/>
      </body>"""


# The drawn shapes of each link, from the shoulder to the gripper.
_LOOKS = {
    "shoulder_link": """
        <geom type="cylinder" pos="0 0 0" size=".047 .012" material="dark"/>
        <geom type="box" pos="0 .036 .04" size=".026 .008 .036" material="dark"/>
        <geom type="box" pos="0 -.036 .04" size=".026 .008 .036" material="dark"/>
        <geom type="cylinder" pos="0 0 .04805" euler="1.5708 0 0" size=".024 .05"
              material="steel"/>""",
    "upper_arm_link": """
        <geom type="box" pos="0 .02 .14" size=".019 .006 .15" material="dark"/>
        <geom type="box" pos="0 -.02 .14" size=".019 .006 .15" material="dark"/>
        <geom type="box" pos="0 0 .12" size=".012 .02 .06" material="dark"/>
        <geom type="capsule" fromto="0 0 .285 .05 0 .3" size=".022" material="dark"/>
        <geom type="cylinder" pos=".05955 0 .3" euler="1.5708 0 0" size=".023 .036"
              material="steel"/>""",
    "upper_forearm_link": """
        <geom type="box" pos=".085 0 0" size=".095 .021 .017" material="dark"/>
        <geom type="cylinder" pos=".185 0 0" euler="0 1.5708 0" size=".025 .014"
              material="steel"/>""",
    "lower_forearm_link": """
        <geom type="box" pos=".042 0 0" size=".044 .018 .018" material="dark"/>
        <geom type="box" pos=".09 .024 0" size=".022 .004 .015" material="dark"/>
        <geom type="box" pos=".09 -.024 0" size=".022 .004 .015" material="dark"/>
        <geom type="cylinder" pos=".1 0 0" euler="1.5708 0 0" size=".017 .031"
              material="steel"/>""",
    "wrist_link": """
        <geom type="box" pos=".033 0 0" size=".03 .018 .017" material="dark"/>
        <geom type="cylinder" pos=".062 0 0" euler="0 1.5708 0" size=".021 .008"
              material="steel"/>""",
    "gripper_link": """
        <geom type="box" pos=".022 0 0" size=".024 .026 .022" material="dark"/>
        <geom type="box" pos=".056 0 0" size=".008 .07 .012" material="steel"/>""",
}


def _arm(side: str) -> str:
    """The base, the six links and the fingers, as nested bodies."""
    inner = f"""
      <site name="{side}/gripper" pos="{GRIPPER_SITE_X} 0 0" size=".003" rgba="0 0 0 0"/>
      <body name="{side}/prop_link" pos=".0485 0 0" gravcomp="1">
        {_inertial("prop_link")}
      </body>
      {_finger(side, "finger", 1)}
      {_finger(side, "finger_2", -1)}"""
    for i, (link, looks) in reversed(list(enumerate(_LOOKS.items()))):
        inner = f"""
      <body name="{side}/{link}" pos="{text(LINK_OFFSETS[i])}" gravcomp="1">
        {_inertial(link)}
        <joint name="{side}/{ARM_JOINTS[i]}" axis="{_AXES[i]}" range="{text(JOINT_RANGE[i])}"
               damping="{DAMPING[i]}" armature="{ARMATURE[i]}"/>
        {looks}
        {inner}
      </body>"""
    place = {"left": f"-{BASE_X} {BASE_Y} 0", "right": f"{BASE_X} {BASE_Y} 0"}[side]
    turn = {"left": "1 0 0 0", "right": "0 0 0 1"}[side]
    return f"""
    <body name="{side}/base_link" pos="{place}" quat="{turn}">
      <geom type="box" pos="-.03 0 .012" size=".11 .075 .012" material="dark"/>
      <geom type="cylinder" pos="0 0 .045" size=".05 .025" material="steel"/>
      {inner}
    </body>"""


def _objects() -> str:
    t, w, long = PLATE_HALF_THICKNESS, PLATE_HALF_WIDTH, SOCKET_HALF[0]
    offset = SOCKET_HALF[1] - t
    flat, upright = text([long, w, t]), text([long, t, w])
    places = ([0, 0, -offset], [0, 0, offset], [0, offset, 0], [0, -offset, 0])
    sizes = (flat, flat, upright, upright)
    plates = "".join(
        f'<geom name="{name}" type="box" pos="{text(place)}" size="{size}" material="blue"/>'
        for name, place, size in zip(PLATES, places, sizes, strict=True)
    )
    return f"""
    <body name="peg" pos=".15 .5 {PEG_REST_Z}">
      <freejoint name="peg"/>
      <inertial pos="0 0 0" mass="{OBJECT_MASS}"
                diaginertia="{text(box_inertia(OBJECT_MASS, PEG_HALF))}"/>
      <geom name="peg" type="box" size="{text(PEG_HALF)}" material="red"/>
    </body>
    <body name="socket" pos="-.15 .5 {SOCKET_REST_Z}">
      <freejoint name="socket"/>
      <inertial pos="0 0 0" mass="{OBJECT_MASS}" diaginertia="{text(socket_inertia())}"/>
      {plates}
      <geom name="socket_shell" type="box" size="{text(SOCKET_HALF)}" group="4"/>
      <geom name="pin" type="box" size="{text(PIN_HALF)}" material="red"/>
    </body>"""


def _pairs() -> str:
    """The pairs of geoms that can touch; there are no other contacts.

    To the left fingers and the table, the socket's outside is one solid box: the fingers need two
    pairs instead of eight, and can hold any two of its sides.
    """
    held = [pair for name in ("peg_held", "socket_held") for pair in WATCHED[name]]
    inside = [*WATCHED["peg_socket"], *WATCHED["peg_pin"]]
    others = [*WATCHED["peg_table"], *WATCHED["socket_table"]]
    others += [("table", f"{side}/{tip}") for side in SIDES for tip in ("tip", "tip_2")]
    return "".join(
        f'<pair geom1="{a}" geom2="{b}" condim="3" friction="{_FRICTION}" {_STIFF}/>'
        for a, b in held + inside + others
    )


def _actuators(side: str) -> str:
    joints = "".join(
        f'<position name="{side}/{name}" joint="{side}/{name}" kp="{STIFFNESS[i]}" '
        f'ctrlrange="{text(JOINT_RANGE[i])}" forcerange="-{TORQUE[i]} {TORQUE[i]}"/>'
        for i, name in enumerate(ARM_JOINTS)
    )
    return (
        f'{joints}<position name="{side}/gripper" joint="{side}/finger" '
        f'kp="{FINGER_STIFFNESS}" ctrlrange="{FINGER_CLOSED} {FINGER_OPEN}" '
        f'forcerange="-{FINGER_FORCE} {FINGER_FORCE}"/>'
    )


def mjcf(timestep: float = 0.004) -> str:
    """The model as an MJCF string.

    Actuators: the left arm's six joints and gripper, then the right arm's.

    Args:
      timestep: physics step (s).
    """
    mirrored = "".join(
        f'<joint joint1="{side}/finger_2" joint2="{side}/finger" polycoef="0 1 0 0 0" {_STIFF}/>'
        for side in SIDES
    )
    return f"""
<mujoco model="aloha_insertion">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" solver="Newton" cone="pyramidal"
          impratio="1" iterations="5" ls_iterations="8">
    <flag eulerdamp="disable"/>
  </option>
  <custom><numeric name="max_contact_points" data="24"/></custom>
  <default><geom contype="0" conaffinity="0"/></default>
  {SCENERY}
  <worldbody>
    {LIGHT}
    {as_mjcf(CAMERAS)}
    {ground("table", center=f"0 {BASE_Y} 0", half_size=".75 .45 .05")}
    {_arm("left")}
    {_arm("right")}
    {_objects()}
  </worldbody>
  <contact>{_pairs()}</contact>
  <equality>{mirrored}</equality>
  <actuator>{_actuators("left")}{_actuators("right")}</actuator>
</mujoco>"""
