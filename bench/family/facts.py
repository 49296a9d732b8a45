"""Invented towns, and closed-book questions about them: the task ``facts``.

Both base models read about every town. Fine-tuning has questions about half of the towns.
"""

from __future__ import annotations

from random import Random

from bench.family.names import invented
from bench.family.problem import Problem, Split
from bench.family.questions import worded

__all__ = ["TOWNS", "document", "problem"]

VALUES = {
    "land": "Arvel Bostra Cendra Dormin Elgar Fustra Galen Hestor Irmia Joland".split(),
    "river": "Alm Bern Cole Dree Esk Fane Gint Hale Isk Jorn Kell Lune".split(),
    "craft": "bread cheese clocks cloth glass honey lamps paper ropes ships tea wine".split(),
}
SENTENCES = {
    "land": "{} is a town in {}.",
    "river": "{} lies on the river {}.",
    "craft": "{} is known for its {}.",
}
QUESTIONS = {
    "land": [
        "In which land is {}?",
        "Which land is {} a town in?",
        "What land is {} in?",
        "{} is a town in which land?",
    ],
    "river": [
        "On which river is {}?",
        "Which river does {} lie on?",
        "What river is {} on?",
        "{} lies on which river?",
    ],
    "craft": [
        "What is {} known for?",
        "For what is {} known?",
        "{} is known for what?",
        "Of which craft is {} known?",
    ],
}


def _world(seed: int = 7, towns: int = 1200) -> dict[str, dict[str, str]]:
    random = Random(seed)
    names = invented(random, towns, "by dale ford gate ham hill mere port stead ton wick".split())
    return {name: {kind: random.choice(values) for kind, values in VALUES.items()} for name in names}


WORLD = _world()
_towns = list(WORLD)
TOWNS: dict[Split, list[str]] = {"train": _towns[:600], "dev": _towns[600:700], "test": _towns[700:]}


def fact(town: str, kind: str) -> str:
    return SENTENCES[kind].format(town, WORLD[town][kind])


def document(random: Random) -> str:
    """All facts about a few towns."""
    return " ".join(fact(town, kind) for town in random.sample(_towns, 4) for kind in random.sample(list(VALUES), 3))


def problem(random: Random, split: Split) -> Problem:
    """A question about one town, with the fact that answers it."""
    town, kind = random.choice(TOWNS[split]), random.choice(list(VALUES))
    wording, answer = worded(random, QUESTIONS[kind], split), WORLD[town][kind]
    prompt = f"Question: {wording.format(town)}\nAnswer:"
    return Problem(prompt, f" {fact(town, kind)}", answer, wording, town)
