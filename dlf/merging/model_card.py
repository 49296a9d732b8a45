"""The README.md of a merged model."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dlf.checkpoints.hub import HUB_ID, label_of
from dlf.merging.methods import METHODS, Recipe

__all__ = ["model_card", "shown_name"]


def model_card(title: str, base: str, experts: Sequence[str], recipe: Recipe) -> str:
    """Return a model card with the front matter of the Hugging Face hub.

    Parameters
    ----------
    title
        Name of the merged model.
    base, experts
        The models as they were given. Only the last part of a local folder is shown: cards are published.
    recipe
        How they were merged.
    """
    from huggingface_hub import ModelCardData

    on_hub = [name.partition("@")[0] for name in (base, *experts) if is_hub_id(name)]
    metadata = ModelCardData(
        base_model=list(dict.fromkeys(on_hub)) or None,
        base_model_relation="merge" if on_hub else None,
        library_name="transformers",
        tags=["merge", "dlf"],
    )
    method = METHODS[recipe.method]
    title = _one_line(title)
    source = f", [arXiv {method.arxiv}](https://arxiv.org/abs/{method.arxiv})" if method.arxiv else ""
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n",
        f"Made by `dlf merge` from fine-tuned models of one base by their weights: {method.title} (`{recipe.method}`"
        f"{source}).\n",
        "| model | weight |" + (" density |" if method.sparsify else ""),
        "| --- | ---: |" + (" ---: |" if method.sparsify else ""),
        f"| {_shown(base)} | base |" + (" |" if method.sparsify else ""),
    ]
    for name, weight, density in zip(experts, recipe.weights, recipe.densities, strict=True):
        lines.append(f"| {_shown(name)} | {weight:g} |" + (f" {density:g} |" if method.sparsify else ""))
    settings = []
    if method.normalize is not None:
        settings.append(f"normalize: {str(recipe.normalize).lower()}")
    if method.task_vectors:
        settings.append(f"lambda: {recipe.scale:g}")
    if method.sparsify == "random":
        settings.append(f"seed: {recipe.seed}")
    if settings:
        lines.append("\n" + ", ".join(settings))
    return "\n".join(lines) + "\n"


def is_hub_id(name: str) -> bool:
    """Whether a model was taken from the hub: a folder of that name has precedence."""
    return HUB_ID.fullmatch(name) is not None and not os.path.isdir(os.path.expanduser(name))


def shown_name(name: str) -> str:
    """A hub id, or the last part of a folder's path."""
    return name if is_hub_id(name) else label_of(name)


def _shown(name: str) -> str:
    text = f"`{_one_line(shown_name(name))}`"
    return f"[{text}](https://huggingface.co/{name.replace('@', '/tree/')})" if is_hub_id(name) else text


def _one_line(text: str) -> str:
    """Replace characters that would end a line or a table cell."""
    return "".join(" " if char in "`|" or not char.isprintable() else char for char in text)
