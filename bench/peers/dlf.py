"""dlf itself: the large model with an expert and its base, or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Quantized weights are made once and kept in the cache, as at a user's first run."""
    import dlf

    os.environ["DLF_CACHE"] = str(scratch)
    dlf.Engine(folder, weights=weights, max_batch=1).close()
    return folder


def read_bytes(folder: Path, weights: str) -> int:
    """Bytes of one bfloat16 model's weights that a token reads: of an embedding that is no head it is one row."""
    from dlf.config import read_config
    from dlf.precision import Precision
    from dlf.quantized import weights_bytes

    config = read_config(folder)
    embedding = 0 if config.tie_word_embeddings else 2 * config.vocab_size * config.hidden_size
    return weights_bytes(config, Precision.stored(weights)) - embedding


class Dlf:
    """One engine, one sequence."""

    def __init__(self, paths: Sequence[Path], weights: str, threads: int, context: int) -> None:
        import dlf

        experts = [dlf.Expert(*paths[1:])] if len(paths) > 1 else []
        options = {
            "weights": weights,
            "threads": threads,
            "max_batch": 1,
            "max_context": context,
            "prefix_cache_bytes": 0,
        }
        self.engine = dlf.Engine(paths[0], experts, **options)
        self.weight_bytes = sum(read_bytes(path, weights) for path in paths)
        self.settings = options | {"combine": "select", "match": "symmetric"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        room = self.engine.max_context - len(prompt)
        return self.engine.stream(list(prompt), max_new_tokens=room, ignore_eos=True, speculate=False)


def load(paths: Sequence[Path], weights: str, threads: int, context: int) -> Dlf:
    os.environ["DLF_CACHE"] = str(paths[0].parent)
    return Dlf(paths, weights, threads, context)
