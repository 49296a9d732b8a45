"""What an adapter changes: low-rank updates of linear layers, and rows of the embedding and the head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["LowRank", "TableUpdate"]


@dataclass(frozen=True)
class LowRank:
    """The update of one linear layer: scale * B A, and DoRA's magnitudes."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scale: float
    magnitude: torch.Tensor | None = None  # [out]


@dataclass(frozen=True)
class TableUpdate:
    """The update of the embedding or the head ``[vocabulary, hidden]``.

    Attributes
    ----------
    rows, tokens
        Rows ``[count, hidden]`` that replace those of these tokens; None if none are.
    low_rank
        Added to the matrix.
    """

    rows: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    low_rank: LowRank | None = None

    def replaced(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix with its new rows."""
        if self.rows is None or self.tokens is None:
            return weight
        return weight.index_copy(0, self.tokens, self.rows.to(weight.dtype))
