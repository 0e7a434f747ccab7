"""Four bar robots and two spheres that build structures."""

from envs_mjx.structures.task import StructureCrush, StructureHeight

__all__ = ["StructureCrush", "StructureHeight"]
