"""Experts that need no training: the large model with and without a prompt, and an amateur."""

from __future__ import annotations

import os
from dataclasses import InitVar, dataclass

from dlf.checkpoints.hub import label_of
from dlf.errors import OptionError, OptionTypeError
from dlf.experts.context import LARGE, Context, PromptKey, Read
from dlf.support.option_values import as_float
from dlf.text.layout import Layout

__all__ = ["Amateur", "Guidance"]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: moves away from what a model says after a negative prompt.

    Adds ``alpha * (logits after the prompt - logits after the negative prompt)`` to the large model's logits, where
    ``alpha = scale - 1`` (Sanchez et al., arXiv 2306.17806). With the prompt without its context as the negative prompt
    this is context-aware decoding (2305.14739). It costs a second row of the large model's batch, and no weights.

    Parameters
    ----------
    model : str or path, optional
        Folder or hub id of a small model that reads both prompts; the large model itself if not given.
    name : str
        Its name in results, errors and ``negative_prompt={...}``.
    scale : float, optional
        The guidance scale of `transformers`; 1 is no guidance. A request may give ``guidance_scale``.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of the model's weights; the engine's ``weights`` if not given.
    template : str, optional
        How its prompts are written; the engine's ``template`` if not given. Without `model` it is for the negative and
        the positive prompt only.
    alpha : float, optional
        ``scale - 1``, as the weight of any other expert. Without a weight and a scale it is solved.
    alpha_max : float, optional
        Upper bound of its solved weight; the engine's ``alpha_max`` if not given.
    positive : bool
        Whether the guided side reads a positive prompt of the request, in a context of its own. Otherwise it reads the
        request's prompt.
    negative_prompt : str, optional
        Negative prompt of requests that give none. If there is none here either, it is the last token of the prompt,
        as in `transformers`.

    Raises
    ------
    ValueError, TypeError
        If a template is invalid, or a scale and a weight are both given.

    Examples
    --------
    >>> engine = dlf.Engine("large", [dlf.Guidance(scale=1.5)])  # doctest: +SKIP
    >>> engine.generate("Write politely.", negative_prompt="Write rudely.")  # doctest: +SKIP
    """

    model: str | os.PathLike[str] | None = None
    name: str = "guidance"
    scale: InitVar[float | None] = None
    weights: str | None = None
    template: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None
    positive: bool = False
    negative_prompt: str | None = None

    def __post_init__(self, scale: float | None) -> None:
        Layout(self.template)  # raises
        if self.model is not None and not isinstance(self.model, (str, os.PathLike)):
            raise OptionTypeError(f"model is a path or a hub id, not {type(self.model).__name__}", "model")
        if self.negative_prompt is not None and (not isinstance(self.negative_prompt, str) or not self.negative_prompt):
            raise OptionTypeError("an expert's negative_prompt is a text; give others to a request", "negative_prompt")
        if scale is not None:
            if self.alpha is not None:
                raise OptionError("scale and alpha are both given; alpha is scale - 1, so leave one out", "scale")
            object.__setattr__(self, "alpha", as_float("scale", scale) - 1.0)

    @property
    def label(self) -> str:
        """The name."""
        return self.name

    @property
    def reads(self) -> tuple[Read, Read]:
        """What the two sides read."""
        negative = Context(self.model, self.template, prompt=PromptKey("negative", self.label))
        if self.positive:
            return Context(self.model, self.template, prompt=PromptKey("positive", self.label)), negative
        return LARGE if self.model is None else Context(self.model, self.template), negative


@dataclass(frozen=True)
class Amateur:
    """Contrastive decoding: moves away from what a small model says.

    Gives ``(1 + alpha) large - alpha * amateur`` (O'Brien and Lewis, arXiv 2309.09117). With ``large_weight=0`` and
    ``alpha=1`` it is the contrastive objective of Li et al. (2210.15097). Both want ``plausibility=0.1``, which keeps
    tokens that only the amateur finds unlikely out.

    Parameters
    ----------
    model : str or path
        Folder or hub id of the amateur: a small model of the large model's family.
    name : str, optional
        Its name in results and errors; the last part of `model` if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of its weights; the engine's ``weights`` if not given.
    template : str, optional
        How the prompt is written for it; the engine's ``template`` if not given.
    alpha : float or None
        Its weight; None to solve it.
    alpha_max : float, optional
        Upper bound of its solved weight; the engine's ``alpha_max`` if not given.

    Raises
    ------
    ValueError, TypeError
        If the template is invalid.

    Examples
    --------
    >>> dlf.Engine("large", [dlf.Amateur("small")], plausibility=0.1)  # doctest: +SKIP
    """

    model: str | os.PathLike[str]
    name: str | None = None
    weights: str | None = None
    template: str | None = None
    alpha: float | None = 0.5
    alpha_max: float | None = None

    def __post_init__(self) -> None:
        Layout(self.template)  # raises

    @property
    def label(self) -> str:
        """The name, or the last part of the model's path or hub id."""
        return self.name or label_of(self.model)

    @property
    def reads(self) -> tuple[Read, Read]:
        """What the large model's side and the amateur read."""
        return LARGE, Context(self.model, self.template)
