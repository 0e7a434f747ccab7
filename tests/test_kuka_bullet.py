"""The Kuka's magnet in PyBullet against the same model in C MuJoCo."""

import mujoco
import numpy as np
import pytest

pytest.importorskip("pybullet")

from envs_mjx.kuka_pick_place import KukaPickPlace
from envs_mjx.kuka_pick_place import model as m
from envs_mjx.kuka_pick_place.bullet import BulletPhysics
from envs_mjx.physics import CSimulation
from jaxrl.errors import UserError

TASK = KukaPickPlace(grasp="magnet")
PHYSICS = TASK.physics
KEYS = ("qpos", "qvel", "ctrl", "eq_active")
CONTROLS = np.append(m.HOME, m.FINGER_OPENING)


def advance(worlds, *arrays):
    """Worlds [N, ...], or one, after a control step."""
    qpos, qvel, ctrl, eq_active = (np.atleast_2d(np.float32(x)) for x in arrays)
    fields = dict(zip(KEYS, (qpos, qvel, ctrl, eq_active), strict=True))
    return BulletPhysics.advance(worlds, fields, PHYSICS.substeps)


class World:
    """One world as the evaluation steps it: states come back in float32."""

    def __init__(self, cube=(0.5, 0.1, m.CUBE_HALF), worlds=None):
        self.worlds = worlds or TASK.on("pybullet").physics
        self.qpos = PHYSICS.model.qpos0.copy()
        self.qpos[TASK.arm.qpos], self.qpos[TASK._fingers] = m.HOME, m.FINGER_OPENING
        self.qpos[TASK._cube] = [*cube, 1, 0, 0, 0]
        self.qpos, self.qvel = np.float32(self.qpos), np.zeros(PHYSICS.model.nv, np.float32)

    def step(self, ctrl, tied=0.0):
        new = advance(self.worlds, self.qpos, self.qvel, ctrl, [1.0, tied])
        self.qpos, self.qvel = np.float32(new["qpos"][0]), np.float32(new["qvel"][0])

    @property
    def cube(self):
        return self.qpos[TASK._cube][:3]

    @property
    def grip(self):
        data = mujoco.MjData(PHYSICS.model)
        data.qpos = self.qpos
        mujoco.mj_kinematics(PHYSICS.model, data)
        return data.site("grip").xpos


def test_the_arm_follows_its_targets_as_in_mujoco():
    bullet, c = World(), CSimulation(PHYSICS, 1)
    c.reset(bullet.qpos[None], bullet.qvel[None], np.array([[1, 0]]))
    random, ctrl, behind = np.random.default_rng(0), CONTROLS.copy(), []
    for step in range(100):
        if step < 60:
            ctrl[:7] += 0.04 * np.clip(0.5 * np.sin(step / 20) + 0.3 * random.normal(size=7), -1, 1)
        bullet.step(ctrl)
        qpos = c.step(ctrl[None])[0][0]
        # Targets move at up to 2 rad/s, and servos lag; the two simulators lag alike.
        np.testing.assert_allclose(bullet.qpos[:7], qpos[:7], atol=0.015)
        behind.append(np.abs(ctrl[:7] - qpos[:7]).max())
    assert max(behind) > 0.03
    np.testing.assert_allclose(bullet.qpos, qpos, atol=2e-4)
    # PyBullet's arm is the one that it ships; the hand is where our model has it.
    scene = bullet.worlds.scenes[1]
    place = scene.client.getLinkState(scene.arms[0], scene.hand, computeForwardKinematics=1)[4]
    data = mujoco.MjData(PHYSICS.model)
    data.qpos = bullet.qpos
    mujoco.mj_kinematics(PHYSICS.model, data)
    np.testing.assert_allclose(place, data.body("hand").xpos, atol=1e-5)


def test_the_magnet_holds_the_cube_at_the_grip_until_it_lets_go():
    world = World()
    start = world.grip
    world = World(cube=start + [0.01, 0.0, 0.0])
    ctrl = CONTROLS.copy()
    for _ in range(30):
        ctrl[1] += 0.01
        world.step(ctrl, tied=1.0)
    assert np.linalg.norm(world.grip - start) > 0.05
    assert np.linalg.norm(world.cube - world.grip) < 1e-3
    falls = PHYSICS.qvel_slice("cube").start + 2
    speed = world.qvel[falls]
    for _ in range(8):
        world.step(ctrl)
    assert world.qvel[falls] - speed == pytest.approx(-9.81 * 0.16, rel=0.02)


def test_a_new_episode_begins_where_it_is_told():
    first = World()
    for _ in range(5):
        first.step(CONTROLS + 0.1, tied=1.0)
    again, fresh = World((0.6, 0, m.CUBE_HALF), first.worlds), World((0.6, 0, m.CUBE_HALF))
    for _ in range(5):
        again.step(CONTROLS + 0.1)
        fresh.step(CONTROLS + 0.1)
    np.testing.assert_allclose(again.qpos, fresh.qpos, atol=1e-4)


def test_worlds_side_by_side_do_not_disturb_each_other():
    worlds = TASK.on("pybullet").physics
    alone = [World((0.5, y, m.CUBE_HALF)) for y in (0.1, -0.2, 0.3)]
    qpos, qvel = (np.stack([getattr(w, name) for w in alone]) for name in ("qpos", "qvel"))
    ctrl = CONTROLS + 0.1 * np.arange(3)[:, None]
    ties = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    for _ in range(10):
        new = advance(worlds, qpos, qvel, ctrl, ties)
        qpos, qvel = np.float32(new["qpos"]), np.float32(new["qvel"])
        for world, u, tie in zip(alone, ctrl, ties, strict=True):
            world.step(u, tie[1])
    # They share the solver's rounds, which end when the slowest of them has converged.
    np.testing.assert_allclose(qpos, [world.qpos for world in alone], atol=3e-3)
    assert np.abs(np.diff(qpos, axis=0)).max() > 0.1


def test_spin_is_told_in_the_cubes_own_frame():
    bullet, c = World((0.5, 0.3, 1.0)), CSimulation(PHYSICS, 1)
    bullet.qpos[TASK._cube][3:] = np.float32([0.5, 0.5, -0.5, 0.5])
    bullet.qvel[PHYSICS.qvel_slice("cube")][3:] = [1.0, 2.0, 3.0]
    c.reset(bullet.qpos[None], bullet.qvel[None], np.array([[1, 0]]))
    for _ in range(5):
        bullet.step(CONTROLS)
        qpos = c.step(CONTROLS[None])[0]
    np.testing.assert_allclose(bullet.qpos[TASK._cube], qpos[0, TASK._cube], atol=5e-3)
    np.testing.assert_allclose(bullet.qvel[PHYSICS.qvel_slice("cube")][3:], [1, 2, 3], atol=1e-2)


def test_friction_cannot_be_judged_there():
    with pytest.raises(UserError, match=r"add --set env.grasp=magnet"):
        KukaPickPlace(grasp="friction").on("pybullet")
