"""Checkpoints on disk. The only module that knows Orbax.

A checkpoint holds items: `policy` (network parameters and observation statistics), `train`
(the rest of the training state), `replay` (past control steps, if the algorithm keeps them and
they are saved) and `meta` (configuration, counters, and for every array its path, type, shape
and fingerprint). Arrays are plain numbers; nothing is ever unpickled.

Before any array is read, the list of arrays is compared with the expected one: a checkpoint of
another network or task is refused. After reading, every fingerprint is checked: a checkpoint
with a flipped bit is skipped, and the previous one is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxrl.devices import is_key
from jaxrl.errors import UserError
from jaxrl.files import sync

# Orbax logs full tracebacks of exceptions that it also raises; the messages here are one line.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_unraisable = sys.unraisablehook


def _quiet_unraisable(args: Any) -> None:
    """Hides errors about a closed event loop: if several reads or writes fail at once, the later
    failures are reported to an event loop that is closed already."""
    if not (isinstance(args.exc_value, RuntimeError) and "loop is closed" in str(args.exc_value)):
        _unraisable(args)


sys.unraisablehook = _quiet_unraisable

META = "meta"
CHUNK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: items by name, the caller's metadata, and the checkpoint's step."""

    items: dict[str, Any]
    meta: dict[str, Any]
    step: int


class Checkpointer:
    """Saves and restores checkpoints in one folder.

    Args:
      folder: folder of the checkpoints; made when the first one is saved.
      keep: number of newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in increasing order."""
        if not self.folder.is_dir():
            return []
        inside = self.folder.iterdir()
        return sorted(int(p.name) for p in inside if p.name.isdecimal() and p.is_dir())

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts saving in the background; waits only for the previous save.

        Args:
          step: names the checkpoint; an existing checkpoint of this step is left unchanged.
          items: trees of arrays by item name.
          meta: metadata, plain values for JSON.

        Raises:
          UserError: this or the previous checkpoint could not be written.
        """
        try:
            if self._manager is None:
                self._manager = self._open()
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._sync()
            if step in self._manager.all_steps():
                return
            arrays = {name: _to_arrays(tree) for name, tree in items.items()}
            body = {
                "step": step,
                "arrays": {name: _describe(a, fingerprints=True) for name, a in arrays.items()},
                "meta": meta,
            }
            saves = {
                name: ocp.args.PyTreeSave(
                    _numbered(a),
                    save_args=jax.tree.map(
                        lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), _numbered(a)
                    ),
                )
                for name, a in arrays.items()
            }
            sealed = ocp.args.JsonSave({"body": body, "digest": _digest(body)})
            if not self._manager.save(step, args=ocp.args.Composite(**saves, **{META: sealed})):
                raise RuntimeError("a later checkpoint exists already")
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Waits until all saves are on disk.

        Raises:
          UserError: the last save could not be written.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._sync()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed("of the last save", error) from error

    def _sync(self) -> None:
        """Waits until the newest checkpoint is on the disk itself. Older ones are deleted later, so
        that a power cut always leaves a complete checkpoint."""
        for step in self.steps()[-1:]:
            folder = self.folder / str(step)
            for path in [*folder.rglob("*"), folder, self.folder]:
                sync(path)

    def restore(
        self, expected: dict[str, Any], *, optional: tuple[str, ...] = (), warn=print
    ) -> Restored:
        """Restores the newest undamaged checkpoint.

        Args:
          expected: trees of arrays or shapes by item name; only these items are read.
          optional: names of items that may be missing in a checkpoint.
          warn: called with a message about each damaged checkpoint that is skipped.

        Raises:
          UserError: there is no undamaged checkpoint, or it is of another network or task.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore_step(step, expected, optional=optional)
            except DamagedError as error:
                warn(
                    f"warning: checkpoint {self.folder / str(step)} is damaged ({error}); "
                    "trying the previous one"
                )
        raise UserError(f"{self.folder}: no undamaged checkpoint to restore")

    def restore_step(
        self, step: int, expected: dict[str, Any], *, optional: tuple[str, ...] = ()
    ) -> Restored:
        """Restores the checkpoint of one step; arguments as of `restore`.

        Raises:
          DamagedError: the checkpoint differs from what was saved, or cannot be read.
          UserError: it is of another network or task.
        """
        body = read_meta(self.folder / str(step))
        items = {}
        for name, tree in expected.items():
            stored = body["arrays"].get(name)
            if stored is None and name in optional:
                continue
            if stored is None:
                raise UserError(f"{self.folder / str(step)}: has no item {name!r} to restore")
            _compare(stored, _describe(_to_shapes(tree)), self.folder / str(step), name)
            items[name] = _from_arrays(self._read(step, name, stored), tree)
        return Restored(items=items, meta=body["meta"], step=step)

    def arrays(self, step: int, item: str) -> dict[str, np.ndarray]:
        """The arrays of an item, by their paths; empty if the checkpoint has no such item.

        Raises:
          DamagedError: the checkpoint differs from what was saved, or cannot be read.
        """
        stored = read_meta(self.folder / str(step))["arrays"].get(item, [])
        arrays = self._read(step, item, stored) if stored else []
        return {row["path"]: array for row, array in zip(stored, arrays, strict=True)}

    def discard_after(self, step: int, destination: Path | None = None) -> None:
        """Moves newer checkpoints away, so that their steps can be saved again.

        Args:
          step: checkpoints of later steps are moved.
          destination: folder that they are moved into; None: the folder "damaged" next to the
            folder of the checkpoints.

        Raises:
          UserError: a checkpoint cannot be moved.
        """
        for newer in self.steps():
            if newer > step:
                target = self.folder.parent / "damaged" / f"{self.folder.name}-{newer}"
                if destination is not None:
                    target = destination / str(newer)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
                    (self.folder / str(newer)).rename(target)
                except OSError as error:
                    raise UserError(
                        f"{self.folder / str(newer)} cannot be moved to {target}: {error.strerror}"
                    ) from error

    def _open(self) -> ocp.CheckpointManager:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(self._keep),
            enable_async_checkpointing=True,
            create=False,
            multiprocessing_options=_alone(),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _read(self, step: int, name: str, stored: list) -> list[np.ndarray]:
        """Reads an item's arrays, and checks their fingerprints."""
        folder = self.folder / str(step) / name
        blank = [np.empty(row["shape"], row["dtype"]) for row in stored]
        try:
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
            with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
                read = reader.restore(
                    folder,
                    args=ocp.args.PyTreeRestore(
                        _numbered(blank),
                        restore_args=jax.tree.map(
                            lambda x: ocp.RestoreArgs(restore_type=np.ndarray), _numbered(blank)
                        ),
                    ),
                )
        except (MemoryError, PermissionError) as error:  # the file itself may be undamaged
            raise UserError(f"{folder}: cannot be read: {error!r}") from error
        except Exception as error:  # of many kinds, from Orbax and TensorStore
            raise DamagedError(f"{name}: {str(error).splitlines()[0][:120]}") from error
        arrays = [np.asarray(read[f"{i:05d}"]) if a.size else a for i, a in enumerate(blank)]
        for row, array in zip(stored, arrays, strict=True):
            if _fingerprint(array) != row["fingerprint"]:
                raise DamagedError(f"{name}{row['path']}: contents differ from what was saved")
        return arrays

    def _failed(self, step: Any, error: Exception) -> UserError:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if "No space left" in str(error):
            reason = "No space left on device"
        return UserError(
            f"checkpoint {step} could not be written to {self.folder}: {reason[:200]} (earlier "
            "checkpoints are unchanged; free space or repair the folder, then use --resume)"
        )


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options with which Orbax does not wait for the other processes of a run."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process-{here}"
    )


