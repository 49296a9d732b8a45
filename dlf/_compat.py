"""Checks the torch that is there before the extension is loaded."""

from __future__ import annotations


def check_torch() -> None:
    """Import torch first: the extension links the libraries that it loads."""
    import torch  # noqa: F401
