"""Speculative decoding: what drafts tokens, and how many, before all models verify them in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dlf import _C
from dlf.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from dlf.ensemble import Ensemble

__all__ = ["Speculate", "Speculation", "as_speculation", "native_speculation", "uses_drafter"]

MAX_DRAFT = 12  # of "auto"


@dataclass(frozen=True)
class Speculation:
    """How tokens are drafted by something fast, to be verified by one pass of every model over all of them.

    What is generated is what is generated without, to the last token and log-probability, at any temperature: every
    position draws with a random number of its own, so a draft is right exactly if it is the token that comes. (The
    accept-reject rule of Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318, keeps the distribution
    but not the tokens.)

    Parameters
    ----------
    drafter : str
        ``"auto"``: the engine's `drafter` if it has one, else the expert that had the most weight lately, or what
        prompt look-up finds where that promises more. Else the name of an expert; ``"base"``, that of the first expert;
        ``"prompt_lookup"``, what followed the last tokens where they came before in prompt or output; or
        ``"drafter"``, the engine's.
    max_draft : int
        Tokens drafted before a pass, from 1 to 16; on CUDA no more than 7, whatever it says.
    adaptive : bool
        Whether fewer, or none, are drafted where measured times and running acceptance rates say that it is faster.

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
                "'auto'; a further model goes to Engine(drafter=...)",
                "drafter",
            )
        if isinstance(self.max_draft, bool) or not isinstance(self.max_draft, int):
            raise OptionTypeError(f"max_draft is {self.max_draft!r}: give an int", "max_draft")
        if not 1 <= self.max_draft <= _C.MAX_DRAFT:
            raise OptionError(f"max_draft is {self.max_draft}; it must be from 1 to {_C.MAX_DRAFT}", "max_draft")


Speculate: TypeAlias = str | bool | Speculation


def as_speculation(speculate: Any) -> Speculation | None:
    """What a caller asked for: ``"auto"``, ``False``, or a `Speculation`."""
    if isinstance(speculate, Speculation):
        return speculate
    if speculate is False:
        return None
    if speculate is True or speculate == "auto":
        return Speculation()
    raise OptionTypeError(f"speculate is {speculate!r}: give 'auto', False or a dlf.Speculation", "speculate")


def native_speculation(speculation: Speculation | None, ensemble: Ensemble, experts: list[int]) -> _C.Speculation:
    """The same for the step loop of an engine, of a request with these experts.

    Raises
    ------
    ValueError
        If it has no such drafter.
    """
    if speculation is None:
        return _C.Speculation(0)
    lane = _lane(speculation.drafter, ensemble, experts)
    return _C.Speculation(speculation.max_draft, lane, speculation.adaptive)


def uses_drafter(speculation: _C.Speculation, ensemble: Ensemble) -> bool:
    """Whether the engine's further drafter, if it has one, is to read what is drafted."""
    wanted = speculation.drafter in (_C.AUTO_DRAFTER, ensemble.lanes.drafter)
    return ensemble.lanes.drafter is not None and speculation.max_draft > 0 and wanted


def _lane(drafter: str, ensemble: Ensemble, experts: list[int]) -> int:
    if drafter == "auto":
        return _C.AUTO_DRAFTER
    names = [ensemble.labels[number] for number in experts]
    if names.count(drafter) == 1:
        return ensemble.lanes.pairs[experts[names.index(drafter)]][0]
    if drafter == "base" and experts:
        return ensemble.lanes.pairs[experts[0]][1]
    if drafter == "prompt_lookup":
        return _C.PROMPT_LOOKUP
    if drafter == "drafter" and ensemble.lanes.drafter is not None:
        return ensemble.lanes.drafter
    there = [*names, *(["base"] if experts else []), "prompt_lookup"]
    if ensemble.lanes.drafter is not None:
        there.append("drafter")
    raise OptionError(
        f"nothing that may draft is called {drafter!r}; there are: {', '.join(there)}; a further model goes to "
        "Engine(drafter=...)",
        "speculate",
    )
