"""Compares the exact solver and the paper's grid on one objective, with logits of models that answer problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dlf
from bench.family import corpus
from bench.reading import Reader

__all__ = ["compare"]

PROBLEMS = 100  # for each task


def compare(models: Path, threads: int) -> dict[str, Any]:
    """Mean of (f - a)^2 + (g - b)^2 at every token of the answers, for both, and the distance of their weights."""
    losses: dict[str, list[np.ndarray]] = {"select": [], "grid": []}
    apart = []
    for large, base, expert in _logits(models, threads):
        found = {name: dlf.fusion.solve(large, base, expert[:, None], combine=name, threads=threads) for name in losses}
        for name, one in found.items():
            losses[name].append(np.asarray((one.f - one.target_f[:, 0]) ** 2 + (one.g - one.target_g[:, 0]) ** 2))
        apart.append(np.abs(np.asarray(found["select"].alpha - found["grid"].alpha))[:, 0])
    joined = {name: np.concatenate(parts) for name, parts in losses.items()}
    exact, grid = joined["select"], joined["grid"]
    return {
        "tokens": len(exact),
        "mean objective": {"exact": float(exact.mean()), "grid": float(grid.mean())},
        "median objective": {"exact": float(np.median(exact)), "grid": float(np.median(grid))},
        "exact is worse by more than 1e-5": int((exact > grid + 1e-5).sum()),
        "mean difference of α": float(np.concatenate(apart).mean()),
    }


def _logits(models: Path, threads: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Logits of large model, base and the task's expert at every token of a right answer: [tokens, vocab] each."""
    names = ["large-base", "small-base", *(f"{task}-expert" for task in corpus.SEEN)]
    readers = {name: Reader(models / name, threads) for name in names}
    for task in corpus.SEEN:
        for problem in corpus.held_out(task, PROBLEMS):
            large, base, expert = (
                readers[name].continued(problem.prompt, problem.completion)[1]
                for name in ("large-base", "small-base", f"{task}-expert")
            )
            yield large, base, expert