class DamagedError(Exception):
    """A checkpoint cannot be read, or differs from what was saved."""


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads {"step", "arrays", "meta"} of the checkpoint in `folder`.

    Raises:
      DamagedError: the metadata are missing or changed.
    """
    try:
        sealed = json.loads((folder / META / META_FILE).read_text())
        body = sealed["body"]
        intact = sealed["digest"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{META}: {error}") from error
    if not intact:
        raise DamagedError(f"{META}: contents differ from what was saved")
    if folder.name.isdecimal() and body.get("step", int(folder.name)) != int(folder.name):
        raise DamagedError(f"it was saved at step {body['step']}: the folder was renamed")
    return body


META_FILE = "metadata"  # Orbax's name for the file of a JSON item


def _to_arrays(tree: Any) -> list[tuple[str, np.ndarray]]:
    """Paths and host arrays of the leaves; PRNG keys as their raw words."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    plain = [(p, jax.random.key_data(x) if is_key(x) else x) for p, x in leaves]
    return [(jax.tree_util.keystr(p), np.array(x)) for p, x in jax.device_get(plain)]


def _to_shapes(tree: Any) -> list[tuple[str, Any]]:
    """As `_to_arrays`, but with shapes instead of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (
            jax.tree_util.keystr(p),
            jax.eval_shape(jax.random.key_data, x) if is_key(x) else x,
        )
        for p, x in leaves
    ]


def _from_arrays(arrays: list[np.ndarray], tree: Any) -> Any:
    """The arrays in the structure of `tree`; PRNG keys are made from their raw words."""
    leaves, structure = jax.tree.flatten(tree)
    made = [
        jax.random.wrap_key_data(jnp.asarray(a)) if is_key(leaf) else a
        for a, leaf in zip(arrays, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, jax.device_put(made))


def _numbered(arrays: list) -> dict[str, np.ndarray]:
    """Arrays by their number; empty arrays are left out, since Orbax refuses them."""
    values = [a[1] if isinstance(a, tuple) else a for a in arrays]
    return {f"{i:05d}": a for i, a in enumerate(values) if a.size}


def _describe(arrays: list[tuple[str, Any]], *, fingerprints: bool = False) -> list[dict]:
    """A row of `meta` for each array."""
    rows = []
    for path, array in arrays:
        row = {"path": path, "dtype": str(array.dtype), "shape": list(array.shape)}
        if fingerprints:
            row["fingerprint"] = _fingerprint(array)
        rows.append(row)
    return rows


def _compare(stored: list[dict], expected: list[dict], folder: Path, item: str) -> None:
    """Raises UserError with the arrays whose type or shape differs."""

    def shape(row: dict | None) -> str:
        return "missing" if row is None else f"{row['dtype']}{row['shape']}"

    old = {row["path"]: row for row in stored}
    new = {row["path"]: row for row in expected}
    differing = [
        f"{path}: saved {shape(old.get(path))}, expected {shape(new.get(path))}"
        for path in [*new, *(p for p in old if p not in new)]
        if shape(old.get(path)) != shape(new.get(path))
    ]
    if differing:
        others = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        cause = "network, task, number of worlds or number of steps"
        if item == "replay":
            cause = "buffer_size, storage or num_envs (--checkpoint.replay false refills it)"
        raise UserError(
            f"{folder} was saved with another {cause}: {'; '.join(differing[:3])}{others}"
        )


def _fingerprint(array: np.ndarray) -> str:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(flat, digest_size=8).hexdigest()


def _digest(body: dict) -> str:
    text = json.dumps(body, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
