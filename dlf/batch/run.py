"""Runs a batch in this process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from dlf.batch.answers import Answered
from dlf.batch.cluster import Cluster, run_on
from dlf.batch.job import Job, prepare
from dlf.batch.prompts import Part, Prompts
from dlf.batch.results import Results
from dlf.batch.work import Tally, answer_parts

__all__ = ["BatchReport", "run"]


@dataclass(frozen=True)
class BatchReport:
    """What a run of a batch did, and what it cost.

    Attributes
    ----------
    rows : int
        Rows of the whole batch.
    answered : int
        Rows that this run answered; those before were there already.
    failed : int
        Of these, rows with an error.
    prompt_tokens, completion_tokens : int
        Their tokens; those of scored continuations count as prompts'.
    seconds : float
        Time from the first row to the last, without loading.
    processor_seconds : float
        Time of processors meanwhile, of all threads.
    workers : int
        Engines that worked.
    """

    rows: int
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    processor_seconds: float
    workers: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were generated in a second."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0


def run(
    recipe: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    seed: int = 0,
    rows_per_part: int = 256,
    progress: bool | None = None,
    cluster: Cluster | None = None,
    **options: Any,
) -> BatchReport:
    """Answer the prompts of a file, and write a folder of results; an interrupted batch goes on where it was.

    A row gives the same tokens alone, among others and on any number of workers: its seed comes from its id. A row with
    a mistake gets an error, and the others go on. See docs/guide/scale.md for the columns of the file and of the
    results.

    Parameters
    ----------
    recipe
        A recipe; or the folder or hub id of a model without experts. It, `prompts` and `output` may also have addresses
        of fsspec, such as ``"s3://bucket/results"``.
    prompts
        A file of JSON lines (``.jsonl``) or in Parquet format (``.parquet``).
    output
        A folder that is new, empty, or of the same batch. It has ``manifest.json`` and ``part-000000.jsonl`` and so on,
        or ``.parquet``, each with the results of `rows_per_part` rows in the order of the file.
    defaults : mapping, optional
        Fields of requests that do not have them, such as ``{"max_tokens": 64, "temperature": 0}``.
    seed
        From it and the id of a row comes the seed of a row that has none.
    rows_per_part
        Rows that are written together. A run that is killed loses the parts that it was working on.
    progress : bool, optional
        Whether to show a progress bar; by default on a terminal.
    cluster : Cluster, optional
        A Ray cluster whose engines answer; every node must find the files under the same paths. By default this process
        does.
    **options
        Fields of `EngineOptions`, which override the recipe's.

    Returns
    -------
    BatchReport
        Tokens, time and cost.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If a file or a model is missing or damaged.
    OptionError
        If an option is impossible, or the folder holds another batch.
    ImportError
        If there is a cluster, and Ray is not installed.
    EngineError
        If the engine failed, whatever the row; what was written stays.
    """
    job, found, manifest = prepare(recipe, prompts, output, defaults or {}, seed, rows_per_part, options)
    with Results(job.output, job.columnar).opened(manifest) as done:
        parts = [part for part in found.parts if part.number not in done]
        with _bar(found, parts, progress) as bar:
            if not parts:
                return BatchReport(found.rows, 0, 0, 0, 0, 0.0, 0.0, 0)
            work = _run if cluster is None else partial(run_on, cluster)
            tally, seconds, processor, workers = work(job, parts, bar.update)
            return BatchReport(found.rows, **vars(tally), seconds=seconds, processor_seconds=processor, workers=workers)


def _bar(prompts: Prompts, parts: Iterable[Part], progress: bool | None) -> Any:
    """A bar over all rows, of which those of other parts are done."""
    left = sum(part.rows for part in parts)
    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=prompts.rows, initial=prompts.rows - left, desc="Batch", unit="row", disable=not shown)


def _run(job: Job, parts: list[Part], update: Callable[[int], Any]) -> tuple[Tally, float, float, int]:
    """Answer parts in this process; returns counts, seconds, processor-seconds and the number of workers."""
    import dlf

    tally = Tally()

    def count(one: Answered) -> None:
        tally.add(one)
        update(1)

    async def work() -> tuple[Tally, float, float, int]:
        async with dlf.AsyncEngine(**job.arguments) as engine:
            start, processor = time.perf_counter(), time.process_time()
            await answer_parts(job, engine, parts, count)
            return tally, time.perf_counter() - start, time.process_time() - processor, 1

    try:
        if asyncio._get_running_loop() is None:
            return asyncio.run(work())
        with ThreadPoolExecutor(1) as pool:  # the caller is in an event loop, as in a notebook
            return pool.submit(asyncio.run, work()).result()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
