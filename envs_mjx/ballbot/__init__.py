"""Ballbot: a body that balances and drives on a ball turned by three omniwheels."""

from envs_mjx.ballbot.task import Ballbot

__all__ = ["Ballbot"]
