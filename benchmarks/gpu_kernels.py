"""Counts the GPU kernels that a training iteration launches; needs no GPU.

    python benchmarks/gpu_kernels.py --json kernels.json
    python benchmarks/gpu_kernels.py --presets ballbot:ppo ballbot:sac kuka_pick_place:ppo

With a few thousand worlds, kernel launches limit the speed of MJX, and XLA's CUDA compiler runs
without a GPU. So this compiles one PPO iteration of jaxrl and of Brax for an H100 and counts the
kernels in the compiled programs, multiplied by the trip counts of the loops around them. Brax is
counted twice: with unchanged MJX (stock), and with jaxrl's physics. `--presets` compiles an
iteration of tasks and algorithms with their presets for a GPU instead, stepped by MJX.

Needs `pip install "jax[cuda13]" brax==0.14.2` in addition to this project. The figures are
counts, not times: a library call counts as one kernel.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import brax_adapter
import jax
from brax.training.agents.ppo import train as brax_ppo
from jax.experimental import topologies

from envs_mjx.ballbot import Ballbot
from jaxrl.algos import PPOConfig
from jaxrl.algos.base import Algorithm
from jaxrl.algos.ppo import PPO
from jaxrl.config import resolve
from jaxrl.nets import NetworkConfig
from jaxrl.platform import compile_for
from jaxrl.runs import make_algorithm
from jaxrl.runtime.compiled import iterate

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Instructions of a compiled program that launch no kernel.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
CALLS = {"while", "conditional", "call"}


# -- compiled programs -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a compiled program."""

    opcode: str
    text: str

    def named(self, attribute: str) -> list[str]:
        """Names of the computations in an attribute."""
        match = re.search(rf"\b{attribute}=(?:{{([^}}]*)}}|%?([\w.\-]+))", self.text)
        if not match:
            return []
        return [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]

    @property
    def trips(self) -> int | None:
        """Trip count of a loop; None if it is not known."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.text)
        return int(match[1]) if match else None

    @property
    def frame(self) -> int | None:
        match = re.search(r"stack_frame_id=(\d+)", self.text)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel, how often it is launched, and where it comes from.

    Attributes:
      instruction: the instruction that launches the kernel.
      count: number of launches in one run of the program.
      loop: index of the loop of the entry computation that contains it; None outside of loops.
    """

    instruction: Instruction
    count: int
    loop: int | None


class Program:
    """A compiled program as text.

    Args:
      text: result of `compiled.as_text()`.
      open_trips: trip count to assume for loops without a known one.
    """

    def __init__(self, text: str, open_trips: int):
        self.text, self.open_trips = text, open_trips
        self.entry = ""
        self.computations: dict[str, list[Instruction]] = {}
        self._parse()

    def _parse(self) -> None:
        name = ""
        for line in self.text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                name = head[2]
                self.computations[name] = []
                self.entry = name if head[1] else self.entry
            elif name and " = " in line:
                self.computations[name].append(Instruction(_opcode(line), line))

    @cached_property
    def launches(self) -> list[Launch]:
        return list(self._walk(self.entry, 1, None))

    @cached_property
    def host_waits(self) -> int:
        """How often the host waits for a loop's condition from the GPU."""
        waits = 0

        def visit(name: str, times: int) -> None:
            nonlocal waits
            for each in self.computations[name]:
                if each.opcode == "while":
                    trips = each.trips or self.open_trips
                    waits += 0 if each.trips else times * (trips + 1)
                    visit(each.named("body")[0], times * trips)

        visit(self.entry, 1)
        return waits

    def _walk(self, name: str, times: int, loop: int | None) -> Iterator[Launch]:
        for i, each in enumerate(self.computations[name]):
            here = i if loop is None and each.opcode == "while" else loop
            if each.opcode == "while":
                trips = each.trips or self.open_trips
                yield from self._walk(each.named("body")[0], times * trips, here)
                if each.trips is None:
                    yield from self._walk(each.named("condition")[0], times * (trips + 1), here)
            elif each.opcode == "conditional":
                branches = [list(self._walk(b, times, here)) for b in self._branches(each)]
                yield from max(branches, key=lambda launches: sum(x.count for x in launches))
            elif each.opcode == "call":
                yield from self._walk(each.named("to_apply")[0], times, here)
            elif each.opcode not in FREE and not each.opcode.endswith("-done"):
                yield Launch(each, times, here)

    def _branches(self, each: Instruction) -> list[str]:
        names = each.named("branch_computations")
        return names or each.named("true_computation") + each.named("false_computation")

    @cached_property
    def _frames(self) -> dict[int, tuple[str, ...]]:
        """Source files on the stack of each frame, outermost first."""
        tables: dict[str, dict[int, str]] = {}
        title = ""
        for line in self.text.splitlines():
            row = re.match(r"(\d+) (.*)", line)
            if row:
                tables.setdefault(title, {})[int(row[1])] = row[2]
            elif re.fullmatch(r"[A-Z]\w+", line):
                title = line
            elif line.startswith(("%", "ENTRY")):
                break
        return {i: tuple(_stack(tables, i)) for i in tables.get("StackFrames", {})}

    def files(self, launch: Launch) -> tuple[str, ...]:
        """Source files on the stack where the kernel's root was traced, outermost first."""
        return self._frames.get(launch.instruction.frame or 0, ())


