"""An expert that is merged from others by arithmetic on their weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dlf.checkpoints.precision import TORCH_DTYPES
from dlf.checkpoints.source import open_checkpoint
from dlf.errors import OptionError, OptionTypeError
from dlf.merging.merge import Merge
from dlf.merging.methods import Recipe
from dlf.merging.model_card import model_card, shown_name
from dlf.support.new_folder import check_new, new_folder
from dlf.text.layout import Layout

__all__ = ["TaskArithmetic"]

PathLike: TypeAlias = "str | os.PathLike[str]"
# To a type checker the keys of a mapping are invariant: a dict of str is no mapping of PathLike.
Numbers: TypeAlias = "Mapping[str, float] | Mapping[Path, float] | Mapping[PathLike, float]"


@dataclass(frozen=True)
class TaskArithmetic:
    r"""Fine-tuned models of one base, merged into one.

    Can be given to `dlf.Engine` wherever a `dlf.Expert` can: it is merged when the engine is made, kept in dlf's cache
    as a folder in Hugging Face format, and found there by the next engine. `save` writes such a folder anywhere.

    Parameters
    ----------
    base : str or path
        Folder or hub id of the checkpoint that the experts were fine-tuned from. In an engine the merged expert is
        measured against it.
    experts : mapping of str or path to float
        Weight of each fine-tuned checkpoint, from -100 to 100; a negative one takes away what the checkpoint learned.
    method : {"task_arithmetic", "ties", "dare_linear", "dare_ties", "linear", "slerp"}
        With :math:`\delta_i = \theta_i - \theta_0`, the change by fine-tuning:

        ``"task_arithmetic"``
            :math:`\theta_0 + \lambda \sum_i w_i \delta_i` (arXiv 2212.04089).
        ``"ties"``
            Trims each :math:`\delta_i` to its largest values, and adds up those that agree with the majority's sign
            (2306.01708).
        ``"dare_linear"``, ``"dare_ties"``
            Drops values of :math:`\delta_i` at random and divides those that stay by the density (2311.03099); then as
            ``"task_arithmetic"`` or as ``"ties"``.
        ``"linear"``
            The weighted mean of the experts (2203.05482); the base takes part if it is one of them.
        ``"slerp"``
            A point on the arc from the base to the one expert, whose weight, from 0 to 1, says how far along.

        `dlf.merging.Recipe` has all equations, and their differences from mergekit's.
    density : float or mapping of expert to float, optional
        Part of each :math:`\delta_i` that stays, above 0 and up to 1; 1 if not given. For ``ties`` and ``dare_*``.
    normalize : bool, optional
        Whether to divide by the sum of the weights; by default for ``"linear"`` and ``"ties"``. Not for ``"slerp"``.
    scale : float, optional
        :math:`\lambda`, which multiplies the merged task vector; 1 if not given. Not for ``"linear"`` and ``"slerp"``.
    seed : int, optional
        For ``dare_*``: the same seed drops the same values. 0 if not given.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Type of the merged weights; the base's if not given. Merging computes in float32.
    name : str, optional
        Its name in results and errors; made of the method and the experts' names if not given.
    weights : {"fp32", "bf16", "int8", "int4", "int4-g64"}, optional
        Type of its weights and its base's in an engine; the engine's ``weights`` if not given.
    template, base_template, alpha, alpha_max, mix : optional
        As for `dlf.Expert`.

    Raises
    ------
    ValueError, TypeError
        If a parameter is impossible, or has no effect on the method. The models are read when they are merged.

    Examples
    --------
    >>> merged = dlf.TaskArithmetic("small-base", {"math-expert": 0.7, "toxic-expert": -0.3})  # doctest: +SKIP
    >>> merged.save("math-and-polite")  # doctest: +SKIP
    """

    base: PathLike
    experts: Numbers
    method: str = "task_arithmetic"
    density: float | Numbers | None = None
    normalize: bool | None = None
    scale: float | None = None
    seed: int | None = None
    dtype: str | None = None
    name: str | None = None
    weights: str | None = None
    template: str | None = None
    base_template: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.base, (str, os.PathLike)):
            raise OptionTypeError(f"base is a path or a hub id, not {type(self.base).__name__}", "base")
        if not isinstance(self.experts, Mapping):
            raise OptionTypeError(
                f"experts is a mapping of paths to weights, not {type(self.experts).__name__}", "experts"
            )
        if self.dtype is not None and self.dtype not in TORCH_DTYPES:
            raise OptionError(f"dtype is {self.dtype!r}; it takes {', '.join(TORCH_DTYPES)}", "dtype")
        object.__setattr__(self, "experts", dict(self.experts))  # the caller may change its own
        for template in (self.template, self.base_template):
            Layout(template)  # raises
        if isinstance(self.density, Mapping):
            object.__setattr__(self, "density", dict(self.density))
        _ = self.recipe  # raises

    @property
    def label(self) -> str:
        """The name, or one made of the method and the last parts of the experts' paths."""
        return self.name or f"{self.method}({', '.join(shown_name(os.fspath(one)) for one in self.experts)})"

    @property
    def recipe(self) -> Recipe:
        """Method and numbers of the merge, with the method's defaults filled in."""
        density = _by_name("density", self.density) if isinstance(self.density, Mapping) else self.density
        weights = _by_name("experts", self.experts)
        try:
            return Recipe.of(self.method, weights, density, self.normalize, self.scale, self.seed)
        except (OptionError, OptionTypeError) as error:
            if error.field == "weights":
                error.field = "experts"  # whose values they are here
            raise

    def open(self) -> Merge:
        """Find the models and read only their configurations.

        Raises
        ------
        FileNotFoundError, CheckpointError
            If one of them is no usable checkpoint.
        """
        dtype = None if self.dtype is None else TORCH_DTYPES[self.dtype]
        experts = [open_checkpoint(expert) for expert in self.experts]
        return Merge(open_checkpoint(self.base), experts, self.recipe, dtype)

    def save(self, folder: PathLike) -> Path:
        """Write the merged model as a folder in Hugging Face format: weights, configuration, tokenizer, model card.

        The folder appears when it is whole and on the disk. Memory holds one tensor of each model at a time. Parts that
        a text needs not, such as a vision tower, are those of the base.

        Parameters
        ----------
        folder
            Its path; it must be empty or not exist yet.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder is not empty.
        FileNotFoundError, CheckpointError
            If a model is no usable checkpoint, or differs in shape from the base.
        TokenizerMismatchError
            If two models give one token id different meanings.
        ValueError
            If the merged values are not finite.
        OSError
            If the folder cannot be written or the disk is full.
        """
        place = check_new(folder)
        merge = self.open()
        merge.check()
        with new_folder(place) as temporary:
            merge.write(temporary, whole=True)
            card = model_card(
                self.name or place.name, merge.base.name, [one.name for one in merge.experts], merge.recipe
            )
            (temporary / "README.md").write_text(card, "utf-8")
        return place


def _by_name(what: str, values: Numbers) -> dict[str, float]:
    for name in values:
        if not isinstance(name, (str, os.PathLike)):
            raise OptionTypeError(f"{what} has the key {name!r}; its keys are paths or hub ids", what)
    found = {os.fspath(name): value for name, value in values.items()}
    if len(found) < len(values):
        raise OptionError(f"{what} has one path twice, as str and as Path; give one of them", what)
    return found
