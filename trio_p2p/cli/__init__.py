"""The command line, `trio-p2p`."""

from trio_p2p.cli.app import main

__all__ = ["main"]
