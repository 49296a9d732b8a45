"""Runs a batch on a Ray cluster: a pipeline of Ray Data whose actors are engines.

An item of the pipeline is a part of the file. The worker that gets it reads its rows and writes its results itself, so
rows pass neither through the driver nor through Ray's object store. Writing a part twice is harmless, since its content
is the same: Ray may give the parts of a dead worker to another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dlf.batch.job import Job
from dlf.batch.prompts import Part
from dlf.batch.results import Results
from dlf.batch.work import Tally, answer_parts
from dlf.errors import EngineError, OptionError

__all__ = ["Cluster", "run_on"]

AT_ONCE = 2  # parts of a worker: the rows of the second fill its batch while the last of the first end
MOST_BLOCKS = 4096
FAILURE = re.compile(r"[\w.]*(Error|Exception)\w*: ")


@dataclass(frozen=True)
class Cluster:
    """Where and with how many engines a batch runs.

    Parameters
    ----------
    address : str, optional
        Address of a Ray cluster, such as ``"ray://head:10001"`` or ``"head:6379"``; by default the one that
        ``RAY_ADDRESS`` names or that this machine belongs to, else a new one of this machine alone.
    workers : int, optional
        Engines; by default as many as the cluster has room for.
    cpus : float
        CPUs of each engine, which has as many threads unless the options say otherwise.
    gpus : float
        GPUs of each engine, such as 0.5 for two engines on each.

    Raises
    ------
    OptionError
        If a number is impossible.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers is {self.workers}: give at least 1", "workers")
        if not 0 < self.cpus < 1 << 16:
            raise OptionError(f"cpus is {self.cpus}: give a number above 0", "cpus")
        if not 0 <= self.gpus < 1 << 10 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise OptionError(f"gpus is {self.gpus}: give a whole number, or a share below 1", "gpus")

    def room(self, nodes: Sequence[dict[str, Any]]) -> int:
        """Number of engines that nodes, as `ray.nodes` describes them, have room for; at least 1."""
        found = 0
        for node in nodes:
            has = node["Resources"] if node["Alive"] else {}
            each = [has.get(name, 0) / one for name, one in (("CPU", self.cpus), ("GPU", self.gpus)) if one]
            found += int(min(each) + 1e-6)
        return max(1, found)


def run_on(
    cluster: Cluster, job: Job, parts: Sequence[Part], update: Callable[[int], Any]
) -> tuple[Tally, float, float, int]:
    """Answer parts on a cluster; returns counts, seconds, processor-seconds and the number of workers.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ConnectionError
        If there is no cluster at the address.
    EngineError
        If workers cannot load the models, or a part fails again and again.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("batches on a cluster need Ray: pip install 'dlf[ray]'") from error

    mine = not ray.is_initialized()
    if mine:
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
    try:
        return _run(cluster, job, parts, update)
    except ray.exceptions.RayError as error:
        raise EngineError(f"the batch stopped on the cluster; run it again to go on: {_cause(error)}") from error
    finally:
        if mine:
            ray.shutdown()


def _run(
    cluster: Cluster, job: Job, parts: Sequence[Part], update: Callable[[int], Any]
) -> tuple[Tally, float, float, int]:
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    room = cluster.room(ray.nodes())
    workers = min(cluster.workers or room, len(parts))
    arguments = {"threads": max(1, int(cluster.cpus))} | job.arguments
    items = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=min(len(parts), MOST_BLOCKS))
    found = items.map_batches(
        Worker,
        fn_constructor_args=[replace(job, arguments=arguments)],
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=workers,
            initial_size=min(workers, room),
            max_concurrent_calls_per_actor=AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or None,
    )
    tally, times = Tally(), list[float]()
    processor: dict[str, float] = {}  # of each worker, which only grows
    for one in found.iter_rows():
        tally.join(Tally(**{name: int(one[name]) for name in vars(tally)}))
        times += [one["began"], one["ended"]]
        processor[one["worker"]] = max(one["processor"], processor.get(one["worker"], 0.0))
        update(int(one["rows"]))
    return tally, max(times) - min(times), sum(processor.values()), len(processor)


class Worker:
    """An engine in an actor, which answers parts in several threads."""

    def __init__(self, job: Job) -> None:
        import dlf

        self._job = job
        self._engine = dlf.AsyncEngine(**job.arguments)
        self._results = Results(job.output, job.columnar)
        self._name = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._start = time.process_time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer a part, unless a worker that died afterwards has done so."""
        part = Part(**{name: int(values[0]) for name, values in batch.items()})
        tally, began = Tally(), time.time()
        if not self._results.has(part.number):
            try:
                asyncio.run(answer_parts(self._job, self._engine, [part], tally.add))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        found = vars(tally) | {
            "rows": part.rows,
            "worker": self._name,
            "began": began,
            "ended": time.time(),
            "processor": time.process_time() - self._start,
        }
        return {name: [value] for name, value in found.items()}


def _cause(error: BaseException) -> str:
    """The line that says what went wrong, the last of its kind in the traceback that Ray makes the message."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if FAILURE.match(line)), " ".join(lines))[-600:]
