"""The ballbot's MuJoCo model, written from its measured masses and geometry.

Both drive models share the body. Its frame is at the ball's centre, so in both of them the
base's free joint gives the position and velocity of the ball's centre.

* `no_slip`: the ball hangs on a ball joint in the body, and each wheel is a motor that
  acts about the wheel's axle with the exact ratio of a wheel rolling on the ball. One
  contact, 9 degrees of freedom.
* `omniwheel`: three hinged wheels touch a free ball; friction is full along a wheel's
  rim and nearly none along its axle. Four contacts, 15 degrees of freedom.
"""

from __future__ import annotations

import numpy as np

from envs_mjx.physics import View
from envs_mjx.scenery import LIGHT, SCENERY, ground, text

BALL_RADIUS = 0.09  # m
BALL_MASS = 0.16795  # kg
WHEEL_RADIUS = 0.025  # m
WHEEL_HALF_LENGTH = 0.02  # m
WHEEL_MASS = 0.0893  # kg
WHEEL_ARMATURE = 0.005  # kg m^2, rotor inertia reflected to the wheel
WHEEL_DAMPING = 0.8  # N m s/rad
WHEEL_ZENITH = np.deg2rad(44.3)  # zenith angle of the contacts about the ball's centre
WHEEL_YAWS = np.deg2rad([0.0, 120.0, 240.0])
MAX_TORQUE = 10.0  # N m, one wheel

BASE_MASS = 3.4512  # kg
BASE_INERTIA = np.array([0.03287, 0.03287, 0.02285])  # kg m^2, about its centre of mass
HEAD_MASS = 0.067  # kg, one camera head
HEADS = np.array([[0.17, -0.01, 0.09], [-0.17, -0.01, 0.09]])  # m, from the ball's centre
BODY_COM_HEIGHT = 0.13  # m, centre of mass of base, heads and wheels above the ball's centre

CONTACTS = np.stack(  # unit vectors from the ball's centre to the wheel contacts
    [
        np.sin(WHEEL_ZENITH) * np.cos(WHEEL_YAWS),
        np.sin(WHEEL_ZENITH) * np.sin(WHEEL_YAWS),
        np.full(3, np.cos(WHEEL_ZENITH)),
    ],
    axis=1,
)
AXLES = np.stack(  # unit vectors of the wheels' axles, at right angles to the contacts
    [
        -np.cos(WHEEL_ZENITH) * np.cos(WHEEL_YAWS),
        -np.cos(WHEEL_ZENITH) * np.sin(WHEEL_YAWS),
        np.full(3, np.sin(WHEEL_ZENITH)),
    ],
    axis=1,
)
# Wheel speeds are GEAR @ (the ball's angular velocity relative to the body).
GEAR = -(BALL_RADIUS / WHEEL_RADIUS) * AXLES

# The reflected inertia and damping of three wheels differ a little between a horizontal
# and the vertical axis; a ball joint has one value for both: the horizontal one, which
# driving and balancing use.
_REFLECTED = float((GEAR[:, 0] ** 2).sum())
BALL_INERTIA = 0.4 * BALL_MASS * BALL_RADIUS**2  # kg m^2, solid sphere

WHEEL_POSITIONS = CONTACTS * (BALL_RADIUS + WHEEL_RADIUS)
_WHEELS_HEIGHT = WHEEL_POSITIONS[0, 2]
BODY_MASS = BASE_MASS + 2 * HEAD_MASS + 3 * WHEEL_MASS
BASE_COM_HEIGHT = (
    BODY_COM_HEIGHT * BODY_MASS - 2 * HEAD_MASS * HEADS[0, 2] - 3 * WHEEL_MASS * _WHEELS_HEIGHT
) / BASE_MASS

# The contacts yield by this much under the body's weight. An episode starts there, so that no
# wheel starts at the limit between contact and no contact.
OMNIWHEEL_SINK = 0.0045  # m

# The plane that touches the ball: on uneven ground it moves with the ball.
MOVING_FLOOR = f'<body name="ground" mocap="true">{ground("floor")}</body>'

