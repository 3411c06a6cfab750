"""Runs `python -m jspec.train`."""

from jspec.console.commands import leave
from jspec.train.command.cli import main

if __name__ == "__main__":
    leave(main(owns_process=True))
