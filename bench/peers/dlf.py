"""dlf itself: the large model with an expert and its base, or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dlf


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Fill the cache of quantized weights, as a user's first run does; "file" are the weights of a GGUF file."""
    import dlf

    os.environ["DLF_CACHE"] = str(scratch)
    if weights != "file":
        dlf.Engine(folder, weights=weights, max_batch=1).close()
    return folder


def read_bytes(folder: Path, weights: str) -> int:
    """Bytes of one bfloat16 model's weights that a token reads: not an untied embedding, of which it reads one row."""
    from bench.peers import gguf_file
    from dlf.checkpoints.config import read_config
    from dlf.checkpoints.precision import Precision
    from dlf.checkpoints.quantized import weights_bytes

    if weights == "file":
        return gguf_file.read_bytes(folder)

    config = read_config(folder)
    embedding = 0 if config.tie_word_embeddings else 2 * config.spec.vocab_size * config.spec.hidden_size
    return weights_bytes(config, Precision.stored(weights)) - embedding


class Turns:
    """One sequence whose text every turn reads again as its prompt; the tokens' times leave that out."""

    def __init__(self, engine: dlf.Engine, prompt: Sequence[int]) -> None:
        self.engine, self.text = engine, list(prompt)

    def __iter__(self) -> Turns:
        return self

    def __next__(self) -> int:
        return int(self._decode(1).tokens[0])

    def timed(self, count: int) -> list[float]:
        """Seconds of each token, after a first one that includes reading the text."""
        return [float(seconds) for seconds in self._decode(1 + count).timings.token_times]

    def _decode(self, count: int) -> dlf.Completion:
        found = self.engine.generate(self.text, max_new_tokens=count, ignore_eos=True, speculate=False)
        # The next turn decodes the last token again, as its first.
        self.text += [int(token) for token in found.tokens[: max(1, count - 1)]]
        return found


class Dlf:
    """One engine, one sequence."""

    def __init__(self, paths: Sequence[Path], weights: str, threads: int, context: int, device: str) -> None:
        import dlf

        experts = [dlf.Expert(*paths[1:])] if len(paths) > 1 else []
        options = {
            "weights": None if weights == "file" else weights,
            "threads": threads,
            "max_batch": 1,
            "max_context": context,
            "prefix_cache_bytes": 0,
            "device": device,
        }
        self.engine = dlf.Engine(paths[0], experts, **options)
        self.weight_bytes = sum(read_bytes(path, weights) for path in paths)
        self.settings = options | {"combine": "select", "match": "symmetric", "memory": self.engine.memory.by_part()}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        return Turns(self.engine, prompt)


def load(paths: Sequence[Path], weights: str, threads: int, context: int, device: str = "cpu") -> Dlf:
    os.environ["DLF_CACHE"] = str(paths[0].parent)
    return Dlf(paths, weights, threads, context, device)
