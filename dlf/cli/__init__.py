"""The command line."""

from dlf.cli.commands import app, main

__all__ = ["app", "main"]
