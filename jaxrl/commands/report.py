"""`python -m jaxrl.report RUN ...`: write an HTML page about one or more runs."""

from __future__ import annotations

from pathlib import Path

from jaxrl import cli
from jaxrl.errors import UserError

USAGE = """\
usage: python -m jaxrl.report RUN [RUN ...] [--out FILE]

Writes an HTML page about one or more runs: a single file that can be read offline.

For one run, the page shows its results, learning curves, evaluations, hardware,
configuration and newest video.

For a population, or several runs or populations, it shows their learning curves in the
same plots, grouped by all settings except the seed, with the interquartile mean of each
group and its 95 % interval, and tables of the groups, the members and the settings that
differ.

  --out FILE   file that the page is written to. Default for one run: RUN/report.html.
               Default for several runs, or for a run that has no folder checkpoints/:
               the first of ./report.html, ./report-2.html, ... that does not exist
"""


def main(argv: list[str]) -> int:
    positionals, flags, _ = cli.parse(argv, {"out": True, "help": False})
    if flags.get("help"):
        print(USAGE)
        return 0
    if not positionals:
        raise UserError("expected the folder of at least one run (see --help)")
    from jaxrl import storage
    from jaxrl.reporting import run_page

    out = Path(flags["out"]) if flags.get("out") else None
    print(f"written to {run_page.write([storage.local(p) for p in positionals], out)}")
    return 0
