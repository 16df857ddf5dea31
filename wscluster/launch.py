"""Starts the primary in this process: what the command line, and whoever serves from Python, go through."""

from __future__ import annotations

from wscluster.config import Config


def serve(config: Config) -> int:
    """Serve ``config.target`` until somebody stops it; returns the exit code.

    Raises:
        StartError: It could not start.
    """
    from wscluster.gateway.run import run

    return run(config)
