"""How often each way to answer is right on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.family.problem import Problem
from dlf.demo import is_correct, systems

__all__ = ["accuracies"]


def accuracies(folder: Path, task: str, problems: Sequence[Problem], **options: Any) -> dict[str, float]:
    """Share of the problems whose greedy completion has the right answer after ``####``, for each way to answer.

    Options are those of `dlf.Engine`.
    """
    found = {}
    for system in systems(task, folder.joinpath, **options):
        with system.open() as engine:
            completions = engine.generate([problem.prompt for problem in problems], max_new_tokens=128, progress=False)
        right = [is_correct(done.text, problem.answer) for done, problem in zip(completions, problems, strict=True)]
        found[system.title] = sum(right) / len(right)
    return found
