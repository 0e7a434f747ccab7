"""`python -m jaxrl.check`: look at a task."""

from jaxrl import cli
from jaxrl.commands.check import main

if __name__ == "__main__":
    cli.run(main)
