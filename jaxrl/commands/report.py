"""`python -m jaxrl.report RUN ...`: one HTML page that holds all there is to say of runs."""

from __future__ import annotations

from pathlib import Path

from jaxrl import cli
from jaxrl.errors import UserError

USAGE = """\
usage: python -m jaxrl.report RUN [RUN ...] [--out FILE]

One run: what came out, learning curves, evaluations, hardware, configuration and the
newest video, in one file that needs no network.

A population, or several runs (populations among them): their curves over each other,
grouped by all settings but the seed, with each group's interquartile mean and its 95 %
interval; tables of the groups, the members and the settings that differ.

  --out FILE   where the page goes (RUN/report.html; of several runs, or of one without
               checkpoints/, which came from elsewhere, the first of ./report.html,
               ./report-2.html, ... that is free)
"""


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"out": True, "help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if not positionals:
        raise UserError("expected the folder of a run, or of several (see --help)")
    from jaxrl.reporting import run_page

    out = Path(flags["out"]) if flags.get("out") else None
    print(f"written to {run_page.write([Path(p) for p in positionals], out)}")
    return 0
