"""dlf itself: the large model with an expert and its base, or alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

EMBEDDING = "model.embed_tokens.weight"


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Quantized weights are made once and kept in the cache, as at a user's first run."""
    import dlf

    os.environ["DLF_CACHE"] = str(scratch)
    dlf.Engine(folder, weights=weights, max_batch=1).close()
    return folder


def read_bytes(folder: Path, weights: str) -> int:
    """Bytes of one model's weights that a token reads."""
    from dlf.checkpoint import expected_tensors
    from dlf.config import read_config

    total = 0.0
    for name, shape in expected_tensors(read_config(folder)).items():
        count = math.prod(shape)
        if name == EMBEDDING:
            continue
        if len(shape) == 1 or weights == "bf16":
            total += 2 * count
        elif weights == "int8":  # and a float32 scale for each output channel
            total += count + 4 * shape[0]
        else:  # and a bfloat16 scale for each 32 inputs
            total += count / 2 + 2 * count / 32
    return int(total)


class Dlf:
    """One engine, one sequence."""

    def __init__(self, paths: Sequence[Path], weights: str, threads: int, context: int) -> None:
        import dlf

        experts = [dlf.Expert(*paths[1:])] if len(paths) > 1 else []
        options = {"weights": weights, "threads": threads, "max_batch": 1, "max_context": context}
        self.engine = dlf.Engine(paths[0], experts, **options)
        self.weight_bytes = sum(read_bytes(path, weights) for path in paths)
        self.settings = options | {"combine": "select", "match": "symmetric"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        room = self.engine.max_context - len(prompt)
        return self.engine.stream(list(prompt), max_new_tokens=room, ignore_eos=True)


def load(paths: Sequence[Path], weights: str, threads: int, context: int) -> Dlf:
    os.environ["DLF_CACHE"] = str(paths[0].parent)
    return Dlf(paths, weights, threads, context)
