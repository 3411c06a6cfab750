"""`python -m jspec.plan`."""

from jspec.console.commands import leave
from jspec.plan.cli import main

if __name__ == "__main__":
    leave(main(owns_process=True))
