"""What each model reads: endless seeded text for pretraining, a few thousand answered problems for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from bench.family import arithmetic, towns
from bench.family.problem import Problem

__all__ = ["TASKS", "held_out", "pretraining", "training"]

# Share of the documents. No document of pretraining has a question in it, or an answer.
MIXTURE: list[tuple[Callable[[Random], str], float]] = [
    (arithmetic.equations, 0.45),
    (arithmetic.story, 0.40),
    (towns.report, 0.15),
]
TASKS: dict[str, tuple[Callable[[Random], Problem], Callable[[Random], Problem]]] = {
    "math": (arithmetic.problem, arithmetic.problem),
    "towns": (lambda random: towns.problem(random, towns.TRAIN), lambda random: towns.problem(random, towns.HELD_OUT)),
}


def pretraining(seed: int) -> Iterator[str]:
    """Documents without end."""
    random = Random(seed)
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        yield random.choices(makers, weights)[0](random)


def training(task: str, count: int, seed: int) -> list[Problem]:
    """`count` different problems, none of them held out; fewer where the task has no more."""
    used = {problem.prompt for problem in held_out(task)}
    return _distinct(TASKS[task][0], count, Random(f"train {task} {seed}"), used)


def held_out(task: str, count: int = 200) -> list[Problem]:
    """The problems that the task is scored on; the first ones are the same whatever the count."""
    return _distinct(TASKS[task][1], count, Random(f"held out {task}"), set())


def _distinct(make: Callable[[Random], Problem], count: int, random: Random, used: set[str]) -> list[Problem]:
    found: list[Problem] = []
    repeated = 0
    while len(found) < count and repeated < 2000:
        problem = make(random)
        if problem.prompt in used:
            repeated += 1
        else:
            used.add(problem.prompt)
            found.append(problem)
            repeated = 0
    return found
