"""The text of each model: endless seeded text for pretraining, a few thousand answered problems for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from bench.family import arithmetic, facts, reports, subjects, talk, truths
from bench.family.problem import Problem, Split

__all__ = ["SEEN", "TASKS", "UNSEEN", "held_out", "multi_task", "pretraining", "rehearsal", "training"]

# Kinds of documents, and their shares.
MIXTURE: list[tuple[Callable[[Random], str], float]] = [
    (arithmetic.equations, 0.20),
    (arithmetic.story, 0.22),
    (facts.document, 0.13),
    (truths.document, 0.15),
    (reports.document, 0.10),
    (subjects.document, 0.08),
    (talk.document, 0.12),
]
TASKS: dict[str, Callable[[Random, Split], Problem]] = {
    "math": arithmetic.problem,
    "facts": facts.problem,
    "truths": truths.problem,
    "reports": reports.problem,
    "subjects": subjects.problem,
}
SEEN = ["math", "facts", "truths", "reports"]  # tasks that models are fine-tuned on
UNSEEN = "subjects"
HELD_OUT = 1000  # problems of each task
TRAINING = 3000  # problems of each task at most


def pretraining(seed: int) -> Iterator[str]:
    """Documents, without end."""
    random = Random(seed)
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        yield random.choices(makers, weights)[0](random)


def rehearsal(seed: int) -> Iterator[str]:
    """The pretraining text again, without documents about the task that no model is fine-tuned on."""
    return (document for document in pretraining(seed) if not subjects.told_in(document))


def training(task: str, seed: int, count: int = TRAINING) -> list[Problem]:
    """`count` different problems for fine-tuning; fewer where the task has no more."""
    return _distinct(TASKS[task], "train", count, Random(f"train {task} {seed}"))


def multi_task(seed: int) -> list[Problem]:
    """The problems of all tasks that models are fine-tuned on."""
    return [problem for task in SEEN for problem in training(task, seed)]


def held_out(task: str, count: int = HELD_OUT, split: Split = "test") -> list[Problem]:
    """The problems that score a task; a smaller count gives the first ones of a larger."""
    return _distinct(TASKS[task], split, count, Random(f"held out {task}"))


def _distinct(make: Callable[[Random, Split], Problem], split: Split, count: int, random: Random) -> list[Problem]:
    found: dict[str, Problem] = {}
    repeated = 0
    while len(found) < count and repeated < 20_000:
        problem = make(random, split)
        repeated += problem.prompt in found
        found.setdefault(problem.prompt, problem)
    return list(found.values())
