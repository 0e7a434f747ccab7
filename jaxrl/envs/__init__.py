"""The task contract, parallel worlds, and the registry of tasks."""

from jaxrl.envs.curriculum import CurriculumConfig
from jaxrl.envs.registry import env_class, names, register
from jaxrl.envs.task import ArraySpec, State, Task
from jaxrl.envs.vector import Timestep, Vector, VectorState, select
from jaxrl.envs.wrap import WrapConfig, Wrapped

__all__ = [
    "ArraySpec",
    "CurriculumConfig",
    "State",
    "Task",
    "Timestep",
    "Vector",
    "VectorState",
    "WrapConfig",
    "Wrapped",
    "env_class",
    "names",
    "register",
    "select",
]
