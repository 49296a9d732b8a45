"""Folds an adapter into a copy of its base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlf.adapters.adapter import AdapterFile
from dlf.adapters.config import CONFIG
from dlf.adapters.updates import LowRank
from dlf.checkpoints.checkpoint import is_finite
from dlf.checkpoints.content_hash import file_hash, sha256
from dlf.checkpoints.source import Source
from dlf.errors import CheckpointError
from dlf.merging.merge import identity, read_finite, write_checkpoint

__all__ = ["Fold"]


@dataclass(frozen=True)
class Fold:
    """A base and the adapter that is folded into it.

    Parameters
    ----------
    base, adapter
        Both, with no weights read yet.
    """

    base: Source
    adapter: AdapterFile

    def check(self) -> None:
        """Check that the adapter fits the base.

        Raises
        ------
        CheckpointError
            If it does not.
        """
        self.adapter.read(self.base.config)
        self.adapter.read_tables(self.base.config)

    def identity(self, cache: Path) -> list[Any]:
        """Everything that the result depends on."""
        config = sha256(self.adapter.folder / CONFIG)
        return ["fold", identity(self.base, cache), config, file_hash(self.adapter.path, cache)]

    def write(self, folder: Path) -> None:
        """Write the folded checkpoint into an empty folder.

        Raises
        ------
        CheckpointError, ValueError, OSError
            As `Merge.write`.
        """
        updates = self.adapter.read(self.base.config)
        config = self.base.config
        modules = config.linear_modules()
        tables = self.adapter.read_tables(config)
        by_name = {config.family.tensor(slot): update for slot, update in tables.items()}
        tied = config.tie_word_embeddings and tables.get("embedding") is tables.get("head")

        def tensors(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for name in names:
                weight = read_finite(self.base, name)
                module = name.removesuffix(".weight")
                table, update = by_name.get(name), updates.get(module)
                if table is not None:
                    weight, update = table.replaced(weight), table.low_rank
                if update is None:
                    folded = weight
                elif table is not None:
                    folded = fold(weight, update)
                elif modules[module].transposed:
                    folded = fold(weight.t(), update).t().contiguous()
                else:
                    folded = fold(weight, update)
                if not is_finite(folded):
                    raise CheckpointError(f"{self.adapter.path} makes values of tensor '{name}' that are not finite")
                yield name, folded

        task = f"Folding {self.adapter.folder.name}"
        write_checkpoint(self.base, folder, tensors, task, own_head=config.tie_word_embeddings and not tied)


def fold(weight: torch.Tensor, update: LowRank) -> torch.Tensor:
    """Add an update to a weight [out, in], in float32; the result has the weight's type.

    It is W + s B A. With DoRA's magnitudes m (2402.09353, equation 5) each row of that is divided by its norm, times m.
    """
    folded = weight.float() + update.scale * (update.b.float() @ update.a.float())
    if update.magnitude is not None:
        folded *= (update.magnitude.float() / folded.norm(dim=1))[:, None]
    return folded.to(weight.dtype)
