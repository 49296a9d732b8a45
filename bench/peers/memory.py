"""The yardstick: only reads memory, with as many threads as the engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

READ_BYTES = 512 << 20  # many times the last-level cache of any processor
COPIES = 8  # on a card, so that launching them is a small part of their time


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Return the folder; there is nothing to convert."""
    return folder


class Reader:
    """Reads a large buffer for each token."""

    def __init__(self, threads: int) -> None:
        import torch

        from dlf.checkpoints.huge_pages import HugePages

        torch.set_num_threads(threads)
        # Integers, since a float sum has a long chain of dependent additions that would slow the reads; huge pages,
        # since they are read faster.
        self.data = HugePages(READ_BYTES, 1).copy(torch.ones(READ_BYTES // 8, dtype=torch.int64))
        self.weight_bytes = READ_BYTES
        self.settings = {"bytes": READ_BYTES, "reads with": "torch.sum of int64 in huge pages"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        while True:
            yield self.data.sum()


class Copier:
    """Copies a buffer on a card for each token, which reads and writes."""

    def __init__(self, device: str) -> None:
        import torch

        self.source = torch.ones(READ_BYTES // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.weight_bytes = 2 * COPIES * READ_BYTES
        self.settings = {"bytes": READ_BYTES, "reads with": "torch.Tensor.copy_ on the card, read and written"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        import torch

        while True:
            for _ in range(COPIES):
                self.target.copy_(self.source)
            torch.cuda.synchronize(self.source.device)
            yield None


def yardstick(threads: int, device: str) -> Reader | Copier:
    """A yardstick for the memory of a device's models; an emulated device has the host's memory."""
    import torch

    return Copier(device) if device != "cpu" and torch.cuda.is_available() else Reader(threads)


def load(paths: Sequence[Path], weights: str, threads: int, context: int, device: str = "cpu") -> Reader | Copier:
    return yardstick(threads, device)
