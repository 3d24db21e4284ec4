"""The command line: ``slos-serve``."""

from common.cli.app import app

__all__ = ["app"]
