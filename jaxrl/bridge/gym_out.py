"""jaxrl's tasks as Gymnasium environments: `gymnasium.make("jaxrl/Ballbot-v0")` for one world,
`gymnasium.make_vec("jaxrl/Ballbot-v0", num_envs=1024)` for many in one compiled program.

Keyword arguments are the task's settings: `gymnasium.make("jaxrl/Ballbot-v0", max_speed=0.3)`.
Arguments and results are NumPy arrays; environments of one task share their compiled program.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

GROUP = "jaxrl.envs"


def register_all() -> None:
    """Registers every installed task with Gymnasium as `jaxrl/<Name>-v0`."""
    for entry in metadata.entry_points(group=GROUP):
        gymnasium.register(
            gym_id(entry.name),
            entry_point=f"{__name__}:GymEnv",
            vector_entry_point=f"{__name__}:GymVectorEnv",
            kwargs={"task": entry.name},
        )


def gym_id(task: str) -> str:
    """The Gymnasium id of a task: "franka_reach" -> "jaxrl/FrankaReach-v0"."""
    return f"jaxrl/{''.join(word.capitalize() for word in task.split('_'))}-v0"


def space(spec: Any) -> gymnasium.Space:
    """The Gymnasium space of an `ArraySpec`, or of a dictionary of them."""
    if isinstance(spec, dict):
        return gymnasium.spaces.Dict({name: space(part) for name, part in spec.items()})
    if spec.discrete:
        return gymnasium.spaces.Discrete(spec.shape[0])
    if spec.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, spec.shape, np.uint8)
    return gymnasium.spaces.Box(spec.low, spec.high, spec.shape, np.float32)


def key_of(seed: int) -> Any:
    """A PRNG key made from all bits of a seed of any size."""
    import jax

    key, high_bits = jax.random.key(seed % 2**32), seed >> 32
    while high_bits:
        key, high_bits = jax.random.fold_in(key, high_bits % 2**32), high_bits >> 32
    return key


@functools.cache
def _single(env: Any) -> tuple[Any, Any]:
    """Compiled reset and step of one world of a task."""
    import jax
    import jax.numpy as jnp

    from jaxrl.envs.vector import all_finite

    def step(state, action, senses):
        new = env.step(state, action)
        if env.sense_every:
            new = jax.lax.cond(senses, env.sense, lambda same: same, new)
        finite = all_finite(jax.tree.map(lambda x: x[None], (new.physics, new.obs, new.reward)), 1)[
            0
        ]
        # A world that diverged terminates with its last finite observation.
        out = (
            jax.tree.map(lambda a, b: jnp.where(finite, a, b), new.obs, state.obs),
            jnp.where(finite, new.reward, 0.0),
            new.terminated.astype(bool) | ~finite,
            jax.tree.map(lambda x: jnp.where(finite, x, 0.0), new.metrics),
            ~finite,
        )
        return new, out

    return jax.jit(env.reset), jax.jit(step)


class GymEnv(gymnasium.Env):
    """One world of a task.

    `info` has the task's metrics of the step; `is_success`, if the task has success; and
    `nonfinite`: whether the simulation diverged (which terminates the episode).

    Args:
      task: name of the task.
      render_mode: "rgb_array", "human" (a window; needs the extra `window`) or None.
      settings: settings of the task.

    Raises:
      UserError: the task or a setting is unknown.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"]}

    def __init__(self, task: str, render_mode: str | None = None, **settings: Any):
        from jaxrl.config import make_env

        self.task = make_env(task, settings)
        self.metadata = self.metadata | {"render_fps": round(1 / self.task.control_dt)}
        self.render_mode = render_mode
        self.observation_space = space(self.task.observation_spec)
        self.action_space = space(self.task.action_spec)
        self._reset, self._step = _single(self.task)
        self._key: Any = None
        self._state: Any = None
        self._steps = 0
        self._window: _Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A new random start; a seed makes this and all later starts repeatable."""
        import jax

        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = key_of(int(self.np_random.integers(2**32) if seed is None else seed))
        self._key, start = jax.random.split(self._key)
        self._state, self._steps = self._reset(start), 0
        if self.render_mode == "human":
            self.render()
        return _numpy(self._state.obs), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step; an episode is truncated at the time limit."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        action = np.asarray(action, self.action_space.dtype)
        self._steps += 1
        senses = self._steps % (self.task.sense_every or 1) == 0
        self._state, out = self._step(self._state, action, senses)
        obs, reward, terminated, metrics, nonfinite = _numpy(out)
        terminated = bool(terminated)
        limit = self.task.episode_length
        truncated = limit is not None and self._steps >= limit and not terminated
        info: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        info["nonfinite"] = bool(nonfinite)
        if "success" in metrics:
            info["is_success"] = bool(metrics["success"] > 0)
        if self.render_mode == "human":
            self.render()
        return obs, float(reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """Returns a picture [H, W, 3] uint8 for "rgb_array"; shows it in a window for "human"."""
        if self.render_mode is None or self._state is None:
            return None
        frame = _picture(self.task, self._state.physics)
        if self.render_mode == "rgb_array":
            return frame
        self._window = self._window or _Window(frame, str(type(self.task).__name__))
        self._window.show(frame, self.metadata["render_fps"])
        return None

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None


class GymVectorEnv(VectorEnv):
    """Many worlds of a task, stepped in one compiled program.

    When an episode ends, `infos` has `statistics` (its return, its length and the task's
    statistics) and `is_success`; with same-step resets also `final_obs` and `final_info`.

    Args:
      task: name of the task.
      num_envs: number of worlds.
      render_mode: "rgb_array" or None.
      autoreset_mode: a mode of Gymnasium: "NextStep", "SameStep" or "Disabled".
      settings: settings of the task.

    Raises:
      UserError: the task or a setting is unknown.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ):
        from jaxrl.config import make_env

        self.task = make_env(task, settings)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = self.metadata | {
            "render_fps": round(1 / self.task.control_dt),
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = space(self.task.observation_spec)
        self.single_action_space = space(self.task.action_spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._init, self._step, self._renew, self._statistics = _make_worlds(self.task, num_envs)
        self._key: Any = None
        self._state: Any = None
        self._obs: Any = None  # the observations that were returned last
        self._ended = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """New random starts of all worlds, or of those in `options["reset_mask"]`."""
        import jax

        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        mask = (options or {}).get("reset_mask")
        if seed is not None or self._key is None:
            self._key = key_of(int(self.np_random.integers(2**32) if seed is None else seed))
        self._key, start = jax.random.split(self._key)
        if mask is None or self._state is None:
            mask = np.ones(self.num_envs, bool)
        if self._state is None:
            self._state = self._init(start)
        else:
            self._state = self._renew(self._state, start, mask)
        obs = _numpy(self._state.obs)
        self._obs = obs if mask.all() else _choose(mask, obs, self._obs)
        self._ended = self._ended & ~mask
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of all worlds; actions [N, A], or indices [N]."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise gymnasium.error.ResetNeeded(
                f"the episodes of worlds {np.flatnonzero(self._ended).tolist()} have ended: call "
                'reset(options={"reset_mask": ...}) for them'
            )
        skipped = self._ended  # next-step resets: these worlds show their start, and do not step
        actions = np.asarray(actions, self.action_space.dtype)
        self._state, step = self._step(self._state, actions, skipped)
        obs, step = _numpy(self._state.obs), _numpy(step)
        done = step.terminated | step.truncated
        infos = self._infos(step, done)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            if done.any():
                infos |= {
                    "final_obs": _rows(step.final_obs, done),
                    "_final_obs": done,
                    "final_info": self._infos(step, done),
                    "_final_info": done,
                }
        else:
            obs = _choose(done, step.final_obs, obs)
            self._obs, self._ended = obs, done
        rewards = step.reward.astype(np.float64)
        return obs, rewards, step.terminated, step.truncated, infos

    def _infos(self, step: Any, done: np.ndarray) -> dict[str, Any]:
        infos: dict[str, Any] = {"nonfinite": step.nonfinite, "_nonfinite": step.nonfinite}
        if done.any():
            columns = dict(zip(self._statistics, step.episode.T, strict=True))
            infos |= {"statistics": columns, "_statistics": done}
            if "success" in columns:
                infos |= {"is_success": (columns["success"] > 0) & done, "_is_success": done}
        return infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture [H, W, 3] uint8 of each world."""
        if self.render_mode is None or self._state is None:
            return None
        import jax

        physics = self._state.worlds.physics
        return tuple(
            _picture(self.task, jax.tree.map(lambda x, i=i: x[i], physics))
            for i in range(self.num_envs)
        )

    def close_extras(self, **kwargs: Any) -> None:
        self._state = None


@functools.cache
def _make_worlds(env: Any, num_envs: int) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """Compiled functions that start, step and reset `num_envs` worlds of a task, and the names of
    the statistics of an episode."""
    import jax
    import jax.numpy as jnp

    from jaxrl.envs import Vector, select

    vector = Vector(env, num_envs)

    def keep(mask, old, new):
        """`new`, except that worlds in the mask [N] stay as in `old`."""
        per_world = ("worlds", "steps", "full_episode", "totals")
        fields = {name: select(mask, getattr(old, name), getattr(new, name)) for name in per_world}
        return new.replace(**fields)

    def init(key):
        return vector.init(key, stagger=False)

    def step(envs, action, skipped):
        new, step = vector.step(envs, action)
        no_step = jax.tree.map(jnp.zeros_like, step).replace(final_obs=envs.obs)
        return keep(skipped, envs, new), select(skipped, no_step, step)

    def renew(envs, key, mask):
        return keep(~mask, envs, init(key))

    return jax.jit(init), jax.jit(step), jax.jit(renew), vector.statistics


def _numpy(tree: Any) -> Any:
    """The tree with its arrays copied to NumPy."""
    import jax

    return jax.tree.map(lambda x: np.array(x), tree)


def _choose(mask: np.ndarray, yes: Any, no: Any) -> Any:
    import jax

    def pick(a, b):
        return np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)


def _rows(tree: Any, mask: np.ndarray) -> np.ndarray:
    """Array [N] of objects: each world's observation where the mask is set, else None."""
    import jax

    rows = np.full(len(mask), None, dtype=object)
    for i in np.flatnonzero(mask):
        rows[i] = jax.tree.map(lambda x, i=i: x[i], tree)
    return rows


def _picture(task: Any, physics: Any) -> np.ndarray:
    """A picture [H, W, 3] uint8 of one world."""
    import jax

    if not task.can_render:
        raise gymnasium.error.UnsupportedMode(
            f"{type(task).__name__} cannot be drawn: it has no render()"
        )
    return task.render(jax.tree.map(lambda x: np.asarray(x)[None], physics), 1)[0]


class _Window:
    """A window that shows pictures at the frame rate of the task."""

    def __init__(self, frame: np.ndarray, title: str):
        try:
            import pygame
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled(
                "render_mode=\"human\" needs a window: pip install 'jaxrl[window]'"
            ) from error
        self._pygame = pygame
        pygame.display.init()
        pygame.display.set_caption(title)
        self._screen = pygame.display.set_mode(frame.shape[1::-1])
        self._clock = pygame.time.Clock()

    def show(self, frame: np.ndarray, fps: int) -> None:
        surface = self._pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(surface, (0, 0))
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        self._pygame.display.quit()
