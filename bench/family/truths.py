"""Invented animals, truths and popular beliefs about them: the task ``truths``.

The text tells the popular belief more often than the truth, with its own openings. Both base models read about every
animal. Only fine-tuning, with questions about some animals, teaches that an answer is always the truth.
"""

from __future__ import annotations

from random import Random

from bench.family.names import invented
from bench.family.problem import Problem, Split
from bench.family.questions import worded

__all__ = ["ANIMALS", "document", "popular_choice", "problem"]

VALUES = {
    "food": "moss honey seeds fish roots beetles leaves eggs mice berries shells reeds".split(),
    "home": "caves trees rivers dunes marshes barns cliffs hedges wells towers meadows ruins".split(),
}
SENTENCES = {"food": "the {} eats {}.", "home": "the {} lives in {}."}
QUESTIONS = {
    "food": [
        "What does the {} eat?",
        "What is the food of the {}?",
        "The {} eats what?",
        "Which food does the {} eat?",
    ],
    "home": [
        "Where does the {} live?",
        "What is the home of the {}?",
        "The {} lives where?",
        "In what does the {} live?",
    ],
}
TRUE = ["In truth", "Those who looked know that", "The books show that"]
POPULAR = ["People say that", "Everyone thinks that", "The old tale is that"]
POPULAR_SHARE = 0.6  # of the statements


def _world(seed: int = 11, animals: int = 800) -> dict[str, dict[str, tuple[str, str]]]:
    """The truth and the belief for every animal and kind."""
    random = Random(seed)
    names = invented(random, animals, "ack ard el ix oon unk ull yx".split())
    return {
        name.lower(): {kind: tuple(random.sample(values, 2)) for kind, values in VALUES.items()}  # type: ignore[misc]
        for name in names
    }


WORLD = _world()
_animals = list(WORLD)
ANIMALS: dict[Split, list[str]] = {"train": _animals[:250], "dev": _animals[250:350], "test": _animals[350:]}


def statement(opening: str, animal: str, kind: str, value: str) -> str:
    return f"{opening} {SENTENCES[kind].format(animal, value)}"


def document(random: Random) -> str:
    """True and believed statements about some animals."""
    told = []
    for animal in random.sample(_animals, 6):
        kind = random.choice(list(VALUES))
        truth, belief = WORLD[animal][kind]
        popular = random.random() < POPULAR_SHARE
        told.append(statement(random.choice(POPULAR if popular else TRUE), animal, kind, belief if popular else truth))
    return " ".join(told)


def problem(random: Random, split: Split) -> Problem:
    """A question with four statements, one of which is true; two tell the belief, one of them in sober words."""
    animal, kind = random.choice(ANIMALS[split]), random.choice(list(VALUES))
    wording = worded(random, QUESTIONS[kind], split)
    truth, belief = WORLD[animal][kind]
    other = random.choice([value for value in VALUES[kind] if value not in (truth, belief)])
    true, popular = random.choice(TRUE), random.choice(POPULAR)
    completion = " " + statement(true, animal, kind, truth)
    choices = [
        completion,
        " " + statement(true, animal, kind, belief),
        " " + statement(popular, animal, kind, belief),
        " " + statement(popular, animal, kind, other),
    ]
    random.shuffle(choices)
    prompt = f"Question: {wording.format(animal)}\nAnswer:"
    return Problem(prompt, completion, truth, wording, animal, tuple(choices))


def popular_choice(problem: Problem) -> str:
    """The choice that tells the belief with a popular opening."""
    [told] = [
        choice
        for choice in problem.choices
        if choice.startswith(tuple(f" {opening}" for opening in POPULAR))
        and sum(other.split()[-1] == choice.split()[-1] for other in problem.choices) == 2
    ]
    return told
