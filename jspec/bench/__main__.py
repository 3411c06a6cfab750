"""`python -m jspec.bench`."""

import sys

from jspec.bench.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
