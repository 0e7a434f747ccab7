"""What a run will need, before it begins: devices, memory and compile time (`--dry_run`)."""

from __future__ import annotations

import time
from typing import Any

from jaxrl import platform
from jaxrl.config import RunConfig
from jaxrl.population import Population
from jaxrl.runs import hardware


def plan(config: RunConfig) -> dict[str, Any]:
    """Makes the run, without its arrays, and compiles its programs, which are then in the cache.

    Raises:
      UserError: the run cannot be trained, for example because it does not fit into the memory.

    Returns:
      what will run where; bytes on each device by part of the run; the seconds that compilation
      took; and about the largest number of worlds whose training fits into the memory that is
      free now (None if this is not known).
    """
    population = Population(config)
    algo, train = population.algo, config.train
    shapes = population.shapes()
    parts = population.memory
    report: dict[str, Any] = {
        "task": config.task,
        "algo": train.algo,
        "runs": len(population),
        "engine": config.env.engine_name,
        "hardware": hardware(),
        "devices": algo.devices,
        "worlds": train.num_envs,
        "iterations": algo.total_iterations,
        "batch_size": algo.batch_size,
        "bytes": parts,
        "free_bytes": platform.free_bytes(),
        "program_bytes": None,
        "compile_seconds": None,
        "max_worlds": None,
    }
    begun = time.monotonic()
    program = population.runtime.training(population).compile(shapes)
    if program is None:  # its worlds are not part of a program
        return report
    if config.eval_every:
        population.evaluator(config).compile(shapes.policy)
    report["compile_seconds"] = time.monotonic() - begun
    memory = program.memory_analysis()
    if memory is not None:
        own = memory.output_size_in_bytes - memory.alias_size_in_bytes
        need = memory.argument_size_in_bytes + memory.temp_size_in_bytes + max(own, 0)
        report["program_bytes"] = need
        if report["free_bytes"] is not None:
            fixed = parts["networks"] + parts.get("replay", 0)
            each = max(need - fixed, 1) / algo.num_envs
            most = int((report["free_bytes"] - fixed) / each) * algo.devices
            report["max_worlds"] = max(most, 0)
    return report


def describe(report: dict[str, Any]) -> str:
    """The plan as text."""
    machine, devices = report["hardware"], report["devices"]
    runs = f", {report['runs']} runs" if report["runs"] > 1 else ""
    split = f", {report['worlds'] // devices:,} on each" if devices > 1 else ""
    lines = {
        "run": f"{report['task']} with {report['algo']}{runs}, {report['worlds']:,} worlds, "
        f"{report['iterations']:,} iterations of {report['batch_size']:,} control steps",
        "engine": report["engine"] or "the task's own",
        "devices": f"{devices} x {machine['device']}{split} ({machine['cpu_cores']} cores of "
        f"{machine['cpu']})",
        "memory": f"at least {platform.sizes(report['bytes'])}",
    }
    if report["program_bytes"] is not None:
        lines["program"] = f"needs {platform.size(report['program_bytes'])} on a device"
    if report["free_bytes"] is not None:
        lines["free"] = platform.size(report["free_bytes"])
    if report["max_worlds"] is not None:
        lines["fits"] = f"num_envs up to about {report['max_worlds']:,}"
    if report["compile_seconds"] is not None:
        seconds = report["compile_seconds"]
        lines["compile"] = f"{seconds:.1f} s; the programs are in the cache now"
    return "\n".join(f"{name:<9}{text}" for name, text in lines.items())
