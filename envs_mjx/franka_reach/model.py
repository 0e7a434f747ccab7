"""The Franka Panda's MuJoCo model, from its published kinematics, inertias and limits.

The model has no contacts, so a world needs no collision detection. The hand is part of the
last link; its fingers do not move.

Sources: Franka's kinematic parameters (Craig's convention); Gaz et al. 2019, "Dynamic
identification of the Franka Emika Panda robot with retrieval of feasible parameters using
penalty-based optimization" (inertias, as MuJoCo Menagerie lists them); Menagerie's gains.
"""

from __future__ import annotations

import numpy as np

from envs_mjx.physics import View
from envs_mjx.scenery import LIGHT, SCENERY, ground
from envs_mjx.vision import Camera, as_mjcf

JOINTS = tuple(f"joint_{i}" for i in range(1, 8))
HOME = np.array([0, -0.785, 0, -2.356, 0, 1.571, 0.785])  # rad
LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])  # rad
HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
TORQUE = np.array([87, 87, 87, 87, 12, 12, 12])  # N m
STIFFNESS = np.array([4500, 4500, 3500, 3500, 2000, 2000, 2000])  # N m/rad
DAMPING = np.array([450, 450, 350, 350, 200, 200, 200])  # N m s/rad
ARMATURE = 0.1  # kg m^2
FLANGE = 0.107  # m, from the last joint
GRIP = 0.1034  # m, from the flange to the point between the fingertips

VIEW = View(target=(0.3, 0.0, 0.4), distance=1.7, azimuth=140.0)
# Two cameras in front of the robot, left and right, that look at the middle of the targets' box.
CAMERAS = tuple(
    Camera(position=(1.3, y, 0.7), look=(-0.8, -y, -0.35), up=(0.0, 0.0, 1.0), fovy=42.0)
    for y in (-0.7, 0.7)
)

# For each link: position and rotation in the frame of the previous link, mass (kg), centre of
# mass (m), and inertia about it (kg m^2: xx yy zz xy xz yz).
_QUARTER, _BACK = "1 1 0 0", "1 -1 0 0"
_LINKS = (
    (
        "0 0 .333",
        "1 0 0 0",
        4.970684,
        ".003875 .002081 -.04762",
        ".70337 .70661 .009117 -.000139 .006772 .019169",
    ),
    (
        "0 0 0",
        _BACK,
        0.646926,
        "-.003141 -.02872 .003495",
        ".007962 .02811 .025995 -.003925 .010254 .000704",
    ),
    (
        "0 -.316 0",
        _QUARTER,
        3.228604,
        ".027518 .039252 -.066502",
        ".037242 .036155 .01083 -.004761 -.011396 -.012805",
    ),
    (
        ".0825 0 0",
        _QUARTER,
        3.587895,
        "-.05317 .104419 .027454",
        ".025853 .019552 .028323 .007796 -.001332 .008641",
    ),
    (
        "-.0825 .384 0",
        _BACK,
        1.225946,
        "-.011953 .041065 -.038437",
        ".035549 .029474 .008627 -.002117 -.004037 .000229",
    ),
    (
        "0 0 0",
        _QUARTER,
        1.666555,
        ".060149 -.014117 -.010517",
        ".001964 .004354 .005433 .000109 -.001158 .000341",
    ),
    (
        ".088 0 0",
        _QUARTER,
        0.735522,
        ".010517 -.004252 .061597",
        ".012516 .010027 .004815 -.000428 -.001196 -.000741",
    ),
)
# The drawn shapes of each link: white shells, dark joints.
_SHELL, _DARK = 'material="white"', 'material="dark"'
_LOOKS = (
    f'<geom type="capsule" fromto="0 0 -.2 0 0 -.02" size=".06" {_SHELL}/>'
    f'<geom type="cylinder" fromto="0 -.07 0 0 .07 0" size=".058" {_DARK}/>',
    f'<geom type="capsule" fromto="0 -.02 0 0 -.2 0" size=".058" {_SHELL}/>',
    f'<geom type="capsule" fromto="0 0 -.1 0 0 0" size=".055" {_SHELL}/>'
    f'<geom type="capsule" fromto="0 0 0 .0825 0 0" size=".05" {_SHELL}/>'
    f'<geom type="cylinder" fromto=".0825 -.06 0 .0825 .06 0" size=".05" {_DARK}/>',
    f'<geom type="capsule" fromto="0 0 0 -.0825 .05 0" size=".05" {_SHELL}/>'
    f'<geom type="capsule" fromto="-.0825 .06 0 -.0825 .16 0" size=".05" {_SHELL}/>',
    f'<geom type="capsule" fromto="0 0 -.2 0 .05 -.1" size=".048" {_SHELL}/>'
    f'<geom type="capsule" fromto="0 .05 -.1 0 .06 0" size=".04" {_SHELL}/>'
    f'<geom type="cylinder" fromto="0 -.05 0 0 .06 0" size=".047" {_DARK}/>',
    f'<geom type="capsule" fromto="0 0 0 .088 0 0" size=".046" {_SHELL}/>'
    f'<geom type="cylinder" fromto=".088 -.05 0 .088 .05 0" size=".045" {_DARK}/>',
    f'<geom type="cylinder" fromto="0 0 .02 0 0 {FLANGE}" size=".043" {_SHELL}/>',
)
_HAND = f"""
<body name="hand" pos="0 0 {FLANGE}" quat=".9238795 0 0 -.3826834">
  <inertial mass=".76" pos="-.01 0 .03" diaginertia=".001 .0025 .0017"/>
  <geom type="box" pos="0 0 .035" size=".03 .1 .03" {_SHELL}/>
  <geom type="box" pos="0 .02 .083" size=".01 .008 .025" {_DARK}/>
  <geom type="box" pos="0 -.02 .083" size=".01 .008 .025" {_DARK}/>
  <site name="grip" pos="0 0 {GRIP}" size=".008" material="orange"/>
</body>"""


def _chain(index: int) -> str:
    """The link with this index and all links after it, as nested bodies."""
    if index == len(_LINKS):
        return _HAND
    pos, quat, mass, com, inertia = _LINKS[index]
    return f"""
<body name="link_{index + 1}" pos="{pos}" quat="{quat}">
  <inertial mass="{mass}" pos="{com}" fullinertia="{inertia}"/>
  <joint name="{JOINTS[index]}" axis="0 0 1" range="{LOW[index]} {HIGH[index]}"
         armature="{ARMATURE}" damping="1"/>
  {_LOOKS[index]}
  {_chain(index + 1)}
</body>"""


def mjcf(timestep: float) -> str:
    """The model as MJCF, with physics steps of `timestep` seconds."""
    servos = "".join(
        f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kv}" '
        f'ctrlrange="{low} {high}" forcerange="-{torque} {torque}"/>'
        for name, kp, kv, low, high, torque in zip(
            JOINTS, STIFFNESS, DAMPING, LOW, HIGH, TORQUE, strict=True
        )
    )
    return f"""
<mujoco model="franka_reach">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" iterations="4" ls_iterations="6">
    <flag eulerdamp="disable"/>
  </option>
  {SCENERY}
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    {LIGHT}
    {as_mjcf(CAMERAS)}
    {ground("floor")}
    <geom type="cylinder" fromto="0 0 0 0 0 .14" size=".075" {_SHELL}/>
    <body name="target" mocap="true" pos=".5 0 .35">
      <geom type="sphere" size=".02" material="goal"/>
    </body>
    {_chain(0)}
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>"""
