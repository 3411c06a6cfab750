"""`python -m jspec.infer`."""

from jspec.console.commands import leave
from jspec.infer.command.cli import main

if __name__ == "__main__":
    leave(main(owns_process=True))
