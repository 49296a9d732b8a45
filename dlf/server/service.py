"""The models that a server offers: the engine of each recipe, and each expert of it alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dlf.async_engine import AsyncEngine
from dlf.server.errors import ApiError
from dlf.tool_calls import CallFormat

__all__ = ["Served", "Service"]


@dataclass
class Served:
    """An engine under a name.

    Attributes
    ----------
    name : str
        Name of the recipe.
    engine : AsyncEngine
        Decodes its requests.
    defaults : dict
        Sampling options of requests that give none.
    sequences : int
        Sequences that run or wait.
    created : int
        When it was loaded, in seconds since 1970.
    call_formats : dict
        How its model writes calls of tools, by ``tool_call_parser``; None if that is unknown.
    """

    name: str
    engine: AsyncEngine
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sequences: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    call_formats: dict[str, CallFormat | None] = field(default_factory=dict)


class Service:
    """Finds the engine of a request, and bounds the sequences of each."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = dict(served)
        self.draining = False

    @property
    def served(self) -> list[Served]:
        """All engines."""
        return list(self._served.values())

    def names(self) -> dict[str, Served]:
        """Every name that a request may give as ``model``."""
        found = {}
        for name, one in self._served.items():
            found[name] = one
            found |= {f"{name}/{expert}": one for expert in one.engine.experts}
        return found

    def find(self, model: str | None) -> tuple[Served, list[str] | None]:
        """Return the engine of a name, and the experts that the name chooses; None are those of the recipe.

        Raises
        ------
        ApiError
            If there is no such model.
        """
        names = self.names()
        if model is None and len(self._served) == 1:
            model = next(iter(self._served))
        if model not in names:
            raise ApiError(
                404,
                f"the model {model!r:.200} does not exist; there are: {', '.join(names)}",
                "model",
                "model_not_found",
            )
        one = names[model]
        return one, None if model == one.name else [model.removeprefix(f"{one.name}/")]

    @contextmanager
    def places(self, one: Served, count: int, most: int) -> Iterator[None]:
        """Count the sequences of a request while it runs.

        Raises
        ------
        ApiError
            If there would be more than `most`, or the server is shutting down.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "10"})
        if one.sequences + count > most:
            raise ApiError(
                429,
                f"{one.sequences} sequences of {one.name} run or wait, and at most {most} may; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        one.sequences += count
        try:
            yield
        finally:
            one.sequences -= count

    async def close(self) -> None:
        """Free all engines."""
        for one in self._served.values():
            await one.engine.close()
