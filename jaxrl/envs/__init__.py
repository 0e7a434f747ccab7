"""Environment contract, vectorisation and registry."""

from jaxrl.envs.env import ArraySpec, Env, State
from jaxrl.envs.registry import env_class, names, register
from jaxrl.envs.vector import Timestep, Vector, VectorState, select

__all__ = [
    "ArraySpec",
    "Env",
    "State",
    "Timestep",
    "Vector",
    "VectorState",
    "env_class",
    "names",
    "register",
    "select",
]
