"""What a run was trained with, part by part: `history.yaml` in its folder.

A run has a part for each time that it was begun or gone on with. An entry is written when the
part begins to train, so that a refused one leaves no trace.
"""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import yaml

from jaxrl import __version__
from jaxrl.files import write_text
from jaxrl.options import flatten

HISTORY = "history.yaml"


def record(folder: Path, step: int, changed: dict[str, list[Any]]) -> None:
    """Adds an entry for the part that begins now.

    Args:
      folder: of the run.
      step: control steps that have been trained before it.
      changed: "dotted.key" -> [value before, value now], against the part before.

    Raises:
      UserError: it cannot be written.
    """
    path = folder / HISTORY
    try:
        before = path.read_text() if path.exists() else ""
    except (OSError, ValueError):  # nothing that is needed to train
        before = ""
    entry: dict[str, Any] = {
        "from_step": step,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(),
        "commit": commit(Path.cwd()) or commit(Path(__file__).parent),
        "jaxrl": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    if changed:
        entry["changed"] = changed
    write_text(path, before + yaml.safe_dump([entry], sort_keys=False, allow_unicode=True))


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ between two configurations, as `record` takes them; what only one of
    them has is None in the other."""
    old, new = flatten(before), flatten(now)
    keys = dict.fromkeys([*old, *new])
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def command() -> str:
    """The command line, to be typed again."""
    program, *arguments = sys.argv
    path = Path(program)
    start = [program]
    if path.name == "jaxrl":  # the console script
        start = ["jaxrl"]
    elif path.parent.name == "jaxrl" and path.suffix == ".py":
        start = ["python", "-m", f"jaxrl.{path.stem}"]
    return shlex.join([*start, *arguments])


def commit(folder: Path) -> str | None:
    """The git commit that a folder's files are of, with "-dirty" where some differ from it; None
    outside of a repository, or without git."""
    ask = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        answer = subprocess.run(ask, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
