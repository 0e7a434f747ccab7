"""`python -m jaxrl.mirror`: bring the mirror of a run up to date."""

from jaxrl import cli
from jaxrl.commands.mirror import main

if __name__ == "__main__":
    cli.run(main)
