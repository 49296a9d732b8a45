"""The miniature model family that ships with the package, for the demonstration and for tests.

``bench/family`` makes it from scratch; its model card, ``README.md`` in this folder, says how. The models are
ordinary Hugging Face folders; the problems are held out: no model of the family has seen them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Problem", "models", "path", "problems", "tasks"]

FOLDER = Path(__file__).parent
PROBLEMS = "problems"


@dataclass(frozen=True)
class Problem:
    """A held-out problem: the prompt, and the answer that a right completion gives."""

    prompt: str
    answer: str


def models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(folder.parent.name for folder in FOLDER.glob("*/config.json"))


def path(name: str) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name
        ``"large-base"``, ``"small-base"``, or an expert's, such as ``"math-expert"``.

    Raises
    ------
    ValueError
        If the zoo has no such model.
    """
    if name not in models():
        raise ValueError(f"the zoo has no model {name!r}: choose from {', '.join(models())}")
    return FOLDER / name


def tasks() -> list[str]:
    """Names of the tasks; each has problems and an expert."""
    return sorted(file.stem for file in (FOLDER / PROBLEMS).glob("*.jsonl"))


def problems(task: str) -> list[Problem]:
    """Return the held-out problems of a task.

    Raises
    ------
    ValueError
        If the zoo has no such task.
    """
    if task not in tasks():
        raise ValueError(f"the zoo has no task {task!r}: choose from {', '.join(tasks())}")
    lines = (FOLDER / PROBLEMS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines]
