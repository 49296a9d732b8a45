"""What a request says to the experts that guide it: prompts beside its own, and the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from dlf.arguments import Prompt, as_list, token_ids
from dlf.errors import OptionError, OptionTypeError, PromptError
from dlf.experts import Guidance
from dlf.experts.context import PromptKey
from dlf.rule import Rule
from dlf.support.option_values import as_float
from dlf.text.chat_options import PLAIN_CHAT, ChatOptions
from dlf.text.layout import Messages, as_messages

if TYPE_CHECKING:
    from dlf.ensemble import Ensemble

__all__ = ["NOT_GUIDED", "OPTIONS", "Guided", "SidePrompts", "take_guidance"]

SidePrompt: TypeAlias = "Prompt | Messages | None"
SidePrompts: TypeAlias = "Mapping[PromptKey, Prompt | Messages]"
Values: TypeAlias = "Mapping[str | None, Any]"  # by name of the expert; None is for the only one

SIDES = {"negative_prompt": "negative", "positive_prompt": "positive"}
SCALE = "guidance_scale"
OPTIONS = (*SIDES, SCALE)
MAKE = "make the engine with one: Engine(..., experts=[..., dlf.Guidance()])"
MAKE_POSITIVE = "make the engine with one: Engine(..., experts=[..., dlf.Guidance(positive=True)])"


@dataclass(frozen=True)
class Guided:
    """Negative and positive prompts of a call, each with one for every prompt, and its guidance scales."""

    prompts: Mapping[str, Values] = field(default_factory=dict)
    scale: Values = field(default_factory=dict)

    def repeated(self, count: int) -> Guided:
        """The prompts for `count` prompts, if there were those of one."""
        prompts = {
            option: {name: own * count if len(own) == 1 else own for name, own in values.items()}
            for option, values in self.prompts.items()
        }
        return replace(self, prompts=prompts)

    def beside(self, ensemble: Ensemble, chosen: Sequence[int], count: int) -> Sequence[SidePrompts]:
        """The prompts to read beside each of `count` prompts.

        Raises
        ------
        OptionError
            If a prompt is for an expert that the request does not fuse, or takes none.
        """
        guides = _guides(ensemble, chosen)
        found: list[dict[PromptKey, Prompt | Messages]] = [
            {
                PromptKey("negative", one.label): one.negative_prompt
                for one in guides.values()
                if one.negative_prompt is not None
            }
            for _ in range(count)
        ]
        for option, which in SIDES.items():
            taking = [name for name, one in guides.items() if which == "negative" or one.positive]
            make = MAKE if which == "negative" else MAKE_POSITIVE
            for name, values in _by_expert(option, self.prompts.get(option, {}), taking, make).items():
                for own, value in zip(found, values, strict=True):
                    if value is not None:
                        own[PromptKey(which, name)] = value
        return found

    def rule(self, wanted: Rule, ensemble: Ensemble, chosen: Sequence[int]) -> Rule:
        """The rule of the request, with the weights that its guidance scale gives.

        Raises
        ------
        OptionError
            If the scale is for an expert that the request does not fuse, or weights are given, too.
        """
        scale = _by_expert(SCALE, self.scale, list(_guides(ensemble, chosen)), MAKE)
        if not scale:
            return wanted
        given = {} if wanted.alpha is None else wanted.alpha
        if not isinstance(given, Mapping) or given.keys() & scale.keys():
            raise OptionError(
                "guidance_scale and alpha are both given; alpha is the scale - 1, so leave one out, or give alpha as a "
                "mapping of the other experts",
                SCALE,
            )
        return replace(wanted, alpha={**given, **{name: value - 1.0 for name, value in scale.items()}})


NOT_GUIDED = Guided()


def take_guidance(
    options: Mapping[str, Any], count: int, chat: ChatOptions = PLAIN_CHAT
) -> tuple[Guided, dict[str, Any]]:
    """Split the options of a call for `count` prompts into those for guidance, checked, and the others.

    Raises
    ------
    OptionError, OptionTypeError, PromptError
        If one of them is of the wrong kind, or there are not as many prompts.
    """
    prompts = {}
    for option in SIDES:
        value = options.get(option)
        if value is not None:
            named = value if isinstance(value, Mapping) else {None: value}
            prompts[option] = {name: _of_each(option, one, count, chat) for name, one in named.items()}
    scale = options.get(SCALE)
    scales: Values = {}
    if scale is not None:
        named = scale if isinstance(scale, Mapping) else {None: scale}
        scales = {
            name: as_float(SCALE if name is None else f"{SCALE}[{name!r}]", one, SCALE) for name, one in named.items()
        }
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    return Guided(prompts, scales), others


def _guides(ensemble: Ensemble, chosen: Sequence[int]) -> dict[str, Guidance]:
    """The experts of the request that are guidance, by name."""
    experts = [ensemble.experts[number] for number in chosen]
    return {one.label: one for one in experts if isinstance(one, Guidance)}


def _by_expert(option: str, values: Values, names: list[str], make: str) -> dict[str, Any]:
    """The values by name of their expert."""
    if values and not names:
        raise OptionError(f"{option} is given, but the request fuses no expert that takes it; {make}", option)
    found = {}
    for name, value in values.items():
        if name is None and len(names) > 1:
            raise OptionError(f"{option} is for one of {', '.join(names)}; give a mapping by name", option)
        if name is not None and name not in names:
            raise OptionError(f"{option} names {name!r}; it is for: {', '.join(names)}", option)
        found[names[0] if name is None else name] = value
    return found


def _of_each(option: str, value: Any, count: int, chat: ChatOptions) -> list[SidePrompt]:
    """One prompt for all, or one for each of `count` prompts."""
    one = _one(option, value, chat)
    if one is not None:
        return [one] * count
    several = as_list(value)
    if several is None:
        raise OptionTypeError(f"{option} is {type(value).__name__}; give text, token ids or messages", option)
    if len(several) != count:
        raise PromptError(f"{option} holds {len(several)} prompts for {count} prompts; give one for each, or for all")
    found = [None if own is None else _one(option, own, chat) for own in several]
    for own, given in zip(found, several, strict=True):
        if own is None and given is not None:
            raise OptionTypeError(f"{option} holds {type(given).__name__}; give text, token ids or messages", option)
    return found


def _one(option: str, value: Any, chat: ChatOptions) -> SidePrompt:
    """A single prompt; None if `value` is none."""
    if isinstance(value, str):
        if not value:
            raise PromptError(f"{option} is empty; give text or token ids, or leave it out for the prompt's last token")
        return value
    tokens = token_ids(value)
    if tokens:
        return tokens
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        return as_messages(value, chat)[0][0]
    return None
