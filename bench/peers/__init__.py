"""The same work on other engines.

Each module has ``prepare``, which converts a checkpoint to the engine's format, and ``load``, which returns a `Peer`.
Only these two import the engine, so a process holds only the engine that it measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable


class Peer(Protocol):
    """Loaded models that decode greedily."""

    weight_bytes: int
    """Bytes of weights that one token reads: all but the embedding table, of which it reads one row."""

    settings: dict[str, Any]
    """The engine's settings."""

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        """Decode without end: yield once after the prompt, then after each token of every model."""
        ...


@runtime_checkable
class Timed(Protocol):
    """Tokens of an engine with a thread of its own, which would decode ahead during the turns of other engines.

    It decodes on request, and measures the time of each token itself.
    """

    def timed(self, count: int) -> list[float]:
        """Seconds of each of the next `count` tokens."""
        ...
