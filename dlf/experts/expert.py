"""A fine-tuned model as an expert, and examples as an expert."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dlf.checkpoints.hub import label_of
from dlf.errors import OptionTypeError
from dlf.experts.context import Context, Read
from dlf.text.layout import Layout, as_examples

__all__ = ["Expert", "InContext"]


@dataclass(frozen=True)
class Expert:
    """A fine-tuned small model and the base that it is measured against.

    An expert adds ``alpha * (expert - base)`` to the large model's logits (Fan et al., arXiv 2406.15480, equation 3),
    so the base should be the checkpoint that the fine-tuning started from. Without a base it adds ``alpha * expert``,
    as a reward model over tokens does (GenARM, 2410.08193); with `mix` its probabilities are mixed in (Memory Decoder,
    2508.09874).

    Parameters
    ----------
    model : str or path
        Folder or hub id of the fine-tuned checkpoint.
    base : str, path or False, optional
        Folder or hub id of its base; the engine's ``base`` if not given. False: it has none, and is measured against
        the uniform distribution.
    name : str, optional
        Its name in results, errors and ``generate(experts=[...])``; the last part of `model` if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of its weights and its base's; the engine's ``weights`` if not given.
    template : str, optional
        How the prompt is written for the expert; the engine's ``template`` if not given. ``"chat"`` is its own chat
        template, a text has ``{prompt}`` where the prompt goes.
    base_template : str, optional
        The same for its base.
    alpha : float, optional
        A weight that is given instead of solved. It may be negative, to take away what an anti-expert has learned
        (DExperts, 2105.03023). The other experts are solved as if this one were not there.
    alpha_max : float, optional
        Upper bound of its solved weight; the engine's ``alpha_max`` if not given.
    mix : float, optional
        Share of its probabilities in the result, from 0 to 1, in place of a weight of its logits.
    """

    model: str | os.PathLike[str]
    base: str | os.PathLike[str] | bool | None = None
    name: str | None = None
    weights: str | None = None
    template: str | None = None
    base_template: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        if self.base is True:
            raise OptionTypeError("base is True: give a path or a hub id, or False for no base", "base")
        for template in (self.template, self.base_template):
            Layout(template)  # raises

    @property
    def label(self) -> str:
        """The name, or the last part of the model's path or hub id."""
        return self.name or label_of(self.model)

    @property
    def reads(self) -> tuple[Read, Read]:
        """What the expert and its base read."""
        base = None if isinstance(self.base, bool) else Context(self.base, self.base_template)
        return Context(self.model, self.template), base


@dataclass(frozen=True)
class InContext:
    r"""Examples as an expert: the base reads them before the prompt, and is measured against itself without them.

    Nothing is trained, and no weights are loaded beside the base's: the expert is one more row of its batch. The
    examples are read once, as long as they are in the engine's prefix cache.

    Parameters
    ----------
    base : str or path, optional
        Folder or hub id of the small model; the engine's ``base`` if None.
    examples : list of (question, answer)
        Examples that the expert reads.
    template : str, optional
        How an example and the prompt are written: ``"chat"`` for turns of the base's chat template, or a text with
        ``{question}`` and ``{answer}``, where the prompt is a question without its answer; the engine's ``template``
        if not given. The default is ``"{question} {answer}\n\n"``.
    name : str, optional
        Its name; ``"in-context"`` if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of the base's weights; the engine's ``weights`` if not given.
    alpha, alpha_max, mix : float, optional
        As for `Expert`.

    Raises
    ------
    ValueError, TypeError
        If the examples are not pairs of texts, or the template is invalid.

    Examples
    --------
    >>> shots = [("Q: 2 + 2\nA:", "4"), ("Q: 3 + 5\nA:", "8")]
    >>> dlf.InContext("small-base", shots)  # doctest: +SKIP
    """

    base: str | os.PathLike[str] | None
    examples: Sequence[tuple[str, str]]
    template: str | None = None
    name: str | None = None
    weights: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", as_examples(self.examples))
        Layout(self.template)  # raises

    @property
    def label(self) -> str:
        """The name, or ``"in-context"``."""
        return self.name or "in-context"

    @property
    def reads(self) -> tuple[Read, Read]:
        """What the expert and its base read."""
        return Context(self.base, self.template, tuple(self.examples)), Context(self.base)
