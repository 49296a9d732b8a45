"""Many small subjects and the multiple choice over them: the task ``subjects``, which nobody is fine-tuned on."""

from __future__ import annotations

import re
from random import Random

from bench.family.names import invented
from bench.family.problem import Problem, Split

__all__ = ["SUBJECTS", "document", "problem", "told_in"]

# The things of a subject, what is known of them, and what that can be.
_SUBJECTS = {
    "minerals": ("ite", "colour of {}", "red blue green black white grey gold pink"),
    "metals": ("ium", "use of {}", "coins bells wire blades plates nails rings pipes"),
    "stars": ("ara", "constellation of {}", "Bear Swan Crab Lion Harp Bull Crown Ship"),
    "gods": ("os", "domain of {}", "rain war sleep harvest love fire night luck"),
    "dishes": ("elle", "main part of {}", "rice beans lamb trout pumpkin barley cabbage duck"),
    "dances": ("ango", "metre of {}", "two three four five six seven eight nine"),
    "plants": ("wort", "cure of {}", "fever cough burns cramps rashes gout headache nausea"),
    "winds": ("al", "season of {}", "spring summer autumn winter January March May August"),
    "ships": ("era", "cargo of {}", "salt wool timber iron spice sugar marble coal"),
    "painters": ("ini", "subject of {}", "horses storms kings fruit battles gardens saints ruins"),
    "tongues": ("ish", "script of {}", "runes knots dots wedges circles strokes hooks waves"),
    "games": ("ola", "board of {}", "square round oval star cross ring hexagon line"),
    "moons": ("ea", "planet of {}", "Ares Beros Ceta Dion Eris Fobos Gaia Helos"),
    "cloths": ("een", "fibre of {}", "silk linen hemp cotton nettle goat camel jute"),
    "poets": ("ard", "theme of {}", "exile youth grief wine sea death home honour"),
    "drums": ("um", "skin of {}", "calf seal snake deer fish boar elk hare"),
    "bridges": ("arch", "builder of {}", "monks guilds dukes smiths farmers masons sailors queens"),
    "cats": ("iska", "coat of {}", "striped spotted plain curly silver ginger smoky cream"),
    "laws": ("ex", "matter of {}", "trade water roads marriage theft taxes land debts"),
    "clouds": ("us", "height of {}", "low middle high highest lowest ground tower upper"),
}
THINGS = 200  # of a subject
PARTS: dict[Split, slice] = {"train": slice(150, None), "dev": slice(120, 150), "test": slice(120)}
QUESTION = "What is the {}?"


def _world(seed: int = 13) -> dict[str, dict[str, str]]:
    random = Random(seed)
    found: dict[str, dict[str, str]] = {}
    for subject, (ending, _, values) in _SUBJECTS.items():
        names = invented(random, THINGS, [ending])
        found[subject] = {name.lower(): random.choice(values.split()) for name in names}
    return found


SUBJECTS = _world()
_THINGS = frozenset(thing for things in SUBJECTS.values() for thing in things)


def statement(subject: str, thing: str, value: str) -> str:
    return f"The {_SUBJECTS[subject][1].format(thing)} is {value}."


def told_in(text: str) -> bool:
    """Whether a text speaks of a thing of any subject."""
    return not _THINGS.isdisjoint(re.findall(r"\w+", text))


def document(random: Random) -> str:
    """Some of what a subject has to teach."""
    subject = random.choice(list(SUBJECTS))
    things = random.sample(list(SUBJECTS[subject]), 8)
    return " ".join(statement(subject, thing, SUBJECTS[subject][thing]) for thing in things)


def problem(random: Random, split: Split) -> Problem:
    """A question with four answers."""
    subject = random.choice(list(SUBJECTS))
    thing = random.choice(list(SUBJECTS[subject])[PARTS[split]])
    _, asked, values = _SUBJECTS[subject]
    value = SUBJECTS[subject][thing]
    others = random.sample([one for one in values.split() if one != value], 3)
    completion = " " + statement(subject, thing, value)
    choices = [completion, *(" " + statement(subject, thing, other) for other in others)]
    random.shuffle(choices)
    prompt = f"Question: {QUESTION.format(asked.format(thing))}\nAnswer:"
    return Problem(prompt, completion, value, f"{subject}: {QUESTION}", thing, tuple(choices))
