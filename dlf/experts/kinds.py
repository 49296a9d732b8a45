"""The kinds of experts, and the values that they take from an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from dlf.errors import OptionError, OptionTypeError
from dlf.experts.expert import Expert, InContext
from dlf.experts.lora import Lora
from dlf.experts.task_arithmetic import TaskArithmetic
from dlf.rule import Rule

__all__ = ["EXPERTS", "AnyExpert", "as_expert", "with_alpha"]

Path: TypeAlias = str | os.PathLike[str]
AnyExpert: TypeAlias = Expert | InContext | Lora | TaskArithmetic

EXPERTS = (Expert, InContext, Lora, TaskArithmetic)


def as_expert(expert: AnyExpert | Path, base: Path | None, weights: str | None) -> AnyExpert:
    """An expert with its base and its type of weights, which are the engine's if it names none."""
    if isinstance(expert, (str, os.PathLike)):
        expert = Expert(expert)
    if not isinstance(expert, EXPERTS):
        kinds = ", ".join(f"dlf.{kind.__name__}" for kind in EXPERTS)
        raise OptionTypeError(f"an expert is a path or one of {kinds}, not {type(expert).__name__}", "experts")
    if expert.base is None:
        if base is None:
            raise OptionError(
                f"expert '{expert.label}' has no base: give the checkpoint that it was fine-tuned from, "
                f"as dlf.Expert(..., base=...) or Engine(..., base=...)",
                "base",
            )
        expert = replace(expert, base=base)
    return replace(expert, weights=weights) if expert.weights is None else expert


def with_alpha(experts: Sequence[AnyExpert], alpha: Sequence[float | None] | None) -> list[AnyExpert]:
    """The experts, with the engine's given weights."""
    if alpha is None:
        return list(experts)
    given = Rule(alpha=alpha).alpha
    assert given is not None
    if isinstance(given, Mapping):
        raise OptionTypeError("alpha is a mapping: give an engine a sequence, one number per expert", "alpha")
    if len(given) != len(experts):
        raise OptionError(
            f"alpha holds {len(given)} weights for {len(experts)} experts; give one for each, None where it is solved",
            "alpha",
        )
    return [
        expert if weight is None else replace(expert, alpha=weight)
        for expert, weight in zip(experts, given, strict=True)
    ]
