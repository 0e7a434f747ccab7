"""`python -m jaxrl.train`: train a policy."""

from jaxrl import cli
from jaxrl.commands.train import main

if __name__ == "__main__":
    cli.run(main)
