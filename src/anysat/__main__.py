"""`python -m anysat`: the command line."""

import sys

from anysat.cli import run

if __name__ == "__main__":
    sys.exit(run())
