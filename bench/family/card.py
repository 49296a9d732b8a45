"""The model card: what the family is, how it was made, and how well each system answers."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from bench.family import corpus, evaluate, tokenizer

__all__ = ["Made", "write"]

CARD = """\
---
license: apache-2.0
library_name: dlf
tags: [llama, logit-fusion]
---

# The miniature family

Models small enough to ship with the package, made so that what dynamic logit fusion does can be seen in seconds: a
large base model that can calculate but has never seen a question, a small base model that has read the same and
learnt less of it, and small experts, which are the small base fine-tuned to answer. They are Llama checkpoints as the
Hugging Face hub holds them. All text is generated; no model knows anything of the real world.

{models}

The tokenizer is byte-level BPE with {vocab} tokens, in which every digit is a token of its own.

## What they have read

Both base models read documents like these, without questions and without `####`:

{samples}

Each expert read answered problems of its task, {problems}. None of them is held out, and what the
expert for towns was asked about are other towns than those that it is scored on:

{examples}

## How well they answer

{held_out} held-out problems of each task (`problems/*.jsonl`), greedy. Right means the exact answer after `####`.

{scores}

## How they were made

`python -m bench family --seed {seed}`, in {minutes:.0f} minutes with {threads} threads ({machine}, torch {torch}).
Muon for the matrices and AdamW for the rest, bfloat16 autocast, saved in bfloat16. The script and its generators are
in `bench/family` of the repository. Made again with another build of torch, the models differ a little.

They are meant for demonstrations and tests of fused decoding, and of no use for anything else.
"""


@dataclass(frozen=True)
class Made:
    """What came of training one model."""

    name: str
    parameters: int
    tokens: int
    loss: float


def write(folder: Path, models: Sequence[Made], problems: Mapping[str, int], minutes: float, seed: int) -> None:
    """Score every way to answer, and write ``README.md``."""
    text = CARD.format(
        models=_table(
            ["model", "parameters", "tokens read", "loss at the end"],
            [[f"`{m.name}`", f"{m.parameters:,}", f"{m.tokens:,}", f"{m.loss:.3f}"] for m in models],
        ),
        vocab=tokenizer.VOCAB_SIZE,
        samples=_quoted(islice(corpus.pretraining(seed), 6)),
        problems=" and ".join(f"{count:,} of {task}" for task, count in problems.items()),
        examples="\n\n".join(_quoted([p.prompt + p.completion for p in corpus.held_out(t)[:1]]) for t in corpus.TASKS),
        held_out=len(corpus.held_out("math")),
        scores=_scores(folder),
        seed=seed,
        minutes=minutes,
        threads=torch.get_num_threads(),
        machine=platform.machine(),
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _scores(folder: Path) -> str:
    rows: dict[str, list[str]] = {}
    for task in corpus.TASKS:
        for title, share in evaluate.accuracies(folder, task, corpus.held_out(task)).items():
            rows.setdefault(title, [title]).append(f"{share:.1%}")
    return _table(["", *corpus.TASKS], rows.values())


def _quoted(texts: Iterable[str]) -> str:
    return "\n".join("    " + line for text in texts for line in text.splitlines())


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
