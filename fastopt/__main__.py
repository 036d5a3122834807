"""Internal. ``python -m fastopt``: the command line."""

import sys

from fastopt_command import main

if __name__ == "__main__":
    sys.exit(main())
