"""Systems to score: models, and the way to fuse their logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dlf
from bench.family import corpus
from bench.family.build import MULTI
from dlf.recipe import load_recipe

__all__ = ["ALPHAS", "DYNAMIC", "Lineup", "System", "family", "of_recipe"]

ALPHAS = (0.5, 1.0, 1.5)
DYNAMIC = "dynamic"
MODES = ("select", "centroid", "joint")
SHOTS = 2
# A usual weight for the sum of task vectors (Ilharco et al., arXiv 2212.04089).
MERGE_WEIGHT = 0.4


@dataclass(frozen=True)
class System:
    """One engine to score."""

    title: str
    engine: Mapping[str, Any] = field(hash=False)  # arguments of dlf.Engine


@dataclass(frozen=True)
class Lineup:
    """The systems of all tables, by their keys.

    Keys are ``"base"``, ``"tuned/NAME"``, ``"expert/NAME"``, and ``"NAME/WAY"`` for the large model with expert NAME,
    or with all of them where NAME is ``"all"``.
    """

    systems: dict[str, System]
    experts: list[str]  # names


def fusions(large: str, experts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, System]:
    """Every way to fuse each expert alone, and every way to fuse all."""
    found: dict[str, System] = {}
    for name, expert in experts.items():
        alone = {**options, "large": large, "experts": [expert]}
        for alpha in ALPHAS:
            found[f"{name}/{alpha}"] = System(f"α = {alpha:g}", {**alone, "combine": "static", "alpha": [alpha]})
        found[f"{name}/{DYNAMIC}"] = System("dynamic", alone)
        for match in ("forward", "reverse"):
            found[f"{name}/{match}"] = System(match, {**alone, "match": match})
        found[f"{name}/grid"] = System("the paper's grid", {**alone, "combine": "grid"})
    if len(experts) > 1:
        everyone = {**options, "large": large, "experts": list(experts.values())}
        for mode in MODES:
            found[f"all/{mode}"] = System(f"`{mode}`", {**everyone, "combine": mode})
        even = [1 / len(experts)] * len(experts)
        found["all/1.0"] = System("α = 1 / T", {**everyone, "combine": "static", "alpha": even})
    return found


def family(models: Path, tuned: Path | None, options: Mapping[str, Any]) -> Lineup:
    """The systems of the miniature family.

    Parameters
    ----------
    models
        Folder of the bases and experts.
    tuned
        Folder of the fine-tuned large models, if there is one.
    options
        Options of every engine.
    """
    large, small = str(models / "large-base"), str(models / "small-base")
    experts = {name: dlf.Expert(models / f"{name}-expert", base=small, name=name) for name in corpus.SEEN}
    systems = {"base": System("large base", {**options, "large": large})}
    for name in [*corpus.SEEN, MULTI]:
        systems[f"expert/{name}"] = System(f"{name} expert", {**options, "large": str(models / f"{name}-expert")})
        if tuned is not None:
            folder = str(tuned / f"{name}-tuned")
            systems[f"tuned/{name}"] = System("large, fine-tuned", {**options, "large": folder})
    systems |= fusions(large, experts, options)
    multi = dlf.Expert(models / f"{MULTI}-expert", base=small, name=MULTI)
    shown = (f"{MULTI}/1.0", f"{MULTI}/{DYNAMIC}")
    systems |= {key: system for key, system in fusions(large, {MULTI: multi}, options).items() if key in shown}

    for name in corpus.SEEN:
        systems |= examples(name, large, small, options)

    merged = dlf.TaskArithmetic(
        small, {str(models / f"{name}-expert"): MERGE_WEIGHT for name in corpus.SEEN}, name="merged"
    )
    systems["merged/alone"] = System("merged experts", {**options, "large": merged})
    systems["merged/fused"] = System("merged experts, dynamic", {**options, "large": large, "experts": [merged]})
    return Lineup(systems, [*experts])


def examples(task: str, large: str, small: str, options: Mapping[str, Any]) -> dict[str, System]:
    """The large and the small base with examples of a task before each question, and the large one fused with the
    change that the examples make to the small one."""
    shots = [(problem.prompt, problem.completion) for problem in corpus.training(task, 0, SHOTS)]
    expert = dlf.InContext(small, shots, template="{question}{answer}\n\n")
    read = "".join(f"{question}{answer}\n\n" for question, answer in shots) + "{prompt}"
    # The same expert, but its base reads the bare prompt where the large model has a template.
    beside = dlf.Expert(small, base=small, template=read, base_template="{prompt}")
    big, little = {**options, "large": large}, {**options, "large": small}
    return {
        f"shots-large/{task}": System("large base, examples", {**big, "template": read}),
        f"shots-small/{task}": System("small base, examples", {**little, "template": read}),
        f"shots-fused/{task}": System("large base, fused with examples", {**big, "experts": [expert]}),
        f"shots-both/{task}": System("both", {**big, "template": read, "experts": [beside]}),
    }


def of_recipe(path: Path, tuned: str | None, overrides: Mapping[str, Any]) -> Lineup:
    """The systems of a recipe's models.

    Parameters
    ----------
    path
        The recipe; the tables replace its `combine`, `match` and weights.
    tuned
        Folder or hub id of the fine-tuned large model, the upper bound, if there is one.
    overrides
        Options of every engine that replace the recipe's.
    """
    recipe = load_recipe(str(path))
    arguments = recipe.engine_arguments() | overrides
    if "device" in overrides:
        arguments.pop("device_map", None)  # the recipe's map is for other devices
    options = {
        key: value
        for key, value in arguments.items()
        if key not in ("large", "experts", "combine", "match", "alpha") and value is not None
    }
    experts = {expert.label: expert for expert in recipe.experts}
    if len(experts) < len(recipe.experts):
        raise ValueError(f"{path}: two experts have the same name; give each a different 'name'")
    alone = {key: value for key, value in options.items() if key != "base"}
    systems = {"base": System("large base", {**alone, "large": recipe.large})}
    if tuned is not None:
        systems["tuned/recipe"] = System("large, fine-tuned", {**alone, "large": tuned})
    for name, expert in experts.items():
        # An adapter, or examples, cannot run alone as a model.
        model = expert if isinstance(expert, dlf.TaskArithmetic) else getattr(expert, "model", None)
        if model is not None:
            systems[f"expert/{name}"] = System(f"{name} alone", {**alone, "large": model})
    return Lineup(systems | fusions(recipe.large, experts, options), [*experts])
