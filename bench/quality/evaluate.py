"""Scores every item for every system with lm-evaluation-harness; an interrupted run continues where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.progress import Progress

import dlf
from bench.quality.estimate import Floats
from bench.quality.systems import System
from dlf.experts.merged import merged_experts

__all__ = ["Scorer"]

# The score of a sample of lm-evaluation-harness is the first of these that it has.
METRICS = ("exact_match", "acc", "rouge2", "rougeL", "f1", "em", "bleu_acc")
_Job: TypeAlias = tuple[str, System, Sequence[str]]
_Scored: TypeAlias = tuple[str, System, str, Floats]


@dataclass
class Scorer:
    """Runs systems on tasks and keeps their scores.

    Parameters
    ----------
    work
        Folder of the scores.
    include
        Folder of task files beside those of the harness, if any.
    limit
        Most items of a task.
    workers
        Processes that score, each one system on one task at a time, with engines of one thread: small models spend
        most of the time in the harness, which has one thread. With 1, systems run in this process.
    """

    work: Path
    include: Path | None = None
    limit: int | None = None
    workers: int = 1
    known: dict[tuple[str, str], Floats] = field(default_factory=dict)

    def scores(self, key: str, task: str) -> Floats | None:
        """Scores of every item of a task, if the system was run on it."""
        return self.known.get((key, task))

    def knows(self, task: str) -> bool:
        """Whether `task` names a task, or several."""
        return bool(self._manager.match_tasks([task]))

    def run(self, wanted: Iterable[tuple[str, System, Sequence[str]]], progress: Progress) -> None:
        """Score systems on tasks."""
        todo = [
            (key, system, [task for task in tasks if not self._load(key, system, task)])
            for key, system, tasks in wanted
        ]
        bar = progress.add_task("", total=sum(len(tasks) for _, _, tasks in todo))
        with contextlib.closing(self._apart(todo) if self.workers > 1 else self._here(todo)) as found:
            for key, system, task, scores in found:
                self._keep(key, system, task, scores)
                progress.update(bar, advance=1, description=f"{key:20}")

    def _here(self, todo: Iterable[_Job]) -> Generator[_Scored]:
        """Score the systems one after the other; make each engine once."""
        for key, system, tasks in todo:
            for task, scores in self._run(system, tasks) if tasks else ():
                yield key, system, task, scores

    def _apart(self, todo: Iterable[_Job]) -> Generator[_Scored]:
        """Score in several processes, in any order."""
        single = [(key, system, task) for key, system, tasks in todo for task in tasks]
        if not single:
            return
        score = partial(_score_one, replace(self, workers=1, known={}))
        # Spawned, since threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(self.workers, _start_worker) as pool:
            yield from pool.imap_unordered(score, single)

    @cached_property
    def _manager(self) -> Any:
        """The harness's index of tasks; it reads every task file once."""
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self.include, include_defaults=self.include is None)

    def _run(self, system: System, tasks: Sequence[str]) -> Iterator[tuple[str, Floats]]:
        import lm_eval

        from dlf.lm_eval import DLF

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with _engine(system) as engine:
            for task in tasks:
                with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # hides its progress bars
                    found = lm_eval.simple_evaluate(
                        DLF(engine=engine),
                        tasks=[task],
                        limit=self.limit,
                        bootstrap_iters=0,
                        task_manager=self._manager,
                    )
                yield task, np.concatenate([_scores(samples) for samples in found["samples"].values()])

    def _keep(self, key: str, system: System, task: str, scores: Floats) -> None:
        self.known[key, task] = scores
        file = self._file(system, task)
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".part")
        written.write_text(json.dumps([round(float(score), 6) for score in scores]))
        os.replace(written, file)

    def _load(self, key: str, system: System, task: str) -> bool:
        file = self._file(system, task)
        if (key, task) not in self.known and file.exists():
            self.known[key, task] = np.array(json.loads(file.read_text()), np.float64)
        return (key, task) in self.known

    def _file(self, system: System, task: str) -> Path:
        """The file of scores, named by a hash of everything that they depend on, also the weights' files."""
        engine = {key: value for key, value in system.engine.items() if key != "threads"}
        about = [_describe(engine), task, self.limit, dlf.__version__]
        return self.work / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends it
    torch.set_num_threads(1)


def _score_one(scorer: Scorer, job: tuple[str, System, str]) -> _Scored:
    key, system, task = job
    alone = System(system.title, {**system.engine, "threads": 1})
    [(_, scores)] = scorer._run(alone, [task])
    return key, system, task, scores


@contextlib.contextmanager
def _engine(system: System) -> Iterator[dlf.Engine]:
    """Make the engine of a system, whose large model may be a merge."""
    large = system.engine["large"]
    with contextlib.ExitStack() as stack:
        if isinstance(large, dlf.TaskArithmetic):
            [merged] = stack.enter_context(merged_experts([large]))
            large = merged.model
        yield stack.enter_context(dlf.Engine(**{**system.engine, "large": large}))


def _scores(samples: Sequence[Mapping[str, Any]]) -> Floats:
    """The score of each item, by the first filter's metric."""
    first = samples[0]["filter"]
    metric = next((name for name in METRICS if name in samples[0]), None)
    if metric is None:
        raise ValueError(f"the task has no known metric; add one of {', '.join(samples[0]['metrics'])} to METRICS")
    chosen = sorted((one for one in samples if one["filter"] == first), key=lambda one: one["doc_id"])
    return np.array([float(one[metric]) for one in chosen], np.float64)


def _describe(value: Any) -> Any:
    """A value as JSON; the folder of a model has the size and time of each of its files."""
    if is_dataclass(value):
        return [type(value).__name__, *(_describe(getattr(value, one.name)) for one in fields(value))]
    if isinstance(value, Mapping):
        return [[_describe(key), _describe(one)] for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_describe(one) for one in value]
    if isinstance(value, (str, os.PathLike)) and os.path.isdir(value):  # Path raises for a long text
        files = sorted(Path(value).glob("*.safetensors"))
        return [str(value), [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
