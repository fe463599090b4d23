"""`python -m gossamer` is the `gossamer` command; `torchrun -m gossamer train ...` runs it in several processes."""

import sys

from gossamer.cli import main

if __name__ == "__main__":
    sys.exit(main())
