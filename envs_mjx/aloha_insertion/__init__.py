"""Two ViperX arms: grasp a peg and a socket, and join them in the air."""

from envs_mjx.aloha_insertion.task import AlohaInsertion

__all__ = ["AlohaInsertion"]
