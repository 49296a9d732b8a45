"""The kinds of experts, and the values that they take from an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from dlf.errors import OptionError, OptionTypeError
from dlf.experts.contrast import Amateur, Guidance
from dlf.experts.expert import Expert, InContext
from dlf.experts.lora import Lora
from dlf.experts.task_arithmetic import TaskArithmetic
from dlf.rule import Rule

__all__ = ["EXPERTS", "AnyExpert", "WholeExpert", "as_expert", "checkpoints_of", "with_weights"]

Path: TypeAlias = str | os.PathLike[str]
WholeExpert: TypeAlias = Expert | InContext | Lora | Guidance | Amateur  # nothing is to be merged for it
AnyExpert: TypeAlias = WholeExpert | TaskArithmetic

EXPERTS = (Expert, InContext, Lora, TaskArithmetic, Guidance, Amateur)


def as_expert(expert: AnyExpert | Path, base: Path | None, weights: str | None) -> AnyExpert:
    """An expert with its base and its type of weights, which are the engine's if it names none."""
    if isinstance(expert, (str, os.PathLike)):
        expert = Expert(expert)
    if not isinstance(expert, EXPERTS):
        kinds = ", ".join(f"dlf.{kind.__name__}" for kind in EXPERTS)
        raise OptionTypeError(f"an expert is a path or one of {kinds}, not {type(expert).__name__}", "experts")
    if not isinstance(expert, (Guidance, Amateur)) and expert.base is None:
        if base is None:
            raise OptionError(
                f"expert '{expert.label}' has no base: give the checkpoint that it was fine-tuned from, "
                f"as dlf.Expert(..., base=...) or Engine(..., base=...), or base=False to measure it against none",
                "base",
            )
        expert = replace(expert, base=base)
    return replace(expert, weights=weights) if expert.weights is None else expert


def checkpoints_of(expert: AnyExpert) -> dict[str, list[Path]]:
    """Checkpoints that an expert names beside the large model, by field; adapters are not among them."""
    found: dict[str, list[Path]] = {}
    for field in ("base", "model"):
        place = getattr(expert, field, None)
        if place is not None and not isinstance(place, bool):
            found[field] = [place]
    if isinstance(expert, TaskArithmetic):
        found["experts"] = list(expert.experts)
    return found


def with_weights(
    experts: Sequence[AnyExpert], alpha: Sequence[float | None] | None, mix: Sequence[float | None] | None = None
) -> list[AnyExpert]:
    """The experts, with the engine's given weights and shares."""
    return _with("mix", "shares", mix, _with("alpha", "weights", alpha, list(experts)))


def _with(name: str, what: str, values: Any, experts: list[AnyExpert]) -> list[AnyExpert]:
    if values is None:
        return experts
    given = getattr(Rule(**{name: values}), name)
    if isinstance(given, Mapping):
        raise OptionTypeError(f"{name} is a mapping: give an engine a sequence, one number per expert", name)
    if len(given) != len(experts):
        none = "None if it is " + ("solved" if name == "alpha" else "added to the logits")
        raise OptionError(
            f"{name} holds {len(given)} {what} for {len(experts)} experts; give one for each, {none}",
            name,
        )
    for expert, value in zip(experts, given, strict=True):
        if value is not None and not hasattr(expert, name):
            raise OptionError(f"'{expert.label}' takes no share: the large model is one side of it", name)
    return [
        expert if value is None else replace(expert, **{name: value})
        for expert, value in zip(experts, given, strict=True)
    ]
