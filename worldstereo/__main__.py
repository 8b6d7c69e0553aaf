"""`python -m worldstereo`: see `worldstereo.cli`."""

import sys

from worldstereo.cli import main

if __name__ == "__main__":
    sys.exit(main())
