"""Four bar robots and two spheres build a structure: a high one, or to withstand a press."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_mjx.physics import Physics, PhysicsState, Simulated, make_physics
from envs_mjx.rotations import tilted
from envs_mjx.structures import model as m
from jaxrl.envs import ArraySpec, CurriculumConfig, State
from jaxrl.envs.rewards import weighted
from jaxrl.options import option

STEP = m.TIMESTEP * m.SUBSTEPS  # s, the servos' targets and the connections change at 60 Hz
JOINT_SPEED = 5.0  # rad/s, largest speed of a servo's target
ANGLES = np.array(list(m.ANGLES.values()))  # rad, the servos' targets at |action| = 1
CONNECT, RELEASE = 0.2, 0.5  # m from a bar's tip to a sphere's centre
SPAWN_APART = 0.4  # m, smallest distance of two robots' centres at the start
PRESS_SPEED, CRUSHED = 0.05, 0.3  # m/s, m
BODIES = m.BARS + m.SPHERES
FASTEST = 100.0  # m/s or rad/s, a higher velocity means that the simulation has diverged
FOLD = math.radians(85.0)  # by which the scripted robots fold their bars
TRIES = 32  # places that are drawn for each body at the start; the first that is free is taken


PPO: dict[str, Any] = {
    # Few worlds, because the robots of a world are many: an iteration has 1024 control steps.
    "num_steps": 16,
    "num_epochs": 4,
    "num_minibatches": 2,
    "learning_rate": 5e-4,
    "schedule": {"kind": "linear"},
    "gamma": 0.96,
    "normalize_reward": True,
    "bounds_coef": 1e-3,
    "network": {
        "policy_hidden": [128, 128],
        "value_hidden": [128, 128],
        "initial_std": 0.5,
        "groups": ["robots=24", "spheres=6"],
        "group_noise": 0.9,
    },
}


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Weights of the terms of the reward, in each step of 1/60 s."""

    height: float = option(0.1, "height of the highest robot (m)")
    best: float = option(10.0, "gain of the largest height of the episode (m)")
    spheres_best: float = option(0.0, "the same for each sphere on its own, summed over both (m)")
    mean_height: float = option(0.0, "mean height of all robots (m)")
    links: float = option(0.0, "number of bar tips that are connected to a sphere")
    standing: float = option(0.0, "1 while a robot is higher than .3 m")
    alive: float = option(0.0, "1 in each step")
    survival: float = option(0.0, "time survived under the press (s)")


@struct.dataclass
class Info:
    """The task's memory within an episode.

    Attributes:
      step: int32, steps of 1/60 s so far.
      targets: [4, 2, 3] targets of the bars' servos (rad).
      best: [6] largest height of each robot so far (m), bar robots first.
      survived: int32, steps of 1/60 s survived since the press has started.
    """

    step: jax.Array
    targets: jax.Array
    best: jax.Array
    survived: jax.Array


@struct.dataclass
class View:
    """Where everything is; rotations are from a body's frame to the world.

    Attributes:
      hubs, spheres: [4, 3], [2, 3] positions (m).
      turns: [4, 3, 3] rotations of the hubs.
      sphere_turns: [2, 3, 3] rotations of the spheres.
      velocity: [6, 3] velocities (m/s, world), hubs first.
      spin: [6, 3] angular velocities (rad/s, in the body's frame).
      joints: [4, 2, 3] angles of the bars relative to their hub (rad), as in `model.ANGLES`.
      tips: [8, 3] ends of the bars (m).
      links: [8, 2] bool, tips that are connected to a sphere.
    """

    hubs: jax.Array
    spheres: jax.Array
    turns: jax.Array
    sphere_turns: jax.Array
    velocity: jax.Array
    spin: jax.Array
    joints: jax.Array
    tips: jax.Array
    links: jax.Array

    @property
    def heights(self) -> jax.Array:
        """[6] heights of the hubs and the spheres' centres (m); a sphere that no bar holds is not a
        part of a structure, and counts as one on the floor however high it was thrown."""
        spheres = self.spheres[:, 2]
        loose = jnp.minimum(spheres, m.SPHERE_RADIUS)
        return jnp.concatenate([self.hubs[:, 2], jnp.where(self.links.any(0), spheres, loose)])


