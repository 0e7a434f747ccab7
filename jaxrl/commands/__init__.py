"""The commands: `python -m jaxrl.train`, `jaxrl train` or `python -m jaxrl train`, and so on."""

from __future__ import annotations

import importlib

from jaxrl import cli
from jaxrl.errors import UserError

COMMANDS = {
    "train": "train a policy, or continue a run",
    "evaluate": "evaluate a trained policy, or the baselines of a task",
    "report": "write an HTML page about one or more runs",
    "plot": "draw learning curves of one or more runs",
    "collect": "save the images that a task observes",
    "pretrain": "train an image encoder before a policy",
    "pipeline": "train several sessions in sequence",
    "tune": "search for good settings",
    "mirror": "bring the mirror of a run or a pipeline up to date",
    "check": "check a task of your own before training on it",
    "completion": "print a script for tab completion in bash or zsh",
}


def main() -> None:
    """Entry point of the console script `jaxrl` and of `python -m jaxrl`."""
    cli.run(_dispatch)


def _dispatch(argv: list[str]) -> int:
    """Runs the command that the first argument names; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxrl COMMAND ...\n")
        for name, description in COMMANDS.items():
            print(f"  {name:12}{description}")
        print("\njaxrl COMMAND --help shows the options of a command.")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r} (known: {', '.join(COMMANDS)})")
    return importlib.import_module(f"jaxrl.commands.{argv[0]}").main(argv[1:])
