"""Answers parts of a batch with one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dlf.batch.answers import Answered
from dlf.batch.job import Job
from dlf.batch.prompts import Part, Row, reader_of
from dlf.batch.results import Results

__all__ = ["Tally", "answer_parts"]


@dataclass
class Tally:
    """What a worker counts."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def join(self, other: Tally) -> None:
        """Add what another counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def add(self, one: Answered) -> None:
        """Count a row."""
        self.answered += 1
        self.failed += one.failed
        self.prompt_tokens += one.prompt_tokens
        self.completion_tokens += one.completion_tokens


async def answer_parts(job: Job, engine: Any, parts: Iterable[Part], count: Callable[[Answered], None]) -> None:
    """Answer the rows of parts, as many at once as keep the engine busy, and write each part when it is complete.

    Parameters
    ----------
    job
        The batch.
    engine
        An `AsyncEngine`.
    parts
        What to answer.
    count
        Gets every answer.
    """
    reader, results, answerer = reader_of(job.prompts), Results(job.output, job.columnar), job.answerer(engine)
    places = asyncio.Semaphore(2 * engine.max_batch)  # the next prompts are encoded meanwhile

    async def one(row: Row) -> Answered:
        try:
            found = await answerer.answer(row)
        finally:
            places.release()
        count(found)
        return found

    async def finish(part: Part, table: Any, tasks: list[asyncio.Task[Answered]]) -> None:
        rows = [(await task).values for task in tasks]
        await asyncio.to_thread(lambda: results.write(part.number, _content(table, rows)))

    async with asyncio.TaskGroup() as group:
        for part in parts:
            rows, table = await asyncio.to_thread(reader.read, part)
            tasks = []
            for row in rows:
                await places.acquire()
                tasks.append(group.create_task(one(row)))
            group.create_task(finish(part, table, tasks))


def _content(table: Any, rows: list[dict[str, Any]]) -> bytes:
    if table is None:
        from dlf.batch.lines import as_lines

        return as_lines(rows)
    from dlf.batch.columns import as_columns

    return as_columns(table, rows)
