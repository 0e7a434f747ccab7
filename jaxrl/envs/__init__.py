"""Environment contract, vectorisation and registry."""

from jaxrl.envs.curriculum import CurriculumConfig
from jaxrl.envs.env import ArraySpec, Env, State
from jaxrl.envs.registry import env_class, names, register
from jaxrl.envs.vector import Timestep, Vector, VectorState, select
from jaxrl.envs.wrap import WrapConfig, Wrapped

__all__ = [
    "ArraySpec",
    "CurriculumConfig",
    "Env",
    "State",
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
