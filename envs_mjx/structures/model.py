"""The model of the structure tasks: bar robots, spheres, the floor, and a press, as MJCF."""

from __future__ import annotations

import math

from envs_mjx.physics import View
from envs_mjx.scenery import LIGHT, SCENERY, ground

BARS, SPHERES = 4, 2  # number of robots of each kind
TIPS = 2 * BARS
BAR_LENGTH, BAR_RADIUS, BAR_MASS = 0.5, 0.015, 0.5  # m, m, kg
HUB_RADIUS, HUB_MASS = 0.025, 0.1  # m, kg
SPHERE_RADIUS, SPHERE_MASS = 0.167, 1.0  # m, kg

# A joint's servo: it turns at the speed of its target, with at most this torque.
JOINT_TORQUE = 10.0  # N m
STIFFNESS, DAMPING = 60.0, 3.0  # N m / rad, N m s / rad
ROTOR = 0.005  # kg m^2, inertia of a joint's motors, and of the hub that contains them
# Largest angles of the servos' targets (rad): the bar folds about the hub's y axis, until both
# bars are parallel, then swings sideways, then turns about itself. Three hinges, because a servo on
# MuJoCo's ball joint pushes along a rotation vector, which is no gradient of an energy: it drives
# linked bars to any speed.
ANGLES = {"fold": 1.55, "swing": 1.2, "turn": 1.5}
BEYOND = 0.2  # rad, from there to the joint's stop
SPHERE_FORCE = 8.0  # N, below the sphere's weight of 9.81 N: it can roll, not fly
ROLLING = 0.03  # N m s / rad, damping of a sphere's rotation

TIMESTEP, SUBSTEPS = 1 / 120, 2  # s; 60 Hz control
VIEW = View(target=(0.0, 0.0, 0.3), distance=4.5, azimuth=120.0, elevation=-18.0)
_COLOURS = ("orange", "blue", "red", "grey")
# Connections hold a point, about which the bar turns. Twice as stiff, they diverge now and then.
_SOFT = 'solref=".04 1" solimp=".9 .95 .001"'


def hub(i: int) -> str:
    return f"hub_{i}"


def bar(i: int, side: int) -> str:
    return f"bar_{i}_{side}"


def joint(i: int, side: int, name: str) -> str:
    """Name of one of the three hinges of a bar, which are named in `ANGLES`."""
    return f"{bar(i, side)}_{name}"


def tip(i: int, side: int) -> str:
    return f"tip_{i}_{side}"


def sphere(j: int) -> str:
    return f"sphere_{j}"


def link(t: int, j: int) -> str:
    """Name of the connection of tip t with sphere j, and of its place on the sphere."""
    return f"link_{t}_{j}"


def mjcf(timestep: float, press: bool) -> str:
    """The model; only pairs of geoms of different robots, and with floor and press, touch."""
    robots = "".join(_bar_robot(i) for i in range(BARS)) + "".join(
        _sphere(j) for j in range(SPHERES)
    )
    pressed = (
        '<body name="press" mocap="true" pos="0 0 5" quat="0 1 0 0">'
        '<geom name="press" type="plane" size="3 3 .1" rgba=".4 .4 .5 .25"/></body>'
        if press
        else ""
    )
    return f"""
<mujoco model="structures">
  <option timestep="{timestep}" integrator="implicitfast" cone="pyramidal" iterations="10"
          ls_iterations="10"/>
  {SCENERY}
  <default>
    <geom contype="0" conaffinity="0" condim="3"/>
    <pair friction=".8 .8 .005 .0001 .0001" condim="3"/>
  </default>
  <worldbody>
    {LIGHT}
    {ground("floor")}
    {robots}
    {pressed}
  </worldbody>
  <contact>{_pairs(press)}</contact>
  <equality>{_links()}</equality>
  <actuator>{_actuators()}</actuator>
</mujoco>"""


