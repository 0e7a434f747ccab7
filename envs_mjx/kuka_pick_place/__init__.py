"""Kuka iiwa with a parallel gripper: fetch a cube and bring it to a target."""

from envs_mjx.kuka_pick_place.task import KukaPickPlace

__all__ = ["KukaPickPlace"]
