"""`python -m jspec.checkpoints.fetch`."""

from jspec.checkpoints.fetch.cli import main
from jspec.console.commands import leave

if __name__ == "__main__":
    leave(main(owns_process=True))
