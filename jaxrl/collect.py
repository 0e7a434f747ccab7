"""`python -m jaxrl.collect`: save the images that a task observes."""

from jaxrl import cli
from jaxrl.commands.collect import main

if __name__ == "__main__":
    cli.run(main)
