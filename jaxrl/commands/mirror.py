"""`python -m jaxrl.mirror`: bring the mirror of a run up to date."""

from __future__ import annotations

from pathlib import Path

from jaxrl import cli
from jaxrl.errors import UserError

USAGE = """\
usage: python -m jaxrl.mirror FOLDER LOCATION

Brings the mirror of a run or a pipeline up to date, as training does by itself with --storage
LOCATION. What is there already is not sent again.

  FOLDER     folder of the run or the pipeline
  LOCATION   a folder, or s3://bucket/prefix; the mirror is LOCATION/<name of FOLDER>
"""


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if len(positionals) != 2:
        raise UserError(f"expected FOLDER and LOCATION, got {len(positionals)} (see --help)")
    from jaxrl import storage

    folder = Path(positionals[0])
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    store = storage.open_store(storage.join(positionals[1], folder))
    if not storage.Mirror(folder, store).finish():
        return 1
    print(f"{store.place} is up to date")
    return 0
