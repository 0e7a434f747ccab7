"""The contract between a task and the training stack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.errors import UserError

if TYPE_CHECKING:
    from jaxrl.envs.curriculum import CurriculumConfig
    from jaxrl.envs.randomization import Randomization
    from jaxrl.envs.wrap import WrapConfig
    from jaxrl.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape, bounds and component names of an observation or action array.

    A discrete action is the index of one of `shape[0]` choices. An observation of three axes
    is an image [height, width, channels], of bytes ("uint8") or of numbers ("float32").
    """

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    names: tuple[str, ...] = ()
    discrete: bool = False
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        bounds = {name: x if math.isfinite(x) else None for name, x in self._bounds.items()}
        return dataclasses.asdict(self) | bounds

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArraySpec:
        """What `to_dict` was made of."""
        known = {name: x for name, x in values.items() if x is not None}
        return cls(**known | {"shape": tuple(known["shape"]), "names": tuple(known["names"])})

    @property
    def _bounds(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}

    @classmethod
    def of_parts(cls, parts: dict[str, int]) -> ArraySpec:
        """A vector of named parts, each of so many components: "speed", or "axis_0", "axis_1"."""
        names = tuple(
            part if size == 1 else f"{part}_{i}"
            for part, size in parts.items()
            for i in range(size)
        )
        return cls((len(names),), names=names)


class State(struct.PyTreeNode):
    """One world after `reset` or `step`.

    Attributes:
      physics: whatever the simulator carries from step to step.
      obs: array, or dictionary of arrays.
      reward: scalar, of the step that led here.
      terminated: scalar bool; the task has ended (a fall, a goal), never a time limit.
      metrics: scalars by name, the same names always. Over an episode, names that begin
        with "reward/" are summed; "success" and names that begin with "final/" keep
        their last value; all others are averaged.
      info: the task's own memory (commands, last action, random key).
    """

    physics: Any
    obs: Any
    reward: jax.Array
    terminated: jax.Array
    metrics: dict[str, jax.Array]
    info: Any


class Task:
    """A task. It simulates one world; `jax.vmap` makes it thousands.

    Derive a frozen dataclass from it, whose fields are the task's settings. The task counts no
    steps, knows no time limit and never resets itself: `jaxrl.envs.vector` does that for every
    task alike.

    A task must have (as a field, a class attribute or a property):

    * `episode_length`: time limit in control steps, applied by the vectoriser;
    * `control_dt`: seconds of a control step;
    * `action_spec`: an `ArraySpec` with bounds -1 and 1, or a discrete one;
    * `observation_parts`, the named parts of an observation that is one vector and their sizes,
      from which `observation_spec` and `observe` follow; or else `observation_spec` itself, an
      `ArraySpec` or a dictionary of them;
    * `reset` and `step`.

    Everything else has a default here, and may be replaced:

    * `presets`: training settings by device ("cpu", "gpu") and algorithm; those of
      `jaxrl.algos.defaults` where a task has none;
    * `eval_overrides`: settings of the task that differ when it is evaluated;
    * `curriculum`: how the task grows harder (`jaxrl.envs.curriculum`); `reset` then takes the
      level too;
    * `randomizations`: what differs between the worlds' models (`jaxrl.envs.randomization`);
    * `success_criterion`: in words, what the metric "success" means;
    * `baselines`, `render`, `simulators` and `on`, `runtime`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    eval_overrides: ClassVar[dict[str, Any]] = {}
    simulators: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # as properties, so that a subclass may have fields or properties

        @property
        def episode_length(self) -> int | None: ...
        @property
        def control_dt(self) -> float: ...
        @property
        def action_spec(self) -> ArraySpec: ...
        @property
        def observation_parts(self) -> dict[str, int]: ...
        @property
        def curriculum(self) -> CurriculumConfig | None: ...
        @property
        def randomizations(self) -> tuple[Randomization, ...]: ...
        @property
        def success_criterion(self) -> str | None: ...

    else:
        curriculum = None
        randomizations = ()
        success_criterion = None

    @classmethod
    def missing(cls) -> list[str]:
        """Names of what a task must have and this class has not."""
        own: Any = cls
        fields = {field.name for field in dataclasses.fields(own)}

        def has(name: str) -> bool:
            return name in fields or getattr(cls, name, None) is not getattr(Task, name, None)

        required = ("episode_length", "control_dt", "action_spec", "reset", "step")
        missing = [name for name in required if not has(name)]
        if not (has("observation_parts") or has("observation_spec")):
            missing.append("observation_parts")
        return missing

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        """Of the vector that `observe` makes."""
        return ArraySpec.of_parts(self.observation_parts)

    def observe(self, **parts: jax.Array) -> jax.Array:
        """[O] the parts of an observation side by side, in the order of `observation_parts`.

        Args:
          parts: each with as many components as `observation_parts` says.

        Raises:
          UserError: a part that is missing, not declared, or of another size.
        """
        declared = self.observation_parts
        if wrong := sorted(parts.keys() ^ declared.keys()):
            kind = "is not declared" if wrong[0] in parts else "is missing"
            raise UserError(
                f"{type(self).__name__}.observe: the part {wrong[0]!r} {kind} (observation_parts "
                f"has: {', '.join(declared)})"
            )
        rows = []
        for name, size in declared.items():
            row = jnp.ravel(parts[name])
            if row.size != size:
                raise UserError(
                    f"{type(self).__name__}.observe: the part {name!r} has {row.size} components, "
                    f"but observation_parts says {size}"
                )
            rows.append(row)
        return jnp.concatenate(rows)

    def reset(self, key: jax.Array, *level: Any) -> State:
        """A fresh random start; a task with a curriculum takes its level too."""
        raise NotImplementedError

    def step(self, state: State, action: jax.Array) -> State:
        """One control step under an action [A] in [-1, 1], or under the index of a choice."""
        raise NotImplementedError

    # -- what a task may have besides ------------------------------------------------------

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Scripted controllers by name, State -> action."""
        return {}

    def on(self, simulator: str) -> Task:
        """The same task in another of its `simulators`, to judge policies in.

        Raises:
          UserError: the task does not know it.
        """
        raise UserError(f"--on: {type(self).__name__} cannot be played in {simulator!r}")

    @property
    def can_render(self) -> bool:
        """Whether there can be pictures of the task."""
        return type(self).render is not Task.render

    def render(self, states: Any, stride: int) -> np.ndarray:
        """[F, H, W, 3] uint8 pictures of every `stride`-th of the physics states [T, ...].

        Raises:
          UserError: the task cannot be drawn.
        """
        raise UserError(f"{type(self).__name__} cannot be drawn: it has no render()")

    # -- where its worlds live -----------------------------------------------------------

    @property
    def unwrapped(self) -> Task:
        """The task without what `Wrapped` has put around it."""
        return self

    def runtime(self, wrap: WrapConfig | None = None) -> Runtime:
        """What steps its worlds, for training, evaluation and videos; compiled by default.

        Args:
          wrap: delay, noise and history that lie between the task and a policy.
        """
        from jaxrl.envs.wrap import Wrapped
        from jaxrl.runtime.compiled import CompiledRuntime

        return CompiledRuntime(self if wrap is None else Wrapped(self, wrap))
