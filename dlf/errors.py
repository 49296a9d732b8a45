"""The mistakes a user can make while loading, as exceptions.

All of them are ``ValueError``; a folder or file that is not there is Python's own ``FileNotFoundError``. Every message
names the thing that is wrong and what to do about it.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "TokenizerMismatchError", "UnknownArchitectureError"]


class CheckpointError(ValueError):
    """A checkpoint's files are damaged, incomplete or hold something that dlf does not run."""


class UnknownArchitectureError(CheckpointError):
    """A checkpoint's architecture is none of those that dlf runs."""


class TokenizerMismatchError(ValueError):
    """Two models that are to be fused give one token id different meanings."""
