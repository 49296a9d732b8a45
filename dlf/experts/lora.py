"""A LoRA adapter as an expert."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dlf.checkpoints.hub import label_of
from dlf.errors import OptionTypeError
from dlf.experts.context import Context, Read
from dlf.text.layout import Layout

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter on a small model, measured against that model without it.

    The adapter is not merged: its low-rank updates are added in the base's own pass, to the rows of its lane. A base
    with many adapters therefore costs little more than the base alone. An embedding or a head that the adapter replaces
    is read beside the base's, and takes its memory. Adapters are those of LoRA (Hu et al., arXiv
    2106.09685) as PEFT saves them, with ranks and alphas of single modules and rsLoRA (2312.03732).

    Parameters
    ----------
    base : str or path, optional
        Folder or hub id of the checkpoint that the adapter was trained on; the engine's ``base`` if None.
    adapter : str or path
        Folder or hub id with ``adapter_config.json`` and ``adapter_model.safetensors``.
    name : str, optional
        Its name; the last part of `adapter` if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of the base's weights; the engine's ``weights`` if not given. The adapter itself stays in floats.
    merge : bool
        Whether to fold the adapter into a copy of the base, kept in dlf's cache, which then is a model of its own.
        Needed for DoRA (2402.09353).
    template, base_template, alpha, alpha_max, mix : optional
        As for `dlf.Expert`.

    Raises
    ------
    ValueError, TypeError
        If a template is invalid. The files are read when an engine is made.

    Examples
    --------
    >>> dlf.Lora("small-base", "my-adapter")  # doctest: +SKIP
    """

    base: str | os.PathLike[str] | None
    adapter: str | os.PathLike[str]
    name: str | None = None
    weights: str | None = None
    merge: bool = False
    template: str | None = None
    base_template: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, (str, os.PathLike)):
            raise OptionTypeError(f"adapter is a path or a hub id, not {type(self.adapter).__name__}", "adapter")
        for template in (self.template, self.base_template):
            Layout(template)  # raises

    @property
    def label(self) -> str:
        """The name, or the last part of the adapter's path or hub id."""
        return self.name or label_of(self.adapter)

    @property
    def reads(self) -> tuple[Read, Read]:
        """What the expert and its base read."""
        return Context(self.base, self.template, adapter=self.adapter), Context(self.base, self.base_template)
