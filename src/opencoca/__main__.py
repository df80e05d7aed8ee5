"""`python -m opencoca` is the `coca` command."""

import sys

from opencoca.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
