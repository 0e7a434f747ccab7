"""`python -m jaxrl.plot RUN ...`: a picture of the learning curves of one or more runs."""

from __future__ import annotations

from pathlib import Path

from jaxrl import cli
from jaxrl.errors import UserError
from jaxrl.logs import columns

USAGE = """\
usage: python -m jaxrl.plot RUN [RUN ...] [--keys KEY,KEY,...] [--x steps|seconds] [--out FILE]

Draws learning curves of one or more runs or populations: a panel for each key. Runs with
the same settings, except for the seed, are one group: thin lines are its members, the thick
line is their interquartile mean, and the area its 95 % interval.

  --keys KEYS  what to draw: return, success, length, or columns of progress.csv, such as
               eval/success_rate, final/distance or approx_kl. Without the part before the
               slash, both training and evaluations are drawn. Default: return,success
  --x          horizontal axis: steps (the default) or seconds
  --out FILE   picture that is written, .png, .svg or .pdf. Default: the first of ./plot.png,
               ./plot-2.png, ... that does not exist
"""
AXES = {"steps": columns.STEPS, "seconds": columns.ELAPSED}


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"keys": True, "x": True, "out": True, "help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if not positionals:
        raise UserError("expected the folder of at least one run (see --help)")
    if (x := flags.get("x", "steps")) not in AXES:
        raise UserError(f"--x: got {x!r}, expected {' or '.join(AXES)}")
    from jaxrl import storage
    from jaxrl.reporting import plot

    keys = [key.strip() for key in flags["keys"].split(",")] if "keys" in flags else plot.KEYS
    out = Path(flags["out"]) if flags.get("out") else None
    runs = [storage.local(path) for path in positionals]
    print(f"written to {plot.write(runs, keys, x=AXES[x], out=out)}")
    return 0
