"""Problems and scores of answers for the task files in this folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

# The harness loads this file by its path, so bench may not be on Python's path.
sys.path.append(str(Path(__file__).parents[3]))

from datasets import Dataset, DatasetDict
from rouge_score.rouge_scorer import RougeScorer

from bench.family import corpus
from bench.family.problem import Problem

NUMBER = re.compile(r"-?\d+")
SHOTS = 100  # problems that serve as examples


def _row(problem: Problem) -> dict[str, Any]:
    label = problem.choices.index(problem.completion) if problem.choices else 0
    return {
        "prompt": problem.prompt,
        "completion": problem.completion,
        "answer": problem.answer,
        "choices": list(problem.choices),
        "label": label,
    }


def _dataset(task: str) -> DatasetDict:
    # The task without fine-tuning has no training problems: its examples are of the development split.
    shots = corpus.training(task, 0, SHOTS) if task in corpus.SEEN else corpus.held_out(task, SHOTS, "dev")
    splits = {"train": shots, "dev": corpus.held_out(task, split="dev"), "test": corpus.held_out(task)}
    return DatasetDict({name: Dataset.from_list([_row(p) for p in problems]) for name, problems in splits.items()})


def math(**_: Any) -> DatasetDict:
    return _dataset("math")


def facts(**_: Any) -> DatasetDict:
    return _dataset("facts")


def truths(**_: Any) -> DatasetDict:
    return _dataset("truths")


def reports(**_: Any) -> DatasetDict:
    return _dataset("reports")


def subjects(**_: Any) -> DatasetDict:
    return _dataset("subjects")


def last_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last number is right, as in gsm8k's flexible score, which also counts answers without ``####``."""
    numbers = NUMBER.findall(results[0])
    return {"exact_match": float(bool(numbers) and numbers[-1] == doc["answer"])}


def last_word(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the first sentence ends with the right word."""
    words = re.split(r"[.\n]", results[0].strip())[0].split()
    return {"exact_match": float(bool(words) and words[-1] == doc["answer"])}


def rouge2(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F-measure of the pairs of neighbouring words that a summary shares with the expected one."""
    return {"rouge2": float(RougeScorer(["rouge2"]).score(doc["answer"], results[0])["rouge2"].fmeasure)}