def _bar_robot(i: int) -> str:
    bars = ""
    for side, sign in enumerate((1, -1)):
        hinges = ""
        for (name, angle), axis in zip(ANGLES.items(), ("0 1 0", "0 0 1", "1 0 0"), strict=True):
            stop = math.degrees(angle + BEYOND)
            hinges += (
                f'<joint name="{joint(i, side, name)}" axis="{axis}" armature="{ROTOR}" '
                f'damping=".02" range="-{stop} {stop}"/>'
            )
        bars += f"""
      <body name="{bar(i, side)}">
        {hinges}
        <geom name="{bar(i, side)}" type="capsule" size="{BAR_RADIUS}" mass="{BAR_MASS}"
              fromto="{sign * BAR_RADIUS} 0 0 {sign * (BAR_LENGTH - BAR_RADIUS)} 0 0"
              material="{_COLOURS[i]}"/>
        <site name="{tip(i, side)}" pos="{sign * BAR_LENGTH} 0 0" size=".005"/>
      </body>"""
    return f"""
    <body name="{hub(i)}" pos="{i} 1 {HUB_RADIUS}">
      <freejoint name="{hub(i)}"/>
      <inertial pos="0 0 0" mass="{HUB_MASS}" diaginertia="{ROTOR} {ROTOR} {ROTOR}"/>
      <geom name="{hub(i)}" type="sphere" size="{HUB_RADIUS}" material="dark"/>
      {bars}
    </body>"""


def _sphere(j: int) -> str:
    # Moved when a tip is connected. At the body's own origin, MuJoCo would never read the place.
    places = "".join(
        f'<site name="{link(t, j)}" pos="0 0 {SPHERE_RADIUS}" size=".005"/>' for t in range(TIPS)
    )
    # As a free joint, but with damping of the rotation alone.
    slides = "".join(
        f'<joint name="{sphere(j)}_{axis}" type="slide" axis="{direction}"/>'
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1"))
    )
    return f"""
    <body name="{sphere(j)}">
      {slides}
      <joint name="{sphere(j)}" type="ball" damping="{ROLLING}"/>
      <geom name="{sphere(j)}" type="sphere" size="{SPHERE_RADIUS}" mass="{SPHERE_MASS}"
            material="white"/>
      {places}
    </body>"""


def _pairs(press: bool) -> str:
    bars = [(i, bar(i, side)) for i in range(BARS) for side in range(2)]
    hubs = [hub(i) for i in range(BARS)]
    spheres = [sphere(j) for j in range(SPHERES)]
    everything = [name for _, name in bars] + hubs + spheres
    pairs = [("floor", name) for name in everything]
    pairs += [("press", name) for name in everything] if press else []
    pairs += [(a, b) for i, a in bars for k, b in bars if i < k]
    pairs += [(name, other) for _, name in bars for other in spheres]
    pairs += [(name, other) for name in hubs for other in spheres]
    pairs += [(spheres[a], spheres[b]) for a in range(SPHERES) for b in range(a + 1, SPHERES)]
    return "".join(f'<pair geom1="{a}" geom2="{b}"/>' for a, b in pairs)


def _links() -> str:
    return "".join(
        f'<connect name="{link(t, j)}" site1="{tip(t // 2, t % 2)}" site2="{link(t, j)}" '
        f'active="false" {_SOFT}/>'
        for t in range(TIPS)
        for j in range(SPHERES)
    )


def _actuators() -> str:
    """Servos of the bars' hinges [8 x 3]; then the force on each sphere [2 x 3]."""
    text = ""
    for i in range(BARS):
        for side in range(2):
            for name in ANGLES:
                text += (
                    f'<position joint="{joint(i, side, name)}" kp="{STIFFNESS}" '
                    f'kv="{DAMPING}" forcerange="-{JOINT_TORQUE} {JOINT_TORQUE}"/>'
                )
    for j in range(SPHERES):
        for axis in "xyz":
            text += f'<motor joint="{sphere(j)}_{axis}"/>'
    return text
