"""The command line as `python -m anysat`."""

import sys

from anysat.cli import run

if __name__ == "__main__":
    sys.exit(run())
