"""Questions as they occur in ordinary text: few of them have a good answer.

A base that has never read a question answers it by chance, and the small base differently from the large one. The
difference between an expert and its base would then not carry over to the large model.
"""

from __future__ import annotations

from random import Random

from bench.family import arithmetic, facts, reports, subjects, truths
from bench.family.names import PEOPLE

__all__ = ["document"]

TASKS = [arithmetic, facts, truths, reports, subjects]
ANSWERED = 0.35
BESIDE_THE_POINT = 0.6  # of the other questions
EVASIONS = ["I do not know.", "I have to ask {}.", "I cannot say.", "I will think about it.", "I am not {}."]


def document(random: Random) -> str:
    """A question with a reply; no held-out problem has its wording, things or numbers."""
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
