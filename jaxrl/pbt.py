"""Population-based training: after each evaluation, the worst members of a population continue from
the best ones, with changed settings.

All members are in one program, so this is a choice of rows along the member axis of the training
state; nothing is compiled again, since the settings are traced numbers.

Source: Jaderberg et al. 2017, "Population based training of neural networks".
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.options import option, quote


@dataclasses.dataclass(frozen=True)
class PBTConfig:
    """Population-based training."""

    settings: tuple[str, ...] = option(
        (),
        "KEY=LOW:HIGH: settings that evolve, with their limits; each member begins with a random "
        "value of its own; empty: no population-based training",
    )
    share: float = option(
        0.25,
        "share of the members that are replaced after an evaluation",
        greater_than=0,
        maximum=0.5,
    )
    factor: float = option(
        1.25,
        "a setting that is taken over is multiplied or divided by this number",
        greater_than=1,
    )


class Evolution:
    """The evolution of the settings of a population.

    Args:
      config: its settings.
      algo: name of the algorithm.
      traced: names of the settings of the algorithm that can evolve.

    Raises:
      UserError: a setting cannot evolve.
    """

    def __init__(self, config: PBTConfig, algo: str, traced: Sequence[str]):
        self.config = config
        self.limits: dict[str, tuple[float, float]] = {}
        for item in config.settings:
            key, _, limits = item.partition("=")
            try:
                low, high = map(float, limits.split(":"))
            except ValueError:
                low, high = 0.0, 0.0
            name = key.removeprefix(f"{algo}.")
            if name not in traced or key == name or not 0 < low < high:
                known = ", ".join(f"{algo}.{each}" for each in traced)
                raise UserError(
                    f"pbt.settings: got {quote(item)}, expected KEY=LOW:HIGH with positive limits "
                    f"and one of {known}"
                )
            self.limits[name] = (low, high)

    def start(self, name: str, seed: int) -> float:
        """The value of a setting that a member begins with."""
        low, high = np.log(self.limits[name])
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return float(np.exp(draw.uniform(low, high)))

    def step(self, state: Any, scores: Sequence[float], seed: list[int]) -> tuple[Any, dict]:
        """The training state after the worst members have been replaced.

        Args:
          state: training state with the axis of M members.
          scores: [M] results of the members; NaN is the worst.
          seed: seed of the random numbers.

        Returns:
          the state; {member: member that it continues from}.
        """
        count = max(1, int(len(scores) * self.config.share))
        order = np.argsort(np.nan_to_num(np.array(scores), nan=-np.inf), kind="stable")
        draw = np.random.default_rng(seed)
        source = np.arange(len(scores))
        source[order[:count]] = draw.choice(order[-count:], count)
        moved = {int(i): int(source[i]) for i in order[:count]}
        hyper = dict(state.hyper)
        for name, (low, high) in self.limits.items():
            values = np.asarray(hyper[name])[source]
            changes = self.config.factor ** draw.choice([-1.0, 1.0], len(scores))
            values = np.where(source != np.arange(len(scores)), values * changes, values)
            hyper[name] = jnp.asarray(np.clip(values, low, high), jnp.float32)

        def taken(tree: Any) -> Any:
            # Counters that all members share have no axis of members.
            return jax.tree.map(lambda x: x[source] if jnp.ndim(x) else x, tree)

        scale = taken(state.return_scale).replace(running=state.return_scale.running)
        policy, learner = taken((state.policy, state.learner))
        return state.replace(policy=policy, learner=learner, return_scale=scale, hyper=hyper), moved