@dataclasses.dataclass(frozen=True)
class Structure(Simulated):
    """Four bar robots and two spheres on a floor; their servos and the connections work at 60 Hz.

    A bar robot is a hub with two bars of .5 m, each on a ball joint of three motorised hinges; at
    rest the bars point away from each other along the hub's x axis. The tip of a bar that comes
    within .2 m of a sphere's centre is connected to the sphere at its present place, by a ball
    joint, until it is pulled beyond .5 m. A tip holds at most one sphere, and a sphere is held by
    at most one tip of a robot.

    Action [30]: for each bar robot the desired angles of bar 0 and of bar 1, each by how much it
    folds about the hub's y axis, swings sideways, and turns about itself, in shares of 1.55, 1.2
    and 1.5 rad (the servos' targets move at 5 rad/s); then for each sphere a force 3 of at most
    8 N, less than its weight, in the world's directions.

    Observation: "robots" [4, 39], of each bar robot in the frame of its hub: downward direction
    3, height and largest height so far 2 (m), velocity 3 (m/s), angular velocity 3 (rad/s), the
    bars' angles 6 (rad), the servos' targets minus them 6 (rad), positions 6 (m) and
    velocities 6 (m/s) of the spheres relative to the hub, connections of its tips 4; "spheres"
    [2, 21], in the world's directions: height and largest height so far 2, velocity 3, angular
    velocity 3, positions of the hubs relative to it 12 (m), share of the tips that are connected
    to it 1; "world" [4]: share of the episode that is left, largest height so far (m), height of
    the press (m), and time until it begins to come down (s, at most 1); both 0 without a press.
    """

    spawn_radius: float = option(
        1.2, "the robots start within this distance of the centre (m)", greater_than=0.8
    )
    hold: int = option(15, "steps of 1/60 s in which an action holds", minimum=1)
    rewards: Rewards = option(Rewards(), "weights of the reward's terms")
    curriculum: CurriculumConfig = option(
        CurriculumConfig(),
        "level 0: training episodes start with robots that lift the spheres; towards 0.5: also "
        "earlier, while they lie around them; from there to 1: ever more often scattered",
    )

    has_press: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "ppo": {
                "num_envs": 64,
                "total_timesteps": 1_000_000,
                "ppo": PPO,
                "eval": {"every": 200_000},
                "checkpoint": {"every": 200_000},
            }
        },
        "gpu": {  # never run on a GPU
            "ppo": {
                "num_envs": 1024,
                "total_timesteps": 20_000_000,
                "ppo": PPO | {"num_minibatches": 32},
            }
        },
    }

    @functools.cached_property
    def physics(self) -> Physics:
        return make_physics(
            m.mjcf(m.TIMESTEP, self.has_press),
            engine=self.engine,
            substeps=m.SUBSTEPS,
            sites=[m.tip(i, side) for i in range(m.BARS) for side in range(2)],
            bodies=self._free,
        )

    if TYPE_CHECKING:

        @property
        def episode_steps(self) -> int: ...

    @property
    def episode_length(self) -> int:
        """Time limit in control steps."""
        return math.ceil(self.episode_steps / self.hold)

    @property
    def control_dt(self) -> float:
        return self.hold * STEP

    @property
    def action_spec(self) -> ArraySpec:
        names = [m.joint(i, side, k) for i in range(m.BARS) for side in range(2) for k in m.ANGLES]
        names += [f"{m.sphere(j)}_{axis}" for j in range(m.SPHERES) for axis in "xyz"]
        return ArraySpec((len(names),), -1.0, 1.0, tuple(names))

    @property
    def observation_spec(self) -> dict[str, ArraySpec]:
        return {
            "robots": ArraySpec((m.BARS, 39)),
            "spheres": ArraySpec((m.SPHERES, 21)),
            "world": ArraySpec((4,)),
        }

    # -- episodes -------------------------------------------------------------------

    def reset(self, key: jax.Array, level: jax.Array | float = 1.0) -> State:
        """Starts at rest, with everything scattered on the floor; below level 1 of the curriculum
        also with the robots around the spheres, at a moment of lifting them."""
        keys = jax.random.split(key, 3)
        level = jnp.squeeze(level)
        scattered = jax.random.bernoulli(keys[0], jnp.maximum(2.0 * level - 1.0, 0.0))
        around = _around(keys[1], first=jnp.maximum(1.0 - 2.0 * level, 0.0))
        places, turns, angles = jax.tree.map(
            lambda a, b: jnp.where(scattered, a, b), self._scattered(keys[2]), around
        )
        qpos = jnp.asarray(self.physics.rest, jnp.float32)
        poses = jnp.concatenate([places, turns], axis=1)
        qpos = qpos.at[self._poses].set(poses).at[self._angles].set(angles)
        physics = self.physics.init(
            qpos,
            mocap_pos=jnp.array([[0.0, 0.0, self._press_height(0)]]) if self.has_press else None,
            fields={"site_pos": self.physics.field("site_pos")},
        )
        info = Info(
            step=jnp.zeros((), jnp.int32),
            targets=angles,
            best=places[:, 2],
            survived=jnp.zeros((), jnp.int32),
        )
        return self._judge(physics, info)

    def _scattered(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Random places [6, 3] (m) and turns [6, 4] on the floor, so that no bar touches another
        robot, and angles [4, 2, 3] of straight bars."""
        along = jnp.linspace(-m.BAR_LENGTH, m.BAR_LENGTH, 11)
        is_bar = np.arange(BODIES) < m.BARS
        keys = jax.random.split(key, 3)
        radius = self.spawn_radius * jnp.sqrt(jax.random.uniform(keys[0], (BODIES, TRIES)))
        angle = jax.random.uniform(keys[1], (BODIES, TRIES), maxval=2 * math.pi)
        yaws = jax.random.uniform(keys[2], (BODIES, TRIES), minval=-math.pi, maxval=math.pi)
        places = radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
        heading = jnp.stack([jnp.cos(yaws), jnp.sin(yaws)], -1)
        reach = jnp.where(is_bar[:, None], along, 0.0)  # a sphere is a point
        points = places[..., None, :] + reach[:, None, :, None] * heading[..., None, :]
        chosen: list[jax.Array] = []  # indices of the tries
        for body in range(BODIES):
            free = jnp.ones(TRIES, bool)
            for other, index in enumerate(chosen):
                apart = jnp.linalg.norm(places[body] - places[other, index], axis=-1)
                gaps = points[body][:, :, None] - points[other, index][None, None]
                least = 0.1 if is_bar[body] else CONNECT + 0.05
                gap = jnp.linalg.norm(gaps, axis=-1).min((1, 2))
                free &= (apart >= SPAWN_APART) & (gap >= least)
            chosen.append(jnp.argmax(free))
        rows, tries = jnp.arange(BODIES), jnp.stack(chosen)
        heights = jnp.where(is_bar, m.HUB_RADIUS, m.SPHERE_RADIUS)[:, None]
        places = jnp.concatenate([places[rows, tries], heights], axis=1)
        return places, tilted(yaws[rows, tries]), jnp.zeros((m.BARS, 2, 3))

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; `action` [30] is clipped to [-1, 1]. The reward and its terms are
        those of all its 60 Hz steps, up to one that terminates the episode."""
        action = jnp.clip(action, -1.0, 1.0)

        def advance(before: State, _: None) -> tuple[State, None]:
            after = self._advance(before, action)
            terms = {k: v + before.metrics[k] for k, v in after.metrics.items() if _is_term(k)}
            after = after.replace(
                reward=before.reward + after.reward, metrics=after.metrics | terms
            )
            return jax.tree.map(
                lambda old, new: jnp.where(before.terminated, old, new), before, after
            ), None

        none = {k: jnp.zeros_like(v) for k, v in state.metrics.items() if _is_term(k)}
        begin = state.replace(
            reward=jnp.zeros_like(state.reward),
            terminated=jnp.zeros_like(state.terminated),
            metrics=state.metrics | none,
        )
        return jax.lax.scan(advance, begin, length=self.hold)[0]

    def _advance(self, state: State, action: jax.Array) -> State:
        """One step of 1/60 s."""
        info, physics = state.info, state.physics
        goals = ANGLES * action[: 6 * m.BARS].reshape(m.BARS, 2, 3)
        most = JOINT_SPEED * STEP
        targets = info.targets + jnp.clip(goals - info.targets, -most, most)
        pushes = action[6 * m.BARS :].reshape(m.SPHERES, 3)
        pushes /= jnp.maximum(jnp.linalg.norm(pushes, axis=1, keepdims=True), 1.0)
        if self.has_press:
            height = self._press_height(info.step + 1)
            physics = physics.replace(mocap_pos=jnp.array([[0.0, 0.0, 1.0]]) * height)
        physics = self.physics.step(
            physics, jnp.concatenate([targets.ravel(), m.SPHERE_FORCE * pushes.ravel()])
        )
        physics = self._connect(physics)
        after = self._judge(physics, info.replace(step=info.step + 1, targets=targets))
        # Close to infinity the simulation is still finite for a while.
        diverged = jnp.abs(physics.qvel).max() > FASTEST
        return after.replace(reward=jnp.where(diverged, jnp.nan, after.reward))

    def _connect(self, physics: PhysicsState) -> PhysicsState:
        """Breaks connections that are pulled too far apart, and joins tips to near spheres."""
        view = self.view(physics)
        offsets = view.tips[:, None] - view.spheres  # [8, 2, 3]
        gaps = jnp.linalg.norm(offsets, axis=-1)
        kept = view.links & (gaps <= RELEASE)
        nearest = jax.nn.one_hot(jnp.argmin(gaps, axis=1), m.SPHERES, dtype=bool)
        joined = nearest & (gaps <= CONNECT) & ~kept.any(1, keepdims=True)
        # One tip of a robot: both tips on one sphere close a loop that the servos tear apart.
        first = joined[0::2] & ~kept[1::2]
        second = joined[1::2] & ~kept[0::2] & ~first
        joined = jnp.stack([first, second], axis=1).reshape(joined.shape)
        # The place on the sphere, in the sphere's frame.
        away = jnp.maximum(gaps, m.SPHERE_RADIUS + m.BAR_RADIUS) / jnp.maximum(gaps, 1e-6)
        places = jnp.einsum("jab,tja->tjb", view.sphere_turns, offsets * away[..., None])
        sites = physics.model["site_pos"]  # type: ignore[index]
        rows, links = self._places, self._links
        moved = jnp.where(joined[..., None], places, sites[rows])
        active = physics.eq_active.at[links].set(kept | joined)  # type: ignore[union-attr]
        return physics.replace(
            eq_active=active,
            model=physics.model | {"site_pos": sites.at[rows].set(moved)},  # type: ignore[operator]
        )

    def _judge(self, physics: PhysicsState, before: Info) -> State:
        """Reward, metrics and observation of the step that led to `physics`."""
        view = self.view(physics)
        heights = view.heights
        best = jnp.maximum(before.best, heights)
        lost, survived = self._press(before, heights)
        links = view.links.sum().astype(jnp.float32)
        reward, shares = weighted(
            {
                "height": heights.max(),
                "best": best.max() - before.best.max(),
                "spheres_best": (best - before.best)[m.BARS :].sum(),
                "mean_height": heights.mean(),
                "links": links,
                "standing": (heights.max() >= CRUSHED).astype(jnp.float32),
                "alive": jnp.ones(()),
                "survival": (survived - before.survived) * STEP,
            },
            self.rewards,
        )
        info = before.replace(best=best, survived=survived)
        metrics = shares | {
            "final/best_z": best.max(),
            "final/links": links,
            "success": self._success(info),
        }
        if self.has_press:
            metrics["final/survival_seconds"] = survived * STEP
        return State(
            physics=physics,
            obs=self._observation(view, info),
            reward=reward,
            terminated=lost,
            metrics=metrics,
            info=info,
        )

    def _press(self, info: Info, heights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether the episode terminates under the press, and the steps survived under it."""
        return jnp.zeros((), bool), info.survived

    def _press_height(self, step: jax.Array | int) -> Any:
        """Height of the press after so many steps of 1/60 s (m)."""
        return jnp.zeros(())

    def _press_delay(self, step: jax.Array) -> jax.Array:
        """Time until the press begins to come down (s), at most 1."""
        return jnp.zeros(())

    def _success(self, info: Info) -> jax.Array:
        raise NotImplementedError

    # -- what is where ----------------------------------------------------------------

    @functools.cached_property
    def _free(self) -> list[str]:
        return [*(m.hub(i) for i in range(m.BARS)), *(m.sphere(j) for j in range(m.SPHERES))]

    @functools.cached_property
    def _poses(self) -> np.ndarray:
        """[6, 7] indices in `qpos` of each body's position and quaternion."""
        return self._from_slides(self.physics.qpos_slice)[:, None] + np.arange(7)

    @functools.cached_property
    def _angles(self) -> np.ndarray:
        """[4, 2, 3] indices in `qpos` of the bars' angles."""
        names = self.action_spec.names[: 6 * m.BARS]
        return np.array([self.physics.qpos_slice(k).start for k in names]).reshape(m.BARS, 2, 3)

    @functools.cached_property
    def _speeds(self) -> np.ndarray:
        """[6, 6] indices in `qvel` of each body's velocity and angular velocity."""
        return self._from_slides(self.physics.qvel_slice)[:, None] + np.arange(6)

    def _from_slides(self, indices: Callable[[str], slice]) -> np.ndarray:
        """[6] first index of each body; a sphere's three slides come before its ball joint."""
        slides = np.where(np.arange(BODIES) < m.BARS, 0, 3)
        return np.array([indices(name).start for name in self._free]) - slides

    @functools.cached_property
    def _links(self) -> np.ndarray:
        """[8, 2] index of the connection of a tip with a sphere."""
        index = self.physics.equality_id
        return np.array([[index(m.link(t, j)) for j in range(m.SPHERES)] for t in range(m.TIPS)])

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """[8, 2] index of the site of a connection on the sphere."""
        site = self.physics.model.site
        return np.array([[site(m.link(t, j)).id for j in range(m.SPHERES)] for t in range(m.TIPS)])

    def view(self, physics: PhysicsState) -> View:
        """Where everything is."""
        model = self.physics
        poses = [model.body_pose(physics, name) for name in self._free]
        places = jnp.stack([place for place, _ in poses])
        turns = jnp.stack([turn for _, turn in poses])
        speeds = physics.qvel[self._speeds]
        tips = [
            model.site_pose(physics, m.tip(i, side))[0] for i in range(m.BARS) for side in range(2)
        ]
        return View(
            hubs=places[: m.BARS],
            spheres=places[m.BARS :],
            turns=turns[: m.BARS],
            sphere_turns=turns[m.BARS :],
            velocity=speeds[:, :3],
            spin=speeds[:, 3:],
            joints=physics.qpos[self._angles],
            tips=jnp.stack(tips),
            links=physics.eq_active[self._links],  # type: ignore[index]
        )

    def _observation(self, view: View, info: Info) -> dict[str, jax.Array]:
        bars, turn = m.BARS, view.turns

        def in_hub(vectors: jax.Array) -> jax.Array:
            """World vectors [4, K, 3] in the frames of the hubs, [4, 3 K]."""
            return jnp.einsum("iab,ika->ikb", turn, vectors).reshape(bars, -1)

        gaps = view.spheres - view.hubs[:, None]  # [4, 2, 3]
        speeds = view.velocity[bars:] - view.velocity[:bars, None]
        robots = jnp.concatenate(
            [
                -turn[:, 2],
                view.hubs[:, 2:],
                info.best[:bars, None],
                in_hub(view.velocity[:bars, None]),
                view.spin[:bars],
                view.joints.reshape(bars, -1),
                (info.targets - view.joints).reshape(bars, -1),
                in_hub(gaps),
                in_hub(speeds),
                view.links.reshape(bars, -1),
            ],
            axis=1,
        )
        spin = jnp.einsum("jab,jb->ja", view.sphere_turns, view.spin[bars:])
        spheres = jnp.concatenate(
            [
                view.spheres[:, 2:],
                info.best[bars:, None],
                view.velocity[bars:],
                spin,
                -gaps.transpose(1, 0, 2).reshape(m.SPHERES, -1),
                view.links.mean(0)[:, None],
            ],
            axis=1,
        )
        world = [
            1.0 - info.step / self.episode_steps,
            info.best.max(),
            self._press_height(info.step),
            self._press_delay(info.step),
        ]
        return {"robots": robots, "spheres": spheres, "world": jnp.stack(world)}

    # -- baselines and pictures -------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Robots that stand up on their bars, State -> action [30]."""
        return {"scripted": self._scripted}

    def _scripted(self, state: State) -> jax.Array:
        """Each robot folds both bars towards the floor, which lifts its hub."""
        down = -self.view(state.physics).turns[:, 2]  # in the hubs' frames
        across = down.at[:, 0].set(0.0)
        across /= jnp.maximum(jnp.linalg.norm(across, axis=1, keepdims=True), 1e-6)
        angles = []
        for sign in (1.0, -1.0):
            # Where the bar's own x axis shall point: nearly downwards.
            goal = sign * (math.sin(FOLD) * across).at[:, 0].set(sign * math.cos(FOLD))
            fold, swing = jnp.arctan2(-goal[:, 2], goal[:, 0]), jnp.arcsin(goal[:, 1])
            angles.append(jnp.stack([fold, swing, jnp.zeros(m.BARS)], axis=1))
        targets = jnp.clip(jnp.stack(angles, axis=1) / ANGLES, -1.0, 1.0)
        return jnp.concatenate([targets.ravel(), jnp.zeros(3 * m.SPHERES)])

    def render(self, states: PhysicsState, stride: int) -> np.ndarray:
        """[F, H, W, 3] pictures of every `stride`-th of the physics states [T, ...]."""
        return self.physics.render(states, m.VIEW, stride=stride)


@dataclasses.dataclass(frozen=True)
class StructureHeight(Structure):
    """The robots build as high as they can; see `Structure` for actions and observations.

    Reward: .1 times the highest robot's height (m) in each step of 1/60 s, and 10 times the largest
    height that is reached in the episode, when it is reached. Success: a robot was `goal` (m) high.
    """

    episode_steps: int = option(1000, "time limit of an episode (steps of 1/60 s)", minimum=1)
    goal: float = option(1.0, "height that counts as a success (m)", greater_than=0)

    @property
    def success_criterion(self) -> str:
        """The condition of success, as text."""
        return f"a robot was {self.goal:g} m high"

    def _success(self, info: Info) -> jax.Array:
        return (info.best.max() >= self.goal).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class StructureCrush(Structure):
    """The robots withstand a press; see `Structure` for actions and observations.

    The press stays at `press_start` for the first `build_steps`. Then it comes down at .05 m/s,
    whatever is under it, and the episode terminates as soon as all robots are below .3 m.

    Reward: 1 and .5 times the mean height (m) in each step of 1/60 s, and 10 for each second that
    is survived under the press. Success: survival to the end.
    """

    episode_steps: int = option(3000, "time limit of an episode (steps of 1/60 s)", minimum=1)
    build_steps: int = option(
        1800, "steps of 1/60 s until the press begins to come down", minimum=0
    )
    press_start: float = option(
        1.3, "height of the press at the start (m)", greater_than=2 * m.SPHERE_RADIUS
    )
    rewards: Rewards = option(
        Rewards(height=0.0, best=0.0, mean_height=0.5, alive=1.0, survival=10.0),
        "weights of the reward's terms",
    )

    has_press: ClassVar[bool] = True
    success_criterion = "a robot is still up at the end, under the press"

    def _press_height(self, step: jax.Array | int) -> jax.Array:
        seconds = jnp.maximum(step - self.build_steps, 0) * STEP
        return jnp.asarray(self.press_start - PRESS_SPEED * seconds)

    def _press_delay(self, step: jax.Array) -> jax.Array:
        return jnp.clip((self.build_steps - step) * STEP, 0.0, 1.0)

    def _press(self, info: Info, heights: jax.Array) -> tuple[jax.Array, jax.Array]:
        pressing = info.step > self.build_steps
        # A robot that is squeezed through the press does not count as standing.
        standing = (heights >= CRUSHED) & (heights <= self._press_height(info.step))
        lost = pressing & ~standing.any()
        return lost, info.survived + (pressing & ~lost)

    def _success(self, info: Info) -> jax.Array:
        return (info.survived >= self.episode_steps - self.build_steps).astype(jnp.float32)


def _is_term(metric: str) -> bool:
    """Whether a metric is a term of the reward, which adds up over steps."""
    return metric.startswith("reward/")


def _around(key: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Places [6, 3] (m), turns [6, 4] and angles [4, 2, 3] (rad) of robots around the spheres.

    Two, three or four robots stand around one sphere and the others around the other one, each
    with the tip of bar 0 at the sphere and the tip of bar 1, its foot, on the floor. They are at a
    random moment of a lift: at first their feet are far from the sphere and the bars straight,
    then the feet come close to it (moments 0 to 1), and then the bars, which are folded, straighten
    (1 to 2). The moments are from `first` to 2, and more often early than late.
    """
    keys = jax.random.split(key, 6)
    most = jax.random.randint(keys[0], (), 2, m.BARS + 1)  # robots around sphere 0
    own = (jnp.arange(m.BARS) >= most).astype(jnp.int32)  # each robot's sphere
    # The same for all robots of a sphere: the moment, the tips' place on the sphere, and how far
    # outside of the tip the foot is at last.
    moment = first + (2.0 - first) * jax.random.uniform(keys[1], (m.SPHERES,)) ** 2
    below = jax.random.uniform(keys[2], (m.SPHERES,), maxval=0.6)  # rad, from the equator
    last = jax.random.uniform(keys[3], (m.SPHERES,), maxval=0.3)
    gap = 0.5 * (m.SPHERE_RADIUS + m.BAR_RADIUS + CONNECT)
    inside, drop = gap * jnp.cos(below), gap * jnp.sin(below)  # of the tip from the centre
    low = m.SPHERE_RADIUS - drop  # height of the tip while the sphere lies
    longest = 2 * m.BAR_LENGTH
    far = jnp.sqrt(0.99 * longest**2 - low**2)
    out = far + (last - far) * jnp.minimum(moment, 1.0)
    span = jnp.hypot(out, low)  # from the foot to the tip
    span += (0.97 * longest - span) * jnp.maximum(moment - 1.0, 0.0)
    up = jnp.sqrt(span**2 - out**2)  # height of the tip
    fold, lean = jnp.arccos(span / longest), jnp.arctan2(out, up)
    side = m.BAR_LENGTH * jnp.sin(fold)  # from the line between foot and tip to the hub
    hub_out = inside + out / 2 + side * jnp.cos(lean)
    hub_up = up / 2 + side * jnp.sin(lean)
    centres = jnp.array([[1.4, 0.0], [-1.4, 0.0]])
    alone = jnp.array([False, True]) & (most == m.BARS)
    sphere_up = jnp.where(alone, m.SPHERE_RADIUS, up + drop)
    number = jnp.where(own == 0, most, m.BARS - most)
    azimuth = 2 * math.pi * (jnp.arange(m.BARS) / number + jax.random.uniform(keys[4]))
    azimuth += jax.random.uniform(keys[5], (m.BARS,), minval=-0.2, maxval=0.2)
    outwards = jnp.stack([jnp.cos(azimuth), jnp.sin(azimuth)], axis=1)
    hubs = centres[own] + hub_out[own, None] * outwards
    hubs = jnp.concatenate([hubs, hub_up[own, None]], axis=1)
    spheres = jnp.concatenate([centres, sphere_up[:, None]], axis=1)
    places = jnp.concatenate([hubs, spheres])
    none = jnp.zeros(m.SPHERES)
    yaw = jnp.concatenate([azimuth + math.pi, none])
    pitch = jnp.concatenate([lean[own] - math.pi / 2, none])
    angles = jnp.zeros((m.BARS, 2, 3))
    angles = angles.at[:, :, 0].set(jnp.stack([fold[own], -fold[own]], axis=1))
    return places, tilted(yaw, pitch, math.pi / 2), angles
