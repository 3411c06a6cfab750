"""`python -m jspec.aot`."""

import sys

from jspec.aot.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
