"""`python -m jaxrl COMMAND ...`: the same commands as the console script `jaxrl`."""

from jaxrl.commands import main

if __name__ == "__main__":
    main()
