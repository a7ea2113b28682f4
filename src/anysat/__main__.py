"""`python -m anysat`: the command line."""

import sys

from anysat.cli import main

if __name__ == "__main__":
    sys.exit(main())
