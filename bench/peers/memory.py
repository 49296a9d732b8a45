"""The yardstick: reading memory and nothing else, by as many threads as the engines have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

READ_BYTES = 512 << 20  # many times the last cache of any processor


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Nothing to convert."""
    return folder


class Reader:
    """Reads a large buffer where an engine decodes a token."""

    def __init__(self, threads: int) -> None:
        import torch

        from dlf.huge_pages import HugePages

        torch.set_num_threads(threads)
        # Integers, since their sum has no long chain of dependent additions that memory would wait for; huge pages,
        # since memory is read faster from them.
        self.data = HugePages(READ_BYTES, 1).copy(torch.ones(READ_BYTES // 8, dtype=torch.int64))
        self.weight_bytes = READ_BYTES
        self.settings = {"bytes": READ_BYTES, "reads with": "torch.sum of int64 in huge pages"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        while True:
            yield self.data.sum()


def load(paths: Sequence[Path], weights: str, threads: int, context: int) -> Reader:
    return Reader(threads)
