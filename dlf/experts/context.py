"""What an expert and its base read: a model, a layout, and the prompt itself or another in its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

from dlf.text.layout import Example

__all__ = ["LARGE", "Context", "Large", "PromptKey", "Read"]


@dataclass(frozen=True)
class PromptKey:
    """A prompt beside the request's own: the ``"negative"`` or ``"positive"`` one of an expert."""

    which: str
    expert: str


@dataclass(frozen=True)
class Context:
    """A model and what it reads.

    Attributes
    ----------
    model
        Folder or hub id; None for the large model's weights, on a lane beside the large model's own.
    template
        How its prompt is written; the engine's if None.
    examples, adapter
        Examples before the prompt, and a LoRA adapter.
    prompt
        The prompt that it reads in place of the request's.
    """

    model: str | os.PathLike[str] | None
    template: str | None = None
    examples: tuple[Example, ...] = ()
    adapter: str | os.PathLike[str] | None = None
    prompt: PromptKey | None = None


@dataclass(frozen=True)
class Large:
    """The large model as it decodes: its own lane."""


LARGE = Large()
Read: TypeAlias = Context | Large | None  # None: the uniform distribution
