"""The model card: describes the family and its training."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench.family import corpus, tokenizer

__all__ = ["write"]

CARD = """\
---
license: apache-2.0
library_name: dlf
tags: [llama, logit-fusion]
---

# The miniature family

These models imitate the paper's, and are small enough to ship with the package: a large and a small base model that
have read the same text, and small experts, which are the small base fine-tuned on one task, or on all of them
(`multi`). They are Llama checkpoints in Hugging Face format. All text is generated; no model knows anything
about the real world.

{models}

The fine-tuned large models (`tuned`) are the upper bound for fusion; only their scores are kept. The
tokenizer is byte-level BPE with {vocab} tokens, in which every digit is a token of its own.

## What they have read

Both base models read documents like these. Some are questions; about a third of them have a right answer, most others
an evasion. No question has the numbers or the thing of a held-out problem, or its wording (`subjects` has only one
wording):

{samples}

Each expert read answered problems of its task, {problems}, and beside them
some of the text above again, without its sentences on `subjects`: models this small forget what they do not rehearse.
No problem shares its wording, or its numbers, town or animal, with a held-out problem; and no story or report of the
pretraining text shares the numbers of one. Held-out problems look like these:

{examples}

## How well they answer

`python -m bench quality` scores {held_out} held-out problems of each task in all ways of the paper and some others; see
`docs/quality.md` of the repository. `problems/*.jsonl` has the first {shipped} of the tasks that `dlf demo` shows.

## How they were made

`python -m bench family --seed {seed}`, in {minutes:.0f} minutes of training with {threads} threads ({machine}, torch
{torch}). Training used Muon for the matrices, AdamW for the rest and bfloat16 autocast; the models are saved in
bfloat16. The script and its generators are in `bench/family` of the repository. Another build of torch gives slightly
different models.

The models are for demonstrations and tests of fused decoding, and are of no other use.
"""


def write(folder: Path, made: Mapping[str, Mapping[str, Any]], seed: int, shipped: int) -> None:
    """Write ``README.md``; `made` has the training results of each model."""
    counts = {task: len(corpus.training(task, seed)) for task in corpus.SEEN}
    rows = [
        [f"`{name}`", f"{one['parameters']:,}", f"{one['tokens']:,}", f"{one['loss']:.3f}"]
        for name, one in made.items()
    ]
    text = CARD.format(
        models=_table(["model", "parameters", "tokens learnt", "loss at the end"], rows),
        vocab=tokenizer.VOCAB_SIZE,
        samples=_quoted(islice(corpus.pretraining(seed), 8)),
        problems=", ".join(f"{count:,} of {task}" for task, count in counts.items()),
        examples="\n\n".join(
            f"`{task}`\n\n" + _quoted([p.prompt + p.completion for p in corpus.held_out(task, 1)])
            for task in corpus.TASKS
        ),
        held_out=f"{corpus.HELD_OUT:,}",
        shipped=shipped,
        seed=seed,
        minutes=sum(one["seconds"] for one in made.values()) / 60,
        threads=torch.get_num_threads(),
        machine=platform.machine(),
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _quoted(texts: Iterable[str]) -> str:
    return "\n".join("    " + line for text in texts for line in text.splitlines())


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
