"""`python -m jaxrl.report`: a page on runs."""

from jaxrl import cli
from jaxrl.commands.report import main

if __name__ == "__main__":
    cli.run(main)
