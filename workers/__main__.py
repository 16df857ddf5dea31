"""``python -m wscluster.workers --link-fd N``: one worker, started by the primary."""

from __future__ import annotations

import argparse
import sys

from wscluster.workers.worker import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="wscluster.workers", description="Started by the primary, not by hand.")
    parser.add_argument("--link-fd", type=int, required=True)
    return run(parser.parse_args().link_fd)


if __name__ == "__main__":
    sys.exit(main())
