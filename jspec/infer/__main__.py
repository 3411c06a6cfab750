"""`python -m jspec.infer`."""

import sys

from jspec.infer.command.cli import main

if __name__ == "__main__":
    sys.exit(main(owns_process=True))
