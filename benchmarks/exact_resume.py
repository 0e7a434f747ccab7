"""Whether training gives the same bits again: in another process, and after a resume.

  python benchmarks/exact_resume.py --env ballbot --env.engine mjx ...

Three processes train with the settings given: `whole` and `again` from start to end, `resumed`
from the checkpoint in the middle of `whole` to the end. Printed, as JSON: for `again` and
`resumed`, how many arrays of the last checkpoint (parameters, optimiser, worlds, keys, ...) have
other fingerprints than those of `whole`; 0 of `resumed` is an exact resume.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxrl.checkpoint import Checkpointer, read_meta


def main(settings: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, again, resumed = (Path(folder) / name for name in ("whole", "again", "resumed"))
        train([*settings, "--out", str(whole)])
        *_, middle, end = Checkpointer(whole / "checkpoints").steps()
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / "checkpoints" / str(end))
        train(["--resume", str(resumed)])
        train([*settings, "--out", str(again)])
        expected, *others = (arrays(x / "checkpoints" / str(end)) for x in (whole, again, resumed))
    differ = [sum(expected[key] != found[key] for key in expected) for found in others]
    result = {"settings": " ".join(settings), "resumed_at": middle, "steps": end}
    result |= {"arrays": len(expected), "again": differ[0], "resumed": differ[1]}
    print(json.dumps(result), flush=True)


def train(words: list[str]) -> None:
    command = [sys.executable, "-m", "jaxrl.train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def arrays(checkpoint: Path) -> dict[str, str]:
    """Fingerprints of the arrays of a checkpoint, by item and path."""
    items = read_meta(checkpoint)["arrays"].items()
    return {f"{item}/{row['path']}": row["fingerprint"] for item, rows in items for row in rows}


if __name__ == "__main__":
    main(sys.argv[1:])
