"""`python -m jspec.train`."""

import sys

from jspec.train.command.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
