"""`python -m jaxrl.pretrain`: train an image encoder before a policy."""

from jaxrl import cli
from jaxrl.commands.pretrain import main

if __name__ == "__main__":
    cli.run(main)
