"""`python -m jaxrl.pipeline`: train several sessions in sequence."""

from jaxrl import cli
from jaxrl.commands.pipeline import main

if __name__ == "__main__":
    cli.run(main)
