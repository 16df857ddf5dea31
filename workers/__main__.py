"""``python -m wscluster.workers --link-fd N``: one worker, started by the primary; ``--check-fd N``: see `check`."""

from __future__ import annotations

import argparse
import sys

from wscluster.workers import check
from wscluster.workers.boot import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="wscluster.workers", description="Started by the primary, not by hand.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--link-fd", type=int, help="Serve what the primary hands over this link.")
    what.add_argument("--check-fd", type=int, help="Only say there what the target is.")
    arguments = parser.parse_args()
    return run(arguments.link_fd) if arguments.check_fd is None else check.run(arguments.check_fd)


if __name__ == "__main__":
    sys.exit(main())
