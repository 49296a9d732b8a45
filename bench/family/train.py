"""Pretraining and fine-tuning of one model: the loop, the optimizers and their schedule."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from bench.family import corpus
from bench.family.problem import Problem
from bench.family.tokenizer import EOS

__all__ = ["CONTEXT", "Result", "Run", "fine_tune", "new_model", "pretrain"]

CONTEXT = 512
BLOCK = 256  # tokens of one row of a pretraining batch
REHEARSED_ROWS, REHEARSED_BLOCK = 8, 128  # rows of pretraining text in a batch of fine-tuning, and their tokens
IGNORED = -100  # a target without loss
CHECKPOINT_STEPS = 100
Batch = tuple[torch.Tensor, torch.Tensor]  # tokens and targets, both [rows, length]


@dataclass(frozen=True)
class Run:
    """Length and learning rate of a training run."""

    steps: int
    rows: int
    learning_rate: float
    seed: int = 0
    warm_up: int = 50


@dataclass(frozen=True)
class Result:
    """Results of a training run."""

    tokens: int  # targets with a loss
    loss: float  # running mean at the end
    seconds: float


def new_model(hidden: int, layers: int, heads: int, intermediate: int, vocab: int, seed: int) -> LlamaForCausalLM:
    """Return a Llama with random weights, half as many key-value heads as heads, and tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, tokenizer: Tokenizer, run: Run, label: str, checkpoint: Path) -> Result:
    """Train on the pretraining text, each document once; continue from `checkpoint` if it exists."""
    blocks = _blocks(tokenizer, corpus.pretraining(run.seed), BLOCK)

    def batch() -> Batch:
        rows = torch.tensor([next(blocks) for _ in range(run.rows)])
        return rows[:, :-1], rows[:, 1:]

    return _train(model, batch, run, label, checkpoint)


def _blocks(tokenizer: Tokenizer, documents: Iterator[str], block: int) -> Iterator[list[int]]:
    """Rows of `block` + 1 tokens, cut from the joined documents."""
    eos = tokenizer.token_to_id(EOS)
    held: list[int] = []
    for document in documents:
        held += tokenizer.encode(document).ids + [eos]
        while len(held) > block:
            yield held[: block + 1]
            del held[:block]


def fine_tune(
    model: LlamaForCausalLM, tokenizer: Tokenizer, problems: list[Problem], run: Run, label: str, checkpoint: Path
) -> Result:
    """Train on answers, and rehearse some pretraining text, without which models this small forget everything else.

    The loss of a problem is that of its completion, not of its prompt.
    """
    eos = tokenizer.token_to_id(EOS)
    prompts = [tokenizer.encode(problem.prompt).ids for problem in problems]
    completions = [tokenizer.encode(problem.completion, add_special_tokens=False).ids + [eos] for problem in problems]
    rehearsed = _blocks(tokenizer, corpus.rehearsal(run.seed), REHEARSED_BLOCK)
    order, draw = list(range(len(problems))), random.Random(run.seed)
    waiting: list[int] = []

    def batch() -> Batch:
        if len(waiting) < run.rows:
            draw.shuffle(order)
            waiting.extend(order)
        rows = [(prompts[row], completions[row]) for row in (waiting.pop() for _ in range(run.rows))]
        rows += [(block[:1], block[1:]) for block in islice(rehearsed, REHEARSED_ROWS)]
        length = max(len(prompt) + len(completion) for prompt, completion in rows)
        tokens = torch.full((len(rows), length), eos)
        targets = torch.full((len(rows), length), IGNORED)
        for i, (prompt, completion) in enumerate(rows):
            first, last = len(prompt), len(prompt) + len(completion)
            tokens[i, :last] = torch.tensor(prompt + completion)
            targets[i, first - 1 : last - 1] = tokens[i, first:last]
        return tokens, targets

    return _train(model, batch, run, label, checkpoint)


def _train(model: LlamaForCausalLM, batch: Callable[[], Batch], run: Run, label: str, checkpoint: Path) -> Result:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizers = _optimizers(model, run.learning_rate)
    warm_up = min(run.warm_up, run.steps // 4)

    def scale(step: int) -> float:  # rises, then falls to zero
        return min((step + 1) / (warm_up + 1), (run.steps - step) / (run.steps - warm_up))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, scale) for optimizer in optimizers]
    parts = [model, *optimizers, *schedules]
    begin, learnt, mean, seconds = 0, 0, 0.0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        begin, learnt, mean, seconds = saved["step"], saved["learnt"], saved["mean"], saved["seconds"]
        for _ in range(begin):
            batch()  # skips what was read before
    with tqdm(range(begin, run.steps), desc=label, unit="step", initial=begin, total=run.steps) as bar:
        for step in bar:
            if step % CHECKPOINT_STEPS == 0 and step > begin:
                now = seconds + bar.format_dict["elapsed"]
                _save(checkpoint, parts, {"step": step, "learnt": learnt, "mean": mean, "seconds": now})
            tokens, targets = (part.to(device) for part in batch())
            with torch.autocast(device, torch.bfloat16):
                logits = model(input_ids=tokens, use_cache=False).logits
            loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            learnt += int((targets != IGNORED).sum())
            mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        seconds += bar.format_dict["elapsed"]
    model.cpu().eval()
    return Result(learnt, mean, seconds)


def _save(checkpoint: Path, parts: list[Any], counts: dict[str, float]) -> None:
    """Write the state of training; an interruption meanwhile leaves the last state in place."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    written = checkpoint.with_suffix(".part")
    torch.save({"parts": [part.state_dict() for part in parts], **counts}, written)
    os.replace(written, checkpoint)


def _optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, which learn several times faster with it, and AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
