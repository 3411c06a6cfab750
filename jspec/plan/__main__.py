"""`python -m jspec.plan`."""

import sys

from jspec.plan.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
