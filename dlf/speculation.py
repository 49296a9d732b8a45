"""Speculative decoding: what drafts tokens, and how many, before all models verify them in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dlf import _C
from dlf.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from dlf.ensemble import Ensemble

__all__ = ["Speculate", "Speculation", "as_speculation", "native_speculation", "uses_drafter"]

MAX_DRAFT = 12  # the default


@dataclass(frozen=True)
class Speculation:
    """How tokens are drafted, to be verified by one pass of every model over all of them.

    Tokens and log-probabilities are bit-identical with and without drafting, at any temperature: every position draws
    with a random number of its own, so a drafted token is right exactly if it is the token drawn. (The accept-reject
    rule of Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318, keeps the distribution but not the
    tokens.)

    Parameters
    ----------
    drafter : str
        ``"auto"``: the engine's `drafter` if it has one, else the expert that had the most weight lately, or prompt
        lookup where that promises more. Or the name of an expert; ``"base"``, the base of the first expert;
        ``"prompt_lookup"``, the tokens after an earlier occurrence of the last ones in prompt or output; or
        ``"drafter"``, the engine's.
    max_draft : int
        Most tokens drafted before a pass, from 1 to 16; on CUDA at most 7 are drafted.
    adaptive : bool
        Whether to draft fewer tokens, or none, where measured times and acceptance rates promise more speed.

    Raises
    ------
    TypeError, ValueError
        If a value is of the wrong kind or outside its range.
    """

    drafter: str = "auto"
    max_draft: int = MAX_DRAFT
    adaptive: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.drafter, str):
            raise OptionTypeError(
                f"drafter is {self.drafter!r}: give the name of an expert, 'base', 'prompt_lookup', 'drafter' or "
                "'auto'; pass any other model as Engine(drafter=...)",
                "drafter",
            )
        if isinstance(self.max_draft, bool) or not isinstance(self.max_draft, int):
            raise OptionTypeError(f"max_draft is {self.max_draft!r}: give an int", "max_draft")
        if not 1 <= self.max_draft <= _C.MAX_DRAFT:
            raise OptionError(f"max_draft is {self.max_draft}; it must be from 1 to {_C.MAX_DRAFT}", "max_draft")


Speculate: TypeAlias = str | bool | Speculation


def as_speculation(speculate: Any) -> Speculation | None:
    """Speculation that a caller asked for by ``"auto"``, ``False`` or a `Speculation`; None for no drafting."""
    if isinstance(speculate, Speculation):
        return speculate
    if speculate is False:
        return None
    if speculate is True or speculate == "auto":
        return Speculation()
    raise OptionTypeError(f"speculate is {speculate!r}: give 'auto', False or a dlf.Speculation", "speculate")


def native_speculation(speculation: Speculation | None, ensemble: Ensemble, experts: list[int]) -> _C.Speculation:
    """Speculation for the step loop, of a request with these experts.

    Raises
    ------
    ValueError
        If the request has no such drafter.
    """
    if speculation is None:
        return _C.Speculation(0)
    lane = _lane(speculation.drafter, ensemble, experts)
    return _C.Speculation(speculation.max_draft, lane, speculation.adaptive)


def uses_drafter(speculation: _C.Speculation, ensemble: Ensemble) -> bool:
    """Whether the engine's drafter, if it has one, may draft for the request and so reads its prompt."""
    wanted = speculation.drafter in (_C.AUTO_DRAFTER, ensemble.lanes.drafter)
    return ensemble.lanes.drafter is not None and speculation.max_draft > 0 and wanted


def _lane(drafter: str, ensemble: Ensemble, experts: list[int]) -> int:
    if drafter == "auto":
        return _C.AUTO_DRAFTER
    lanes, names = ensemble.lanes, [ensemble.labels[number] for number in experts]
    there: dict[str, int] = {}
    for number, name in zip(experts, names, strict=True):
        small = [lane for lane in lanes.pairs[number] if lanes.small(lane)]
        if small and names.count(name) == 1:
            there[name] = small[0]
    others = {"prompt_lookup": _C.PROMPT_LOOKUP}
    if experts and lanes.small(lanes.pairs[experts[0]][1]):
        others = {"base": lanes.pairs[experts[0]][1], **others}
    if lanes.drafter is not None:
        others["drafter"] = lanes.drafter
    there |= {name: lane for name, lane in others.items() if name not in there}
    if drafter in there:
        return there[drafter]
    if drafter in (*names, "base") and experts:
        raise OptionError(
            f"'{drafter}' cannot draft: it is no model beside the large one; there are: {', '.join(there)}", "speculate"
        )
    raise OptionError(
        f"no drafter is called {drafter!r}; there are: {', '.join(there)}; pass any other model as Engine(drafter=...)",
        "speculate",
    )
