"""How often a system answers held-out problems correctly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dlf
from bench.family.problem import Problem
from dlf.demo import is_correct

__all__ = ["accuracy", "systems"]


def systems(folder: Path, task: str, small: str = "small-base") -> dict[str, dict[str, object]]:
    """Arguments of the Engine for each way to answer: the large model, the expert, a fixed weight, solved weights."""
    large, expert = folder / "large-base", folder / f"{task}-expert"
    pair = [dlf.Expert(expert, base=folder / small)]
    return {
        "large alone": {"large": large},
        "expert alone": {"large": expert},
        "alpha = 1": {"large": large, "experts": pair, "combine": "static", "alpha": [1.0]},
        "dynamic": {"large": large, "experts": pair},
    }


def accuracy(problems: Sequence[Problem], **engine_options: object) -> float:
    """Share of the problems whose greedy completion has the right answer after ``####``."""
    with dlf.Engine(max_batch=8, **engine_options) as engine:  # type: ignore[arg-type]
        prompts = [problem.prompt for problem in problems]
        completions = engine.generate(prompts, max_new_tokens=128, progress=False)
    right = [is_correct(done.text, problem.answer) for done, problem in zip(completions, problems, strict=True)]
    return sum(right) / len(right)
