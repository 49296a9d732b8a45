"""The mistakes a user can make while loading, as exceptions.

All of them are ``ValueError``; a folder or file that is not there is Python's own ``FileNotFoundError``. Every message
names the thing that is wrong and what to do about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = [
    "CheckpointError",
    "TextTooLongError",
    "TokenizerMismatchError",
    "UnknownArchitectureError",
    "is_out_of_memory",
    "out_of_memory_is_memory_error",
]


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever class a library gave it, says that memory or address space ran out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in said or "bad_alloc" in said or "os error 12" in said


@contextlib.contextmanager
def out_of_memory_is_memory_error(task: str) -> Iterator[None]:
    """Raise MemoryError where `task` runs out of memory; torch has a RuntimeError for that, as for much else."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or (isinstance(error, MemoryError) and str(error)):  # which says it already
            raise
        raise MemoryError(f"memory ran out while {task}; load smaller models, or smaller weights") from error