def _opcode(line: str) -> str:
    """`%x = f32[2]{0} add(...)` -> "add"; the type may be a tuple."""
    right_side = line.split(" = ", 1)[1]
    depth = 0
    for i, character in enumerate(right_side):
        depth += (character in "([{") - (character in ")]}")
        if character == " " and depth == 0:
            return right_side[i + 1 :].split("(", 1)[0]
    return ""


def _stack(tables: dict[str, dict[int, str]], frame: int) -> list[str]:
    files: list[str] = []
    while frame:
        fields = dict(re.findall(r"(\w+)=(\d+)", tables["StackFrames"][frame]))
        location = tables["FileLocations"][int(fields["file_location_id"])]
        file_id = int(re.search(r"file_name_id=(\d+)", location)[1])
        files.insert(0, tables["FileNames"][file_id].strip('"'))
        parent = int(fields.get("parent_frame_id", 0))
        frame = parent if parent != frame else 0
    return files


# -- compiling --------------------------------------------------------------------------------


def h100() -> jax.sharding.NamedSharding:
    """Placement on an H100, which need not be present."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    mesh = jax.sharding.Mesh(topology.devices, (brax_ppo._PMAP_AXIS_NAME,))
    return jax.sharding.NamedSharding(mesh, jax.P())


def compile_on(placement: jax.sharding.NamedSharding, function: Any, *args: Any) -> Any:
    """Compiles a function that may reuse the buffers of its first two arguments."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), args
    )
    traced = jax.jit(function, donate_argnums=tuple(range(len(args)))[:2]).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def compile_iteration(placement: Any, algorithm: Algorithm) -> Any:
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with compile_for("gpu"):
        return compile_on(placement, functools.partial(iterate, algorithm), state)


def compile_jaxrl(placement: Any, config: PPOConfig, task: Ballbot, num_envs: int) -> Any:
    ppo = PPO(config, task, task.runtime().worlds(num_envs), 1000)
    return compile_iteration(placement, ppo)


def compile_preset(placement: Any, name: str) -> Any:
    """Compiles an iteration with a preset; `name` is TASK:ALGORITHM."""
    task, _, algo = name.partition(":")
    with compile_for("gpu"):
        settings = {"env": {"name": task, "engine": "mjx"}, "algo": algo, "devices": 1}
        return compile_iteration(placement, make_algorithm(resolve(settings, platform="gpu")))


class _Found(Exception):
    """Carries Brax's training step, and its arguments, out of Brax's `train`."""


def compile_brax(placement: Any, config: PPOConfig, task: Ballbot, num_envs: int) -> Any:
    """Compiles one training step of Brax's PPO.

    `brax.training.agents.ppo.train` builds the step internally; it is intercepted where Brax
    passes it to `jax.pmap`.
    """

    def pmap(function, axis_name, **_):
        def call(*args):
            if function.__name__ == "training_epoch":
                raise _Found(function, args)
            return jax.jit(jax.vmap(function, axis_name=axis_name))(*args)

        return call

    settings = brax_adapter.brax_settings(config, task, num_envs)
    try:
        with mock.patch.object(jax, "pmap", pmap):
            brax_adapter.train_brax(
                settings,
                timesteps=num_envs * config.num_steps,
                chunks=1,
                seed=0,
                after=lambda *_: None,
            )
    except _Found as found:
        function, args = found.args
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), args)
    step = jax.shard_map(
        lambda train, envs, key: function(train, envs, key),
        mesh=placement.mesh,
        in_specs=jax.P(),
        out_specs=jax.P(),
        check_vma=False,
    )
    with compile_for("gpu"):
        return compile_on(placement, step, *shapes)


