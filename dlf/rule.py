"""How the experts of a request move the large model's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np

from dlf import _C
from dlf.errors import OptionError, OptionTypeError
from dlf.support.option_values import as_float, shown

__all__ = ["FIELDS", "UNSAID", "Rule", "native_rule", "take_rule"]

Alpha: TypeAlias = "Sequence[float | None] | Mapping[str, float | None]"
AlphaMax: TypeAlias = "float | Sequence[float] | Mapping[str, float]"


@dataclass(frozen=True)
class Rule:
    """How the weights of a request's experts are found. Fields that are None are left to the engine.

    A rule belongs to a request: ``engine.generate(prompt, rule=dlf.Rule(combine="joint"))``, or by its fields,
    ``engine.generate(prompt, combine="joint")``. Requests with different rules decode in one batch; the result of each
    is bit-identical to that of the request alone.

    Parameters
    ----------
    combine : {"select", "centroid", "joint", "static", "grid", "jsd", "certainty"}, optional
        How several experts are combined; see `dlf.fusion.solve`.
    match : {"symmetric", "forward", "reverse"}, optional
        Which divergences are matched.
    alpha : sequence or mapping of float or None, optional
        Given weights; None for an expert whose weight is solved. A sequence has one weight for each expert of the
        request, in the request's order of experts, or in the engine's if the request names none. A mapping from names
        of experts leaves all others to the engine. An engine's weights for ``combine="static"`` hold for that alone: a
        request with another `combine` solves them.
    alpha_max : float, or sequence or mapping of float, optional
        Upper bound of solved weights: one number for all, or one for each expert as in `alpha`.
    mix : sequence or mapping of float or None, optional
        Shares of experts whose probabilities are mixed in, from 0 to 1 and together at most 1; None for an expert that
        is added to the logits. The rest of the probability has the distribution that the other experts give.
    large_weight : float, optional
        Coefficient of the large model's logits, 1 if not given. Weights are solved beside the scaled logits.
    plausibility : float, optional
        Excludes tokens that the large model alone finds less probable than this share of its most probable token, from
        0 to below 1 (the plausibility constraint of contrastive decoding, arXiv 2210.15097); 0 excludes none.
    gate : {"none", "entropy", "top_prob", "disagree"}, optional
        Where the experts take part: everywhere; where the large model's entropy is at least `gate_threshold` nats;
        where its largest probability is at most `gate_threshold`; or where an expert's most probable token is not the
        large model's. Elsewhere the large model decodes alone, with weights of 0.
    gate_threshold : float, optional
        Threshold of the gate.

    Raises
    ------
    OptionError, OptionTypeError
        If a value is of the wrong kind or outside its range; its name is the `field`.
    """

    combine: str | None = None
    match: str | None = None
    alpha: Alpha | None = None
    alpha_max: AlphaMax | None = None
    mix: Alpha | None = None
    large_weight: float | None = None
    plausibility: float | None = None
    gate: str | None = None
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("combine", "match", "gate"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise OptionTypeError(f"{name} is {shown(value)}: give a name", name)
        for name in ("large_weight", "plausibility", "gate_threshold"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_float(name, getattr(self, name)))
        for name in ("alpha", "alpha_max", "mix"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name, one in (("alpha", "a number"), ("mix", "a share")):
            if isinstance(getattr(self, name), float):
                raise OptionTypeError(
                    f"{name} is {shown(getattr(self, name))}: give a sequence, {one} per expert, or a mapping by name",
                    name,
                )
        combine = "select" if self.combine is None else self.combine
        _C.Rule(combine, "symmetric" if self.match is None else self.match, [], [2.0], 0, **_scalars(self, self))
        bounds, alpha, mix = _values(self.alpha_max), _values(self.alpha), _values(self.mix)
        for weights, limits, shares in ((alpha, [2.0], []), ([], bounds, []), ([], [2.0], mix)):  # raises, as the loop
            count = max(len(weights), len(limits), len(shares))
            _C.Rule("select", "symmetric", weights, limits or [2.0], count, mix=shares)


def _scalars(wanted: Rule, default: Rule) -> dict[str, Any]:
    """Options that are one for all experts, as the solver takes them."""
    found = {}
    for name in ("large_weight", "plausibility", "gate", "gate_threshold"):
        value = getattr(wanted, name)
        value = getattr(default, name) if value is None else value
        if value is not None:
            found[name] = value
    return found


def take_rule(rule: Any, options: Mapping[str, Any]) -> tuple[Rule, dict[str, Any]]:
    """Split the options of a call into its rule, where they override fields of `rule`, and the other options.

    A function as `rule` has no fields: the request has the engine's.

    Raises
    ------
    OptionError, OptionTypeError
        If `rule` is no `Rule`, or a field is impossible.
    """
    if rule is not None and not isinstance(rule, Rule) and not callable(rule):
        raise OptionTypeError(f"rule is {shown(rule)}: give a dlf.Rule, its fields by name, or a function", "rule")
    given = rule if isinstance(rule, Rule) else UNSAID
    own = {name: options[name] for name in FIELDS if options.get(name) is not None}
    others = {name: value for name, value in options.items() if name not in FIELDS}
    return replace(given, **own) if own else given, others


def native_rule(wanted: Rule, default: Rule, labels: Sequence[str], order: Sequence[int]) -> _C.Rule:
    """Rule of a request as the solver takes it.

    Parameters
    ----------
    wanted
        The request's rule.
    default
        The engine's, for fields that the request leaves open; its `alpha` and `alpha_max` are for all experts.
    labels
        Names of the engine's experts; empty if they have none.
    order
        Numbers of the request's experts, as it names them. The result has their weights in rising order.

    Raises
    ------
    OptionError, OptionTypeError
        If the rule does not fit these experts.
    """
    usual = default.combine or "select"
    combine = wanted.combine or usual
    match = wanted.match or default.match or "symmetric"
    given = _values(default.alpha)
    if combine != usual and _C.Rule(usual, match, [], [2.0], 0).takes_given:
        given = [None] * len(given)
    alpha = _each("alpha", "weights", wanted.alpha, given, labels, order)
    bounds = _each("alpha_max", "bounds", wanted.alpha_max, _values(default.alpha_max), labels, order)
    mix = _each("mix", "shares", wanted.mix, _values(default.mix) or [None] * len(given), labels, order)
    if wanted.alpha is None:  # what the request says goes before the engine's
        alpha = [
            None if share is not None and wanted.mix is not None else a for a, share in zip(alpha, mix, strict=True)
        ]
    elif wanted.mix is None:
        mix = [None if a is not None else share for a, share in zip(alpha, mix, strict=True)]
    return _C.Rule(combine, match, alpha, bounds or [2.0], len(order), mix=mix, **_scalars(wanted, default))


def _without(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return the values, with None where the others have one."""
    return [value if other is None else None for value, other in zip(values, others, strict=True)]


