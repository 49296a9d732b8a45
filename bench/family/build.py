"""Makes the whole family: tokenizer, base models, small and large fine-tuned models, held-out problems, model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from bench.family import card, corpus, tokenizer, train

__all__ = ["main"]

LARGE = {"hidden": 208, "layers": 5, "heads": 4, "intermediate": 560}
SMALL = {"hidden": 96, "layers": 3, "heads": 4, "intermediate": 256}
PRETRAIN = train.Run(steps=1600, rows=32, learning_rate=4e-3)
# Little training, as for the models of the paper, so that the bases' knowledge stays.
FINE_TUNE = train.Run(steps=200, rows=32, learning_rate=5e-4)
MULTI = "multi"  # fine-tuned on all tasks at once
MULTI_TASK = replace(FINE_TUNE, steps=3 * FINE_TUNE.steps)
SHIPPED_TASKS = ["math", "facts"]  # the tasks of `dlf demo`, whose answers are right or wrong
SHIPPED_PROBLEMS = 200  # of each task
WORK = Path("build/family")
ZOO = Path(__file__).parents[2] / "dlf" / "zoo"


def main(
    work: Annotated[Path, typer.Option(help="Folder of all models, from which an interrupted run continues.")] = WORK,
    output: Annotated[Path, typer.Option(help="Folder of the models that ship with the package.")] = ZOO,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the text.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of the training.")] = None,
) -> None:
    """Train the miniature family from scratch."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    tokens = tokenizer.train(seed)
    for name, shape in (("large-base", LARGE), ("small-base", SMALL)):
        _make(work, name, tokens, partial(_pretrain, tokens, shape, seed))
    for size, suffix in (("small", "expert"), ("large", "tuned")):
        for task in [*corpus.SEEN, MULTI]:
            _make(work, f"{task}-{suffix}", tokens, partial(_fine_tune, tokens, work / f"{size}-base", task, seed))
    _ship(work, output)
    made = {folder.parent.name: json.loads(folder.read_text()) for folder in sorted(work.glob("*/made.json"))}
    card.write(output, made, seed, SHIPPED_PROBLEMS)
    minutes = sum(model["seconds"] for model in made.values()) / 60
    console.print(f"the family is in {output}, made in {minutes:.0f} minutes; all of its models are in {work}")


Made = tuple[LlamaForCausalLM, train.Result]


def _make(work: Path, name: str, tokens: Tokenizer, make: Callable[[str, Path], Made]) -> None:
    """Train a model and write it as a Hugging Face folder in bfloat16, unless it exists."""
    folder, checkpoint = work / name, work / "checkpoints" / f"{name}.pt"
    if (folder / "made.json").exists():
        return
    model, result = make(name, checkpoint)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(tokens, folder)
    (folder / "made.json").write_text(json.dumps(asdict(result) | {"parameters": model.num_parameters()}))
    checkpoint.unlink(missing_ok=True)


def _pretrain(tokens: Tokenizer, shape: dict[str, int], seed: int, name: str, checkpoint: Path) -> Made:
    model = train.new_model(**shape, vocab=tokens.get_vocab_size(), seed=seed)
    return model, train.pretrain(model, tokens, replace(PRETRAIN, seed=seed), name, checkpoint)


def _fine_tune(tokens: Tokenizer, base: Path, task: str, seed: int, name: str, checkpoint: Path) -> Made:
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    problems, run = (corpus.multi_task(seed), MULTI_TASK) if task == MULTI else (corpus.training(task, seed), FINE_TUNE)
    return model, train.fine_tune(model, tokens, problems, replace(run, seed=seed), name, checkpoint)


def _ship(work: Path, output: Path) -> None:
    """Copy the models and problems that ship: the bases, the small experts, and the first held-out problems."""
    for name in ["large-base", "small-base", *(f"{task}-expert" for task in [*corpus.SEEN, MULTI])]:
        shutil.copytree(work / name, output / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("made.json"))
    folder = output / "problems"
    folder.mkdir(parents=True, exist_ok=True)
    for task in SHIPPED_TASKS:
        problems = corpus.held_out(task, SHIPPED_PROBLEMS)
        lines = [json.dumps({"prompt": problem.prompt, "answer": problem.answer}) for problem in problems]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