# The ground yields by this much under the robot. Episodes on uneven ground start there: at the
# limit of contact, rounding would decide whether the robot falls freely in the first step.
GROUND_SINK = 0.0005  # m

VIEW = View(body="base", distance=1.4)

DRIVES = ("no_slip", "omniwheel")
WHEEL_GEOMS = tuple(f"wheel_{i}" for i in range(3))


def _wheel_inertia(axle: np.ndarray) -> np.ndarray:
    """[3, 3] inertia of one wheel (modelled as a cylinder) about its own centre."""
    spin = 0.5 * WHEEL_MASS * WHEEL_RADIUS**2
    across = WHEEL_MASS * (3 * WHEEL_RADIUS**2 + (2 * WHEEL_HALF_LENGTH) ** 2) / 12
    return across * np.eye(3) + (spin - across) * np.outer(axle, axle)


def rigid_body(with_wheels: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Mass, centre of mass, and inertia about it, of all parts that are fixed to the body."""
    parts = [(BASE_MASS, np.array([0, 0, BASE_COM_HEIGHT]), np.diag(BASE_INERTIA))]
    parts += [(HEAD_MASS, head, np.zeros((3, 3))) for head in HEADS]
    if with_wheels:
        parts += [
            (WHEEL_MASS, position, _wheel_inertia(axle))
            for position, axle in zip(WHEEL_POSITIONS, AXLES, strict=True)
        ]
    mass = sum(m for m, _, _ in parts)
    com = sum(m * c for m, c, _ in parts) / mass
    inertia = np.zeros((3, 3))
    for m, c, about_center in parts:
        r = c - com
        inertia += about_center + m * (r @ r * np.eye(3) - np.outer(r, r))
    return mass, com, inertia


def _full(i: np.ndarray) -> str:
    """An inertia [3, 3] as the MJCF attribute `fullinertia`."""
    return text([i[0, 0], i[1, 1], i[2, 2], i[0, 1], i[0, 2], i[1, 2]])


def _body_inertial(with_wheels: bool) -> str:
    mass, com, inertia = rigid_body(with_wheels)
    return f'<inertial pos="{text(com)}" mass="{mass:.9g}" fullinertia="{_full(inertia)}"/>'


def _body_looks() -> str:
    """The drawn shapes of the body, and a light that follows it."""
    heads = "".join(
        f'<geom type="box" pos="{text(head)}" size=".018 .012 .012" material="dark"/>'
        for head in HEADS
    )
    return f"""
      {LIGHT}
      <geom type="cylinder" pos="0 0 .165" size=".11 .07" material="white"/>
      <geom type="cylinder" pos="0 0 .237" size=".06 .004" material="blue"/>
      <geom type="box" pos="0 .112 .2" size=".02 .004 .012" material="orange"/>
      <geom type="capsule" fromto="-.17 -.01 .1 .17 -.01 .1" size=".008" material="steel"/>
      {heads}"""


def _wheel_geom(i: int, center: np.ndarray) -> str:
    ends = np.stack([center - AXLES[i] * WHEEL_HALF_LENGTH, center + AXLES[i] * WHEEL_HALF_LENGTH])
    return (
        f'<geom name="wheel_{i}" type="capsule" fromto="{text(ends)}" '
        f'size="{WHEEL_RADIUS}" material="dark"/>'
    )


_BALL_GEOM = f'<geom name="ball" type="sphere" size="{BALL_RADIUS}" material="ball"/>'
_BALL_INERTIAL = (
    f'<inertial pos="0 0 0" mass="{BALL_MASS}" diaginertia="{text([BALL_INERTIA] * 3)}"/>'
)
_GROUND_PAIR = '<pair geom1="floor" geom2="ball" condim="3" friction="1 1 .005 .0001 .0001"/>'


def _no_slip() -> tuple[str, str, str]:
    wheels = "".join(_wheel_geom(i, WHEEL_POSITIONS[i]) for i in range(3))
    bodies = f"""
    <body name="base" pos="0 0 {BALL_RADIUS}">
      <freejoint name="base"/>
      {_body_inertial(with_wheels=True)}
      {_body_looks()}
      {wheels}
      <body name="ball">
        <joint name="ball" type="ball" armature="{WHEEL_ARMATURE * _REFLECTED:.9g}"
               damping="{WHEEL_DAMPING * _REFLECTED:.9g}"/>
        {_BALL_INERTIAL}
        {_BALL_GEOM}
      </body>
    </body>"""
    motors = "".join(
        f'<motor name="wheel_{i}" jointinparent="ball" gear="{text(GEAR[i])} 0 0 0"/>'
        for i in range(3)
    )
    return bodies, _GROUND_PAIR, motors


def _omniwheel() -> tuple[str, str, str]:
    wheels = "".join(
        f"""
      <body name="wheel_{i}" pos="{text(WHEEL_POSITIONS[i])}">
        <joint name="wheel_{i}" type="hinge" axis="{text(AXLES[i])}"
               armature="{WHEEL_ARMATURE}" damping="{WHEEL_DAMPING}"/>
        <inertial pos="0 0 0" mass="{WHEEL_MASS}" fullinertia="{_full(_wheel_inertia(AXLES[i]))}"/>
        {_wheel_geom(i, np.zeros(3))}
      </body>"""
        for i in range(3)
    )
    bodies = f"""
    <body name="base" pos="0 0 {BALL_RADIUS - OMNIWHEEL_SINK}">
      <freejoint name="base"/>
      {_body_inertial(with_wheels=False)}
      {_body_looks()}
      {wheels}
    </body>
    <body name="ball" pos="0 0 {BALL_RADIUS}">
      <freejoint name="ball"/>
      {_BALL_INERTIAL}
      {_BALL_GEOM}
    </body>"""
    pairs = _GROUND_PAIR + "".join(
        f"""<pair geom1="ball" geom2="wheel_{i}" condim="3" friction="1 .001 .005 .0001 .0001"
              solref=".01 1" solimp=".95 .99 .001"/>"""
        for i in range(3)
    )
    motors = "".join(f'<motor name="wheel_{i}" joint="wheel_{i}"/>' for i in range(3))
    return bodies, pairs, motors


def terrain_geom(points: int, size: float, middle: np.ndarray) -> str:
    """A height field as MJCF.

    Args:
      points: number of heights along a side.
      size: length of a side (m).
      middle: [2] position of its middle (m).
    """
    return f"""<geom name="floor" type="hfield" hfield="terrain" pos="{text(middle)} 0"
      material="ground"/></worldbody><asset><hfield name="terrain" nrow="{points}" ncol="{points}"
      size="{size / 2} {size / 2} 1 1"/></asset><worldbody>"""


def mjcf(drive: str, timestep: float, floor: str = "") -> str:
    """The model as an MJCF string.

    Args:
      drive: "no_slip" or "omniwheel".
      timestep: physics step (s).
      floor: the ground's body or geom, which is a plane with the name "floor"; "": z = 0.
    """
    bodies, pairs, motors = {"no_slip": _no_slip, "omniwheel": _omniwheel}[drive]()
    iterations, ls_iterations = {"no_slip": (2, 4), "omniwheel": (4, 8)}[drive]
    return f"""
<mujoco model="ballbot_{drive}">
  <compiler angle="radian"/>
  <option timestep="{timestep}" integrator="Euler" solver="Newton" cone="pyramidal"
          iterations="{iterations}" ls_iterations="{ls_iterations}">
    <flag island="disable"/>
  </option>
  <default>
    <geom contype="0" conaffinity="0"/>
    <motor ctrlrange="-{MAX_TORQUE} {MAX_TORQUE}" ctrllimited="true"/>
  </default>
  {SCENERY}
  <asset>
    <texture name="ball" type="cube" builtin="checker" rgb1=".85 .3 .15" rgb2=".95 .85 .7"
             width="128" height="128"/>
    <material name="ball" texture="ball" texuniform="true" texrepeat="4 4"/>
  </asset>
  <worldbody>
    {floor or ground("floor")}
    {bodies}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{motors}</actuator>
</mujoco>"""
