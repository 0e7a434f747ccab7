"""The commands: `python -m jaxrl.train` or `jaxrl train`, and so on."""

from __future__ import annotations

import importlib

from jaxrl import cli
from jaxrl.errors import UserError

COMMANDS = {
    "train": "train a policy, or go on with a run",
    "evaluate": "judge a trained policy, or a task's baselines",
    "report": "write a page on runs",
    "check": "look at a task of your own",
    "completion": "print what makes a shell complete these commands (bash, zsh)",
}


def main() -> None:
    """The console script `jaxrl`."""
    cli.run(_dispatch)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxrl COMMAND ...\n")
        for name, what in COMMANDS.items():
            print(f"  {name:12}{what}")
        print("\njaxrl COMMAND --help says more of each.")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r} (known: {', '.join(COMMANDS)})")
    return importlib.import_module(f"jaxrl.commands.{argv[0]}").main(argv[1:])
