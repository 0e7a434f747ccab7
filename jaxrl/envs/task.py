"""The contract between a task and the training stack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
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
        """Returns a dictionary that can be written as JSON."""
        bounds = {name: x if math.isfinite(x) else None for name, x in self._bounds.items()}
        return dataclasses.asdict(self) | bounds

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArraySpec:
        """Returns the spec from the result of `to_dict`."""
        known = {name: x for name, x in values.items() if x is not None}
        return cls(**known | {"shape": tuple(known["shape"]), "names": tuple(known["names"])})

    @property
    def _bounds(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}

    @property
    def is_image(self) -> bool:
        """Whether the array is an image [height, width, channels]."""
        return len(self.shape) == 3

    @classmethod
    def of_parts(cls, parts: dict[str, int]) -> ArraySpec:
        """Returns the spec of a vector of named parts, given the number of components of each;
        component names are "speed" for one component, "axis_0", "axis_1" for several."""
        names = tuple(
            part if size == 1 else f"{part}_{i}"
            for part, size in parts.items()
            for i in range(size)
        )
        return cls((len(names),), names=names)


class State(struct.PyTreeNode):
    """One world after `reset` or `step`.

    Attributes:
      physics: the simulator's data that is carried from step to step.
      obs: array, or dictionary of arrays.
      reward: scalar reward of the last step.
      terminated: scalar bool; the task has ended the episode (a fall, a goal), never true
        for a time limit.
      metrics: scalars by name, always with the same names. Over an episode, names that begin
        with "reward/" are summed; "success" and names that begin with "final/" keep
        their last value; all others are averaged.
      info: the task's own data (commands, last action, random key).
    """

    physics: Any
    obs: Any
    reward: jax.Array
    terminated: jax.Array
    metrics: dict[str, jax.Array]
    info: Any


class Task:
    """Base class of tasks. A task simulates one world; `jax.vmap` turns it into thousands.

    Derive a frozen dataclass from it; the fields are the task's settings. A task does not count
    steps, does not handle the time limit and never resets itself: `jaxrl.envs.vector` does this
    for all tasks.

    A task must have (as a field, a class attribute or a property):

    * `episode_length`: time limit in control steps, applied by the vectoriser;
    * `control_dt`: seconds of one control step;
    * `action_spec`: an `ArraySpec` with bounds -1 and 1, or a discrete one;
    * `observation_parts`: if the observation is one vector, its named parts and their sizes,
      from which `observation_spec` and `observe` follow; or else `observation_spec` itself, an
      `ArraySpec` or a dictionary of them;
    * `reset` and `step`.

    Everything else has a default here, which a task may override:

    * `presets`: training settings by device ("cpu", "gpu") and algorithm; without a preset,
      those of `jaxrl.algos.defaults` are used;
    * `eval_overrides`: settings of the task that are different in evaluations;
    * `constants`: arrays that belong to a policy, such as those of a pretrained encoder;
    * `sense_every` and `sense`: sensors that are slower than control, such as cameras;
    * `curriculum`: how the task becomes harder (`jaxrl.envs.curriculum`); `reset` then takes the
      level too;
    * `randomizations`: how the worlds' models differ (`jaxrl.envs.randomization`);
    * `success_criterion`: text that explains the metric "success";
    * `baselines`, `render`, `simulators` and `on`, `runtime`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    eval_overrides: ClassVar[dict[str, Any]] = {}
    simulators: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # properties here, so that a subclass may have fields or properties

        @property
        def episode_length(self) -> int | None: ...
        @property
        def control_dt(self) -> float: ...
        @property
        def action_spec(self) -> ArraySpec: ...
        @property
        def observation_parts(self) -> dict[str, int]: ...
        @property
        def constants(self) -> Mapping[str, Any]: ...
        @property
        def constants_setting(self) -> str: ...
        @property
        def sense_every(self) -> int: ...
        @property
        def curriculum(self) -> CurriculumConfig | None: ...
        @property
        def randomizations(self) -> tuple[Randomization, ...]: ...
        @property
        def success_criterion(self) -> str | None: ...

    else:
        constants: ClassVar[Mapping[str, Any]] = MappingProxyType({})
        constants_setting = ""
        sense_every = 0
        curriculum = None
        randomizations = ()
        success_criterion = None

    @classmethod
    def missing(cls) -> list[str]:
        """Returns the names of required attributes that this class does not have."""
        task_class: Any = cls
        fields = {field.name for field in dataclasses.fields(task_class)}

        def has(name: str) -> bool:
            return name in fields or getattr(cls, name, None) is not getattr(Task, name, None)

        required = ("episode_length", "control_dt", "action_spec", "reset", "step")
        missing = [name for name in required if not has(name)]
        if not (has("observation_parts") or has("observation_spec")):
            missing.append("observation_parts")
        return missing

    @property
    def observation_spec(self) -> ArraySpec | dict[str, ArraySpec]:
        """Spec of the vector that `observe` returns."""
        return ArraySpec.of_parts(self.observation_parts)

    def observe(self, **parts: jax.Array) -> jax.Array:
        """Concatenates the parts of an observation in the order of `observation_parts`, [O].

        Args:
          parts: parts by name, with the sizes that `observation_parts` declares.

        Raises:
          UserError: a part is missing, not declared, or of another size.
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
                    f"but observation_parts declares {size}"
                )
            rows.append(row)
        return jnp.concatenate(rows)

    def reset(self, key: jax.Array, *level: Any) -> State:
        """Returns a new random start; a task with a curriculum takes the level too."""
        raise NotImplementedError

    def step(self, state: State, action: jax.Array) -> State:
        """Simulates one control step, with an action [A] in [-1, 1] or the index of a choice."""
        raise NotImplementedError

    # -- optional methods ------------------------------------------------------------------

    def with_constants(self, arrays: Mapping[str, Any]) -> Task:
        """Returns the same task with these `constants`, which come from a checkpoint, instead of
        those that the setting `constants_setting` names."""
        raise NotImplementedError

    def sense(self, state: State) -> State:
        """Returns the state with new values from the slow sensors in its observation.

        It is called after every `sense_every`-th control step (0: never), at the same time for all
        worlds; in the steps between, `step` leaves these values as they are. `reset` has to give
        the first values itself.
        """
        return state

    def baselines(self) -> dict[str, Callable[[State], jax.Array]]:
        """Returns scripted controllers by name, functions State -> action."""
        return {}

    def on(self, simulator: str) -> Task:
        """Returns the same task in another of its `simulators`, to evaluate policies there.

        Raises:
          UserError: the task does not support this simulator.
        """
        raise UserError(f"--on: {type(self).__name__} cannot run in the simulator {simulator!r}")

    @property
    def engine_name(self) -> str | None:
        """Name of the physics engine in use, for a task that has a choice."""
        return None

    def check_engine(self) -> None:
        """Raises a UserError if the engine could not simulate all that was asked of it since the
        last call; it is called after each chunk of training, evaluation and video."""

    @property
    def can_render(self) -> bool:
        """Whether the task can be rendered."""
        return type(self).render is not Task.render

    def render(self, states: Any, stride: int) -> np.ndarray:
        """Renders every `stride`-th of the physics states [T, ...] as images [F, H, W, 3] uint8.

        Raises:
          UserError: the task cannot be rendered.
        """
        raise UserError(f"{type(self).__name__} cannot be rendered: it has no method render")

    # -- runtime -------------------------------------------------------------------------

    @property
    def unwrapped(self) -> Task:
        """The task without the delay, noise and history of `Wrapped`."""
        return self

    def runtime(self, wrap: WrapConfig | None = None) -> Runtime:
        """Returns the runtime that steps the task's worlds in training, evaluation and videos; by
        default the runtime of compiled tasks.

        Args:
          wrap: settings of delay, noise and history between the task and a policy; None: none.
        """
        from jaxrl.envs.wrap import Wrapped
        from jaxrl.runtime.compiled import CompiledRuntime

        return CompiledRuntime(self if wrap is None else Wrapped(self, wrap))
