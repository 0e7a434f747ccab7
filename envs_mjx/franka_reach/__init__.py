"""Franka Panda: bring the gripper to a point and hold it there."""

from envs_mjx.franka_reach.task import FrankaReach

__all__ = ["FrankaReach"]
