"""`python -m jspec.certify`."""

import sys

from jspec.certify.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
