"""gym-aloha's insertion: two ViperX arms put a peg into a socket, in C MuJoCo."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from jaxrl.errors import UserError

ARM = 6  # joints of an arm; its gripper follows them


def _published() -> type:
    """gym-aloha's environment class.

    Raises:
      UserError: gym-aloha is not installed; the message names the commands that install it.
    """
    try:
        _forget_old_names()
        from gym_aloha.env import AlohaEnv
    except ImportError as error:
        # gym-aloha requires an older MuJoCo than this project, but also runs with ours.
        raise UserError(
            f"this environment needs gym-aloha ({error}): pip install 'jaxrl[aloha]' && "
            "pip install --no-deps gym-aloha==0.1.5"
        ) from error
    return AlohaEnv


def _forget_old_names() -> None:
    """Removes from dm_control the fields of MuJoCo's structs that newer versions do not have."""
    import mujoco
    from dm_control.mujoco.wrapper.mjbindings import sizes

    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for struct, instance in (("mjmodel", model), ("mjdata", mujoco.MjData(model))):
        fields = sizes.array_sizes[struct]
        for name in [name for name in fields if not hasattr(instance, name)]:
            del fields[name]


class AlohaInsertion(gym.Env[np.ndarray, np.ndarray]):
    """gym-aloha's insertion task with numeric observations and a wider action box.

    The published action box is [-1, 1], but actions are joint positions, and the elbows start
    at 1.16 rad, which is outside of this box. Here the box has the joints' ranges.

    Action [14]: for the left arm and then the right one, joint positions 6 (rad) and the
    gripper's opening 1 (0 closed, 1 open). 50 Hz.

    Observation [42]: joint positions 14 and velocities 14 (rad, rad/s; grippers as shares of
    their opening), position 3 (m) and quaternion 4 (w first) of peg and socket.

    Reward, as published: the stage. 1: both grippers touch their object; 2: and both objects
    are off the table; 3: peg and socket touch, off the table; 4: the peg touches the pin inside
    the socket, whether held or not. Stage 4 ends the episode; the time limit is 300 steps.

    info: `is_success`, `stage`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}
    success_criterion = "the peg touches the pin inside the socket (stage 4)"

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode: got {render_mode!r}, must be None or 'rgb_array'")
        self.render_mode = render_mode
        self._aloha = _published()("insertion", obs_type="pixels_agent_pos")
        self._physics = self._aloha._env.physics
        # The published observation renders three pictures in each step.
        self._aloha._env.task.get_observation = self._numeric_observation
        ranges = self._physics.model.actuator_ctrlrange
        arms = [np.vstack([ranges[first : first + ARM], [0.0, 1.0]]) for first in (0, ARM + 2)]
        low, high = np.concatenate(arms).T
        self.action_space = Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = Box(-np.inf, np.inf, (42,), np.float64)

    def _numeric_observation(self, physics: Any) -> dict[str, Any]:
        task = self._aloha._env.task
        parts = [task.get_qpos(physics), task.get_qvel(physics), task.get_env_state(physics)]
        return {"images": {"top": np.zeros(0)}, "qpos": np.concatenate(parts)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts with the arms at home; peg and socket anywhere on their halves of the table."""
        super().reset(seed=seed)
        obs, info = self._aloha.reset(seed=int(self.np_random.integers(2**31)))
        return obs["agent_pos"], info | {"stage": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; `action` [14] is clipped to the ranges."""
        action = np.clip(np.asarray(action, float), self.action_space.low, self.action_space.high)
        obs, reward, terminated, _, info = self._aloha.step(action)
        success = bool(info["is_success"])
        return (
            obs["agent_pos"],
            float(reward),
            bool(terminated),
            False,
            {"is_success": success, "stage": int(reward)},
        )

    def render(self) -> np.ndarray | None:
        """The picture from above, uint8 [480, 640, 3]; None unless `render_mode` is rgb_array."""
        return self._aloha.render() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._aloha._env.close()
