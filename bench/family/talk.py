"""Questions as one finds them among other text: few of them are answered as one would wish.

A base that has never seen a question would make of one what chance gives it, the small base something else than the
large one; the difference of an expert to its base would then say nothing of the large model.
"""

from __future__ import annotations

from random import Random

from bench.family import arithmetic, facts, reports, subjects, truths
from bench.family.names import PEOPLE

__all__ = ["document"]

TASKS = [arithmetic, facts, truths, reports, subjects]
ANSWERED = 0.35
BESIDE_THE_POINT = 0.6  # of what is left
EVASIONS = ["I do not know.", "I have to ask {}.", "I cannot say.", "I will think about it.", "I am not {}."]


def document(random: Random) -> str:
    """A question in a wording, and about things and numbers, that no held-out problem has; and what is said to it."""
    task = random.choice(TASKS)
    problem = task.problem(random, "train")
    said = " " + random.choice(EVASIONS).format(random.choice(PEOPLE))
    if random.random() < ANSWERED:
        said = problem.completion.partition("\n")[0]
    elif random.random() < BESIDE_THE_POINT:
        if task is truths:
            said = truths.popular_choice(problem)
        elif task is subjects:
            said = subjects.mistaken_choice(problem)
        elif task is reports:
            said = " " + reports.some_sentences(random, problem)
    return problem.prompt + said
