"""The structure tasks: robots, connections and the press."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_mjx.structures import StructureCrush, StructureHeight
from envs_mjx.structures import model as m
from envs_mjx.structures.task import ANGLES, CONNECT, SPAWN_APART

N = 8


@functools.cache
def functions(task):
    """`reset`, `step`, `view` and the scripted controller of many worlds."""
    batch = [task.reset, task.step, task.view, task.baselines()["scripted"]]
    return [jax.jit(jax.vmap(function)) for function in batch]


def played(task, steps, act, seed=0):
    """The last state of N worlds."""
    reset, step, _, _ = functions(task)
    state = reset(jax.random.split(jax.random.key(seed), N))
    for i in range(steps):
        state = step(state, act(state, i))
    return state


def rest(state, i):
    return jnp.zeros((N, 30))


TASK = StructureHeight(hold=1)


def started(level, count=N):
    """The first state of worlds at a level of the curriculum, and where everything is."""
    reset = jax.jit(jax.vmap(functools.partial(TASK.reset, level=level)))
    state = reset(jax.random.split(jax.random.key(0), count))
    return state, functions(TASK)[2](state.physics)


def test_robots_start_apart_and_stay_where_they_are():
    reset, _, view, _ = functions(TASK)
    state = reset(jax.random.split(jax.random.key(0), N))
    before = view(state.physics)
    places = jnp.concatenate([before.hubs, before.spheres], axis=1)[..., :2]
    gaps = jnp.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    assert (gaps + 9 * jnp.eye(6)).min() >= SPAWN_APART - 1e-6
    assert jnp.linalg.norm(places, axis=-1).max() <= TASK.spawn_radius
    assert (
        jnp.linalg.norm(before.tips[:, :, None] - before.spheres[:, None], axis=-1).min() > CONNECT
    )
    after = view(played(TASK, 60, rest).physics)
    np.testing.assert_allclose(after.hubs, before.hubs, atol=0.02)
    np.testing.assert_allclose(after.spheres, before.spheres, atol=0.02)
    assert not after.links.any()


def test_the_scripted_robots_stand_up():
    scripted = functions(TASK)[3]
    state = played(TASK, 200, lambda state, i: scripted(state))
    np.testing.assert_allclose(state.info.best[:, : m.BARS], 0.5, atol=0.01)
    assert (state.metrics["success"] == 0).all()


def test_random_actions_stay_finite():
    def act(state, i):
        return jax.random.uniform(jax.random.key(i), (N, 30), minval=-1.0)

    state = played(TASK, 300, act)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.obs))
    assert state.info.best.max() < 1.0
    assert state.metrics["final/links"].sum() > 0


def test_a_world_that_is_too_fast_has_diverged():
    _, step, _, _ = functions(TASK)
    state = played(TASK, 0, rest)
    fast = state.physics.qvel.at[0, 2].set(1000.0)
    state = step(state.replace(physics=state.physics.replace(qvel=fast)), rest(state, 0))
    assert jnp.isnan(state.reward[0]) and jnp.isfinite(state.reward[1:]).all()


def test_the_bars_stay_within_their_stops():
    view, worst = functions(TASK)[2], 0.0
    draw = functools.cache(lambda i: jax.random.uniform(jax.random.key(i), (N, 30), minval=-1))

    def act(state, i):
        nonlocal worst
        worst = jnp.maximum(worst, jnp.abs(view(state.physics).joints).max((0, 1, 2)))
        return draw(i // 20)

    state = played(TASK, 400, act)
    assert jnp.isfinite(state.physics.qvel).all()
    assert (worst > 0.8 * ANGLES).all() and (worst < ANGLES + m.BEYOND + 0.1).all()


def test_a_sphere_rolls_and_does_not_fly():
    def act(state, i):
        return jnp.zeros((N, 30)).at[:, 24].set(1.0).at[:, 27].set(-1.0)

    before = functions(TASK)[2](played(TASK, 0, act).physics).spheres
    view = functions(TASK)[2](played(TASK, 60, act).physics)
    moved = (view.spheres - before)[..., 0]
    free = ~view.links.any(1)
    assert (moved[:, 0][free[:, 0]] > 0.5).all() and (moved[:, 1][free[:, 1]] < -0.5).all()
    assert view.spheres[..., 2].max() < m.SPHERE_RADIUS + 0.1

    def up(state, i):
        return jnp.zeros((N, 30)).at[:, [26, 29]].set(1.0)

    heights = functions(TASK)[2](played(TASK, 60, up).physics).spheres[..., 2]
    np.testing.assert_allclose(heights, m.SPHERE_RADIUS, atol=0.01)


def test_a_sphere_counts_while_a_bar_holds_it():
    step, view = functions(TASK)[1:3]
    state = step(joined(TASK), rest(None, 0))
    row = TASK._poses[m.BARS, 2]
    thrown = state.physics.qpos.at[:, row].set(0.4)  # still within .5 m of the tip
    state = step(state.replace(physics=state.physics.replace(qpos=thrown)), rest(state, 0))
    assert view(state.physics).links[:, 0, 0].all()
    held = state.info.best[:, m.BARS]
    assert (held > 0.35).all()
    thrown = state.physics.qpos.at[:, row].set(2.0)
    state = step(state.replace(physics=state.physics.replace(qpos=thrown)), rest(state, 0))
    assert not view(state.physics).links[:, 0, 0].any()
    np.testing.assert_allclose(state.info.best[:, m.BARS], held, atol=1e-6)


def joined(task):
    """A world whose first tip lies 1 cm from the surface of the first sphere."""
    state = functions(task)[0](jax.random.split(jax.random.key(3), N))
    view = functions(task)[2](state.physics)
    heading = view.turns[:, 0, :, 0]
    place = view.hubs[:, 0] + heading * (m.BAR_LENGTH + 0.13)
    poses = state.physics.qpos.at[:, task._poses[m.BARS, :2]].set(place[:, :2])
    return state.replace(physics=state.physics.replace(qpos=poses))


def test_a_near_tip_is_connected_at_its_place():
    task = TASK
    _, step, view, _ = functions(task)
    state = step(joined(task), jnp.zeros((N, 30)))
    links = view(state.physics).links
    assert links[:, 0, 0].all()
    # Pulled by the sphere's largest force, the connection holds: both move together.
    pull = jnp.zeros((N, 30)).at[:, 24:26].set(1.0)
    for _ in range(60):
        state = step(state, pull)
    seen = view(state.physics)
    gap = jnp.linalg.norm(seen.tips[:, 0] - seen.spheres[:, 0], axis=-1)
    assert seen.links[:, 0, 0].all()
    np.testing.assert_allclose(gap, 0.1925, atol=0.01)
    # A tip holds one sphere at most, and a sphere one tip of a robot.
    assert (seen.links.sum(-1) <= 1).all()
    folded = jnp.zeros((N, 30)).at[:, [0, 3]].set(jnp.array([0.79, -0.79]))
    for _ in range(120):
        state = step(state, folded)
        by_robot = view(state.physics).links.reshape(N, m.BARS, 2, m.SPHERES).sum(2)
        assert (by_robot <= 1).all()


def test_an_action_holds_for_several_steps():
    one, ten = TASK, StructureHeight(hold=10)
    states = [functions(task)[0](jax.random.split(jax.random.key(4), N)) for task in (one, ten)]
    action, total = 0.7 * jnp.ones((N, 30)), 0.0
    for _ in range(10):
        states[0] = functions(one)[1](states[0], action)
        total += states[0].reward
    states[1] = functions(ten)[1](states[1], action)
    np.testing.assert_allclose(states[1].reward, total, atol=1e-4)
    np.testing.assert_allclose(states[1].physics.qpos, states[0].physics.qpos, atol=1e-4)
    assert (states[1].info.step == 10).all()
    assert ten.episode_length == 100 and ten.control_dt == pytest.approx(1 / 6)


def test_a_low_level_starts_in_the_middle_of_lifts():
    step, (state, seen) = functions(TASK)[1], started(0.0)
    tips = seen.tips.reshape(N, m.BARS, 2, 3)
    gaps = jnp.linalg.norm(tips[:, :, None, 0] - seen.spheres[:, None], axis=-1)  # [N, 4, 2]
    own = gaps.min(-1)
    assert (own > m.SPHERE_RADIUS).all() and (own < CONNECT).all()
    np.testing.assert_allclose(tips[:, :, 1, 2], 0.0, atol=1e-3)  # the feet
    assert (seen.hubs[..., 2] > m.HUB_RADIUS).all()
    assert set(np.unique((gaps < CONNECT).sum(1))) >= {1, 2, 3}  # robots at one sphere
    lifted = (gaps < CONNECT).any(1)  # [N, 2] spheres with robots
    for _ in range(60):  # straight bars lift them
        state = step(state, rest(state, 0))
    assert (state.info.best[:, m.BARS :][lifted] > 0.9).mean() > 0.8
    assert jnp.isfinite(state.reward).all()


def test_a_higher_level_also_starts_earlier_and_scattered():
    def starts(level):
        _, view = started(level, 32)
        gaps = jnp.linalg.norm(view.tips[:, :, None] - view.spheres[:, None], axis=-1)
        feet = jnp.linalg.norm(view.tips[:, 1, :2] - view.spheres[:, 0, :2], axis=-1)
        return (gaps < CONNECT).any((1, 2)), feet

    around, feet = starts(0.0)
    assert around.all() and feet.max() < 0.5
    around, feet = starts(0.5)
    assert around.all() and feet.max() > 0.9
    around, _ = starts(0.75)
    assert around.any() and not around.all()


@pytest.mark.slow
def test_mjx_and_c_agree():
    tasks = [StructureHeight(engine=name, hold=1) for name in ("c", "mjx")]

    def act(state, i):
        return 0.5 * jnp.sin(0.1 * i + jnp.arange(30.0)) * jnp.ones((N, 1))

    one, two = (played(task, 20, act).physics.qpos for task in tasks)
    np.testing.assert_allclose(one, two, atol=2e-3)


def test_the_press_ends_the_episode_of_robots_that_lie_down():
    task = StructureCrush(episode_steps=900, build_steps=60, press_start=0.8, hold=1)
    scripted = functions(task)[3]
    ended = []
    for act in (rest, lambda state, i: scripted(state)):
        reset, step, _, _ = functions(task)
        state = reset(jax.random.split(jax.random.key(0), N))
        end = np.full(N, 900)
        for i in range(900):
            state = step(state, act(state, i))
            end = np.where(np.asarray(state.terminated) & (end == 900), i, end)
        ended.append(end)
    assert (ended[0] == 60).all()  # as soon as the press begins
    assert (ended[1] > 200).all() and (ended[1] < 900).all()
    height = task._press_height(60 + 120)
    np.testing.assert_allclose(height, 0.8 - 0.05 * 2)
