"""Many small subjects and the multiple choice over them: the task ``subjects``, which no model is fine-tuned on.

The text tells a mistake about every thing beside the truth, so a model must know the subject and also answer with what
it knows. Fine-tuning on another task may teach that, and must not make it forget the subject.
"""

from __future__ import annotations

import re
from random import Random

from bench.family.names import invented
from bench.family.problem import Problem, Split

__all__ = ["SUBJECTS", "document", "mistaken_choice", "problem", "told_in"]

# For each subject the ending of its things' names, the property, and its values.
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
THINGS = 100  # things of a subject
PARTS: dict[Split, slice] = {"train": slice(80, None), "dev": slice(60, 80), "test": slice(60)}
QUESTION = "What is the {}?"
SOBER, HEARSAY = "The", "People say that the"  # openings of a truth and of a mistake
HEARSAY_SHARE = 0.5  # of the statements


def _world(seed: int = 13) -> dict[str, dict[str, tuple[str, str]]]:
    """The truth and the mistake for every thing of every subject."""
    random = Random(seed)
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for subject, (ending, _, values) in _SUBJECTS.items():
        names = invented(random, THINGS, [ending])
        found[subject] = {name.lower(): tuple(random.sample(values.split(), 2)) for name in names}  # type: ignore[misc]
    return found


SUBJECTS = _world()
_THINGS = frozenset(thing for things in SUBJECTS.values() for thing in things)


def statement(subject: str, thing: str, value: str, opening: str = SOBER) -> str:
    return f"{opening} {_SUBJECTS[subject][1].format(thing)} is {value}."


def told_in(text: str) -> bool:
    """Whether a text names a thing of any subject."""
    return not _THINGS.isdisjoint(re.findall(r"\w+", text))


def document(random: Random) -> str:
    """True and mistaken statements about a few things of a subject."""
    subject = random.choice(list(SUBJECTS))
    told = []
    for thing in random.sample(list(SUBJECTS[subject]), 8):
        truth, mistake = SUBJECTS[subject][thing]
        mistaken = random.random() < HEARSAY_SHARE
        said = (mistake, HEARSAY) if mistaken else (truth, SOBER)
        told.append(statement(subject, thing, *said))
    return " ".join(told)


def problem(random: Random, split: Split) -> Problem:
    """A question with four answers: the truth, the mistake as hearsay and in sober words, and another mistake."""
    subject = random.choice(list(SUBJECTS))
    thing = random.choice(list(SUBJECTS[subject])[PARTS[split]])
    _, asked, values = _SUBJECTS[subject]
    truth, mistake = SUBJECTS[subject][thing]
    other = random.choice([value for value in values.split() if value not in (truth, mistake)])
    completion = " " + statement(subject, thing, truth)
    choices = [
        completion,
        " " + statement(subject, thing, mistake, HEARSAY),
        " " + statement(subject, thing, mistake),
        " " + statement(subject, thing, other),
    ]
    random.shuffle(choices)
    prompt = f"Question: {QUESTION.format(asked.format(thing))}\nAnswer:"
    return Problem(prompt, completion, truth, f"{subject}: {QUESTION}", thing, tuple(choices))


def mistaken_choice(problem: Problem) -> str:
    """The choice that tells the mistake as hearsay."""
    [told] = [choice for choice in problem.choices if choice.startswith(f" {HEARSAY}")]
    return told
