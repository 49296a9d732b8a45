"""A small world of towns that exist nowhere, and the questions about them: the task ``towns``.

Both base models read about every town; only the expert reads questions, and about half of the towns.
"""

from __future__ import annotations

from random import Random

from bench.family.problem import Problem

__all__ = ["TRAIN", "HELD_OUT", "problem", "report"]

LANDS = ["Arvel", "Bostra", "Cendra", "Dormin", "Elgar", "Fustra", "Galen", "Hestor"]
RIVERS = ["Alm", "Bern", "Cole", "Dree", "Esk", "Fane", "Gint", "Hale", "Isk", "Jorn", "Kell", "Lune"]
CRAFTS = ["bread", "cheese", "clocks", "cloth", "glass", "honey", "lamps", "paper", "ropes", "ships", "tea", "wine"]
KINDS = ["land", "river", "craft"]


def _world(seed: int = 7, towns: int = 160) -> dict[str, dict[str, str]]:
    random = Random(seed)
    starts = [
        "Bel",
        "Cor",
        "Dal",
        "Fen",
        "Gor",
        "Hal",
        "Kir",
        "Lor",
        "Mar",
        "Nor",
        "Pel",
        "Ros",
        "Sel",
        "Tor",
        "Vel",
        "Wil",
    ]
    ends = ["by", "dale", "ford", "gate", "ham", "hill", "mere", "mont", "port", "stead", "ton", "wick"]
    names = sorted(start + end for start in starts for end in ends)
    values = {"land": LANDS, "river": RIVERS, "craft": CRAFTS}
    return {name: {kind: random.choice(values[kind]) for kind in KINDS} for name in random.sample(names, towns)}


WORLD = _world()
_names = list(WORLD)
TRAIN, HELD_OUT = _names[: len(_names) // 2], _names[len(_names) // 2 :]
SENTENCES = {
    "land": "{} is a town in {}.",
    "river": "{} lies on the river {}.",
    "craft": "{} is known for its {}.",
}
QUESTIONS = {
    "land": "In which land is the town {}?",
    "river": "On which river does {} lie?",
    "craft": "What is {} known for?",
}


def fact(town: str, kind: str) -> str:
    return SENTENCES[kind].format(town, WORLD[town][kind])


def report(random: Random) -> str:
    """All that there is to say of two towns."""
    return " ".join(
        fact(town, kind) for town in random.sample(list(WORLD), 2) for kind in random.sample(KINDS, len(KINDS))
    )


def problem(random: Random, towns: list[str]) -> Problem:
    """A question about one town of `towns`, with the fact that answers it."""
    town, kind = random.choice(towns), random.choice(KINDS)
    answer = WORLD[town][kind]
    question = QUESTIONS[kind].format(town)
    return Problem(f"Question: {question}\nAnswer:", f" {fact(town, kind)}\n#### {answer}", answer)
