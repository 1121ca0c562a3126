"""The command line: `main` parses, one file per group of commands does."""

from mwuf_dist.cli.main import main

__all__ = ["main"]
