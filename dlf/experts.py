"""What a user hands over to specialise the large model."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Expert"]


@dataclass(frozen=True)
class Expert:
    """A fine-tuned small model and the base that it is measured against.

    What an expert adds to the large model's logits is ``alpha * (expert - base)`` (Fan et al., arXiv 2406.15480,
    equation 3), so the base should be the checkpoint that the fine-tuning started from.

    Parameters
    ----------
    model : str or path
        Folder or hub id of the fine-tuned checkpoint.
    base : str or path, optional
        Folder or hub id of its base; the engine's ``base`` if not given.
    name : str, optional
        What to call it in results and errors; the last part of `model` if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of its weights and its base's; the engine's ``weights`` if not given.
    """

    model: str | os.PathLike[str]
    base: str | os.PathLike[str] | None = None
    name: str | None = None
    weights: str | None = None

    @property
    def label(self) -> str:
        """The name, or the last part of the model's path."""
        return self.name or os.path.basename(os.path.normpath(os.fspath(self.model)))
