"""The yardstick: reading memory and nothing else, by as many threads as the engines have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

READ_BYTES = 512 << 20  # many times the last cache of any processor
COPIES = 8  # on a card, so that putting them on their way is a small part of their time


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Nothing to convert."""
    return folder


class Reader:
    """Reads a large buffer where an engine decodes a token."""

    def __init__(self, threads: int) -> None:
        import torch

        from dlf.checkpoints.huge_pages import HugePages

        torch.set_num_threads(threads)
        # Integers, since their sum has no long chain of dependent additions that memory would wait for; huge pages,
        # since memory is read faster from them.
        self.data = HugePages(READ_BYTES, 1).copy(torch.ones(READ_BYTES // 8, dtype=torch.int64))
        self.weight_bytes = READ_BYTES
        self.settings = {"bytes": READ_BYTES, "reads with": "torch.sum of int64 in huge pages"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        while True:
            yield self.data.sum()


class Copier:
    """On a card the yardstick is a copy, which reads and writes."""

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
    """What reads the memory that a device's models lie in; that of an emulated one is the host's."""
    import torch

    return Copier(device) if device != "cpu" and torch.cuda.is_available() else Reader(threads)


def load(paths: Sequence[Path], weights: str, threads: int, context: int, device: str = "cpu") -> Reader | Copier:
    return yardstick(threads, device)
