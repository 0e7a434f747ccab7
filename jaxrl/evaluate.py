"""`python -m jaxrl.evaluate`: judge a trained policy, or a task's baselines."""

from jaxrl import cli
from jaxrl.commands.evaluate import main

if __name__ == "__main__":
    cli.run(main)
