"""``python -m wscluster`` is ``wscluster``."""

import sys

from wscluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
