"""Holds weights in huge pages: a step, which reads all of them, then looks up far fewer page addresses."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dlf.checkpoints.precision import TensorLayout

__all__ = ["HugePages", "Place", "leave", "placement"]

LEAST_BYTES = 64 << 20  # smaller models gain nothing
ALIGNMENT = 4096
HUGE_PAGE = 2 << 20
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Place:
    """Decides where the tensors of a checkpoint stay.

    Parameters
    ----------
    memory : HugePages, optional
        Where some of them are copied to.
    names
        Which ones.
    """

    memory: HugePages | None = None
    names: frozenset[str] = frozenset()

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that was read where it will stay."""
        if self.memory is None:
            return tensor
        if name in self.names:
            return self.memory.copy(tensor)
        # A view would keep its whole mapping alive, which a vector is not worth.
        return tensor.clone() if tensor.dim() == 1 else tensor

    def leaves(self, name: str) -> bool:
        """Whether a tensor of this name stays where it is."""
        return self.memory is None or name not in self.names

    def gather(
        self, pieces: Iterable[Mapping[str, torch.Tensor]], layouts: Mapping[str, TensorLayout]
    ) -> dict[str, torch.Tensor]:
        """Return tensors that come in pieces where they will stay; only one piece is held beside them.

        Parameters
        ----------
        pieces
            Whole tensors by name, or neighbouring stretches of their first axis, in order.
        layouts
            Of each whole tensor.
        """
        found: dict[str, torch.Tensor] = {}
        filled = dict.fromkeys(layouts, 0)
        for piece in pieces:
            for name, tensor in piece.items():
                if tuple(tensor.shape) == layouts[name].shape:
                    found[name] = self(name, tensor)
                    continue
                if name not in found:
                    found[name] = self._room(name, layouts[name].shape, tensor.dtype)
                begin, filled[name] = filled[name], filled[name] + len(tensor)
                found[name][begin : filled[name]] = tensor
        return found

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self.memory is None or self.leaves(name):
            return torch.empty(shape, dtype=dtype)
        return self.memory.room(shape, dtype)


leave = Place()
"""Leaves every tensor where it is."""


def placement(sizes: Mapping[str, int]) -> Place:
    """Return a `Place` that copies the tensors of these names and sizes (bytes) to huge pages, if that helps."""
    memory = HugePages.available_for(sizes)
    return leave if memory is None else Place(memory, frozenset(sizes))


class HugePages:
    """Room for tensors in one anonymous mapping of transparent huge pages.

    A mapped file has pages of 4 KiB. If looking up addresses is slower than reading, as on virtual machines, copying
    the file once makes every later step faster (int4 weights of 1.4B parameters: 23 ms instead of 27). The copy belongs
    to this process, whereas a mapped file is shared with others that load it.

    Parameters
    ----------
    nbytes
        Room for tensors, in bytes. Memory is used as they are copied.
    count
        Number of tensors; each begins on a page of 4 KiB.
    """

    def __init__(self, nbytes: int, count: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, nbytes + count * ALIGNMENT + HUGE_PAGE, flags=flags)
        memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)
        self._next = -self._memory.data_ptr() % HUGE_PAGE

    @classmethod
    def available_for(cls, sizes: Mapping[str, int]) -> HugePages | None:
        """Room for tensors of these sizes; None if it would not help, or the machine does not have it."""
        total = sum(sizes.values())
        if total < LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return None
        try:
            if "[never]" in ENABLED.read_text() or total > _available_bytes() - HUGE_PAGE:
                return None
            return cls(total, len(sizes))
        except (OSError, ValueError):
            return None

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor into this memory, which lives as long as any tensor in it."""
        return self.room(tensor.shape, tensor.dtype).copy_(tensor)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of this memory that is yet to be filled."""
        end = self._next + math.prod(shape) * dtype.itemsize
        room = self._memory[self._next : end].view(dtype).view(shape)
        self._next = -(-end // ALIGNMENT) * ALIGNMENT
        return room


def _available_bytes() -> int:
    """Bytes that the machine can give without swapping."""
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"{MEMINFO} does not say how much memory is available")
