"""Makes the whole family: tokenizer, two base models, two experts, the held-out problems and the model card."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from bench.family import card, corpus, tokenizer, train

__all__ = ["main"]

LARGE = {"hidden": 192, "layers": 5, "heads": 4, "intermediate": 512}
SMALL = {"hidden": 80, "layers": 3, "heads": 4, "intermediate": 216}
# The small base stops early on purpose: with three times the steps it calculates nearly as well as the large one.
PRETRAIN = {
    "large-base": (LARGE, train.Run(steps=2000, rows=24, learning_rate=4e-3)),
    "small-base": (SMALL, train.Run(steps=600, rows=24, learning_rate=4e-3)),
}
FINE_TUNE = train.Run(steps=400, rows=32, learning_rate=4e-3)
PROBLEMS = 3000  # of a task at most
ZOO = Path(__file__).parents[2] / "dlf" / "zoo"


def main(
    output: Annotated[Path, typer.Option(help="Folder that the models are written to.")] = ZOO,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the text.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of the training.")] = None,
) -> None:
    """Train the miniature family from nothing."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    begin = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer.train(seed)
    made = []
    problems = {task: corpus.training(task, PROBLEMS, seed) for task in corpus.TASKS}
    for name, (shape, run) in PRETRAIN.items():
        model = train.new_model(**shape, vocab=tokens.get_vocab_size(), seed=seed)
        result = train.pretrain(model, tokens, replace(run, seed=seed), name)
        made.append(card.Made(name, model.num_parameters(), *result))
        save(model, tokens, output / name)
    for task in corpus.TASKS:
        name = f"{task}-expert"
        expert = LlamaForCausalLM.from_pretrained(output / "small-base", dtype=torch.float32)
        result = train.fine_tune(expert, tokens, problems[task], replace(FINE_TUNE, seed=seed), name)
        made.append(card.Made(name, expert.num_parameters(), *result))
        save(expert, tokens, output / name)
        write_problems(task, output / "problems")
    minutes = (time.perf_counter() - begin) / 60
    with console.status("Scoring"):
        read = {task: len(problems[task]) for task in problems}
        card.write(output, made, read, minutes, seed)
    console.print(f"the family is in {output}, made in {minutes:.0f} minutes")


def save(model: LlamaForCausalLM, tokens: Tokenizer, folder: Path) -> None:
    """Write a checkpoint as the hub's are, in bfloat16, as models are served."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(tokens, folder)


def write_problems(task: str, folder: Path) -> None:
    """Write the held-out problems of a task, one JSON object a line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer}) for p in corpus.held_out(task)]
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
