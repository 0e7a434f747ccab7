"""The history of a run, `history.yaml` in its folder: settings, versions and device of each part.

The first part begins with the start of the run, each further part with a resume. An entry is
written when training begins, so that a refused start or resume leaves no entry.
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
      folder: folder of the run.
      step: control steps that were trained before this part.
      changed: settings that differ from the previous part: "dotted.key" -> [old value, new value].

    Raises:
      UserError: the file cannot be written.
    """
    path = folder / HISTORY
    try:
        before = path.read_text() if path.exists() else ""
    except (OSError, ValueError):  # training does not need it
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


def differences(
    before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any] | None = None
) -> dict[str, list[Any]]:
    """Settings that differ between two configurations, as `record` takes them; a setting that one
    of them does not have counts as None there.

    Args:
      before: the earlier configuration.
      now: the later one.
      defaults: the default values of settings, by dotted key. A setting that is not in `before`,
        since the run was begun by an earlier version, had its default there.
    """
    new = flatten(now)
    known = {key: value for key, value in (defaults or {}).items() if key in new}
    old = known | flatten(before)
    keys = dict.fromkeys([*old, *new])
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def command() -> str:
    """The command line of this process, in a form that can be typed again."""
    program, *arguments = sys.argv
    path = Path(program)
    start = [program]
    if path.name == "jaxrl":  # the console script
        start = ["jaxrl"]
    elif path.parent.name == "jaxrl" and path.name == "__main__.py":
        start = ["python", "-m", "jaxrl"]
    elif path.parent.name == "jaxrl" and path.suffix == ".py":
        start = ["python", "-m", f"jaxrl.{path.stem}"]
    return shlex.join([*start, *arguments])


def commit(folder: Path) -> str | None:
    """The git commit of a folder, with "-dirty" if files differ from it; None outside of a
    repository, or without git."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        result = subprocess.run(describe, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
