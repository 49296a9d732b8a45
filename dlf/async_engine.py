"""The engine for tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self, overload

from dlf.arguments import Path, Prompt
from dlf.core import EngineCore
from dlf.experts import AnyExpert
from dlf.own_rule import RuleFunction, StepLogits
from dlf.prepare import Scoring
from dlf.results import CacheUse, Completion, Score
from dlf.rule import Rule
from dlf.speculation import Speculate
from dlf.stream import AsyncStream
from dlf.text.layout import Example
from dlf.waiting import Awaiting

__all__ = ["AsyncEngine"]


class AsyncEngine(EngineCore):
    r"""An `Engine` whose calls are awaited: requests of many tasks, of one event loop or several, share its batch.

    It takes the arguments of `Engine`, raises the same errors and gives the same tokens. Texts are encoded in threads,
    and one thread steps, so no call holds up the event loop. The requests of a task that is cancelled or times out end
    at once.

    Examples
    --------
    >>> async with dlf.AsyncEngine(large, experts) as engine:
    ...     async for piece in engine.generate("Q: What is 12 plus 30?\nA:"):
    ...         print(piece.text, end="")
    """

    @cached_property
    def _loops(self) -> dict[asyncio.AbstractEventLoop, Awaiting]:
        return {}

    def _waiting(self) -> Awaiting:
        loop = asyncio.get_running_loop()
        for closed in [one for one in list(self._loops) if one.is_closed()]:
            self._loops.pop(closed, None)  # another thread may have done so
        return self._loops.setdefault(loop, Awaiting(loop))

    async def add_expert(self, expert: AnyExpert | Path) -> None:
        """Add an expert, as `Engine.add_expert`."""
        await self._add(self._waiting(), expert)

    async def remove_expert(self, name: str) -> None:
        """Remove an expert, as `Engine.remove_expert`."""
        await self._remove(self._waiting(), name)

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> AsyncStream:
        """Decode one prompt and yield each step as it comes.

        Arguments are those of `Engine.stream`. They are checked when this is called; the prompt is encoded and queued
        when the first piece is awaited.

        Returns
        -------
        AsyncStream
            An asynchronous iterator over the `Piece` of each token.

        Raises
        ------
        ValueError, TypeError, IndexError, FloatingPointError, RuntimeError
            As from `Engine.generate`; errors of the prompt when the first piece is awaited.
        """
        wanted = self._generation(prompt, messages, examples, experts, rule, speculate, options)
        wanted.check_single()
        return AsyncStream(lambda: self._start(self._waiting(), wanted))

    @overload
    async def complete(
        self,
        prompt: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Completion: ...

    @overload
    async def complete(
        self,
        prompt: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Any: ...

    async def complete(
        self,
        prompt: Any = None,
        *,
        messages: Any = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Decode one prompt or a list of prompts to the end; returns what `Engine.generate` returns."""
        wanted = self._generation(prompt, messages, examples, experts, rule, speculate, options)
        return await self._complete(self._waiting(), wanted, progress=False)

    async def logits(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | None = None,
        **options: Any,
    ) -> StepLogits:
        """Return the logits of all models after a prompt, and the fused ones, as `Engine.logits`."""
        wanted, found = self._logits(prompt, messages, examples, experts, rule, options)
        await self._complete(self._waiting(), wanted, progress=False)
        return found[0]

    @overload
    async def score(
        self,
        prompt: str,
        continuation: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        **options: Any,
    ) -> Score: ...

    @overload
    async def score(
        self,
        prompt: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | str | None = None,
        continuation: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | str = "",
        *,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        **options: Any,
    ) -> Any: ...

    async def score(
        self,
        prompt: Any = None,
        continuation: Any = "",
        *,
        messages: Any = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        **options: Any,
    ) -> Score | list[Score]:
        """Give the log-probabilities of texts that follow prompts, as `Engine.score`."""
        wanted = Scoring.of(prompt, continuation, messages, options, examples=examples, experts=experts, rule=rule)
        return await self._score(self._waiting(), wanted, progress=False)

    async def cache_use(self) -> CacheUse:
        """Return how full the KV caches are, as `Engine.cache_use`."""
        return await self._cache_use(self._waiting())

    async def close(self) -> None:
        """Free the models and caches; requests that are running fail. The engine cannot be used afterwards."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
