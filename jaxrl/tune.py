"""`python -m jaxrl.tune`: search for good settings."""

from jaxrl import cli
from jaxrl.commands.tune import main

if __name__ == "__main__":
    cli.run(main)
