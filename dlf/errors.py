"""The mistakes a user can make while loading, as exceptions.

All of them are ``ValueError``; a folder or file that is not there is Python's own ``FileNotFoundError``. Every message
names the thing that is wrong and what to do about it.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "TextTooLongError", "TokenizerMismatchError", "UnknownArchitectureError"]


class CheckpointError(ValueError):
    """A checkpoint's files are damaged, incomplete or hold something that dlf does not run."""


class UnknownArchitectureError(CheckpointError):
    """A checkpoint's architecture is none of those that dlf runs."""


class TextTooLongError(ValueError):
    """A text has more tokens than it may; it was not encoded to its end.

    Parameters
    ----------
    tokens
        How many it has at least.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the text has at least {tokens} tokens; shorten it")
        self.tokens = tokens


class TokenizerMismatchError(ValueError):
    """Two models that are to be fused give one token id different meanings."""
