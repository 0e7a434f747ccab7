"""`python -m jaxrl.plot`: a picture of learning curves."""

from jaxrl import cli
from jaxrl.commands.plot import main

if __name__ == "__main__":
    cli.run(main)