# -- report -----------------------------------------------------------------------------------


def _in_mjx(program: Program, launch: Launch) -> bool:
    return any("mujoco/mjx" in file for file in program.files(launch))


def count(compiled: Any, open_trips: int) -> dict[str, Any]:
    """Numbers of kernels in a compiled iteration, in all and by part.

    The rollout consists of the loops of the entry computation that contain MJX; all other kernels
    (resets, advantages, updates) count as learning.
    """
    program = Program(compiled.as_text(), open_trips)
    launches = program.launches
    rolling = {x.loop for x in launches if x.loop is not None and _in_mjx(program, x)}
    rollout = sum(x.count for x in launches if x.loop in rolling)
    total = sum(x.count for x in launches)
    memory = compiled.memory_analysis()
    return {
        "kernels": total,
        "rollout": rollout,
        "learning": total - rollout,
        "host_waits": program.host_waits,
        "memory_mib": {
            part: round(getattr(memory, f"{part}_size_in_bytes") / 2**20, 1)
            for part in ("argument", "output", "alias", "temp", "generated_code")
        },
        "by_file": _by(lambda x: _last(program.files(x)), launches),
        "by_opcode": _by(lambda x: x.instruction.opcode, launches),
    }


def _by(key: Any, launches: list[Launch]) -> dict[str, int]:
    table: collections.Counter[str] = collections.Counter()
    for each in launches:
        table[key(each)] += each.count
    return dict(table.most_common(16))


def _last(files: tuple[str, ...]) -> str:
    """The innermost file, with its last two folders."""
    return "/".join(Path(files[-1]).parts[-3:]) if files else "(none)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--num-envs", type=int, default=4096, help="number of worlds")
    add("--steps", type=int, default=16, help="control steps per world in an iteration")
    add("--minibatches", type=int, default=4)
    add("--epochs", type=int, default=4)
    add("--hidden", type=int, nargs="+", default=[64, 64], help="widths of both networks")
    add("--drive", default="no_slip", help="physics of the ballbot's wheels")
    add("--presets", nargs="+", default=[], help="TASK:ALGORITHM ..., instead of the comparison")
    add("--only", help="compile only the program with this name")
    add("--histogram", action="store_true", help="print which files the kernels come from")
    add("--text", type=Path, help="folder to save the compiled programs in")
    add("--json", type=Path, help="file for the counts")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    hidden = tuple(args.hidden)
    config = PPOConfig(
        num_steps=args.steps,
        num_epochs=args.epochs,
        num_minibatches=args.minibatches,
        network=NetworkConfig(policy_hidden=hidden, value_hidden=hidden),
    )
    task, placement = Ballbot(drive=args.drive, engine="mjx"), h100()
    open_trips = int(task.physics.model.opt.iterations)
    programs: dict[str, tuple[Any, ...]] = {  # functions that compile, with their arguments
        "jaxrl": (compile_jaxrl, config, task, args.num_envs),
        "brax": (compile_brax, config, brax_adapter.stock(task), args.num_envs),
        "brax, jaxrl's physics": (compile_brax, config, task, args.num_envs),
    }
    if args.presets:
        programs = {name: (compile_preset, name) for name in args.presets}
    results = {}
    print(f"{'':24}{'kernels':>9}{'rollout':>9}{'learning':>9}{'waits':>7}{'temp MiB':>10}")
    for name, (build, *rest) in programs.items():
        if args.only not in (None, name):
            continue
        begun = time.perf_counter()
        compiled = build(placement, *rest)
        seconds = time.perf_counter() - begun
        if args.text:
            args.text.mkdir(parents=True, exist_ok=True)
            (args.text / f"{name.replace(' ', '_')}.txt").write_text(compiled.as_text())
        row = results[name] = count(compiled, open_trips) | {"compile_seconds": seconds}
        ratio = ""
        if "jaxrl" in results:
            row["ratio"] = results["jaxrl"]["kernels"] / row["kernels"]
            ratio = f"   jaxrl/this {row['ratio']:.3f}"
        print(
            f"{name:24}{row['kernels']:9}{row['rollout']:9}{row['learning']:9}"
            f"{row['host_waits']:7}{row['memory_mib']['temp']:10}{ratio}",
            flush=True,
        )
        if args.histogram:
            for table in ("by_file", "by_opcode"):
                print("".join(f"    {n:7} {key}\n" for key, n in row[table].items()))
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k not in ("json", "text")}
        report = {"target": "H100", "jax": jax.__version__, "settings": settings}
        args.json.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