def _each(
    name: str, what: str, wanted: Any, default: Sequence[Any], labels: Sequence[str], order: Sequence[int]
) -> list[Any]:
    """Values of the experts of a request, in rising order of the experts' numbers."""
    found = {number: default[number] for number in order}
    if isinstance(wanted, Mapping):
        if not labels:
            raise OptionTypeError(f"{name} is a mapping, but these experts have no names: give a sequence", name)
        names = [labels[number] for number in order]
        for expert, value in wanted.items():
            if names.count(expert) != 1:
                fused = ", ".join(names) or "no expert"
                raise OptionError(f"{name} names {expert!r}; the request fuses: {fused}", name)
            found[order[names.index(expert)]] = value
    elif isinstance(wanted, tuple):
        if len(wanted) != len(order):
            raise OptionError(
                f"{name} holds {len(wanted)} {what} for {len(order)} experts; give one for each expert of the request",
                name,
            )
        found = dict(zip(order, wanted, strict=True))
    elif wanted is not None:
        found = dict.fromkeys(order, wanted)
    return [found[number] for number in sorted(order)]


def _numbers(name: str, value: Any) -> Any:
    """Convert to a number, or to a tuple or dict of numbers, with None for solved weights."""

    def number(which: str, one: Any) -> float | None:
        return None if one is None and name in ("alpha", "mix") else as_float(which, one, name)

    if isinstance(value, Mapping):
        return {str(expert): number(f"{name}[{expert!r}]", one) for expert, one in value.items()}
    if isinstance(value, str):
        raise OptionTypeError(f"{name} is {shown(value)}: give numbers", name)
    values = value if isinstance(value, Sequence) else np.asarray(value).tolist()
    if isinstance(values, Sequence):
        return tuple(number(f"{name}[{t}]", one) for t, one in enumerate(values))
    return number(name, values)


def _values(numbers: Any) -> list[Any]:
    if isinstance(numbers, Mapping):
        return list(numbers.values())
    return [numbers] if isinstance(numbers, float) else list(numbers or ())


UNSAID = Rule()  # leaves everything to the engine
FIELDS = tuple(field.name for field in fields(Rule))
