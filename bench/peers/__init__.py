"""The same work on other engines.

Each module has ``prepare``, which converts one checkpoint to what the engine reads, and ``load``, which returns a
`Peer`. Nothing here imports an engine before one of them is called, so that a process holds
only the engine that it measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable


class Peer(Protocol):
    """Models that are loaded and decode greedily."""

    weight_bytes: int
    """Bytes of weights that one token reads: everything except the embedding table, of which it reads one row."""

    settings: dict[str, Any]
    """What was chosen where the engine leaves a choice."""

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        """Decode without end: the first item comes after the prompt, each further one after a token of every model."""
        ...


@runtime_checkable
class Timed(Protocol):
    """Tokens of an engine with a thread of its own, which would decode ahead while others have their turn.

    It decodes when it is asked, and says itself how long each token took.
    """

    def timed(self, count: int) -> list[float]:
        """Seconds of each of so many further tokens."""
        ...
