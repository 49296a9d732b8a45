"""What each lane of a request reads: one prompt, laid out and encoded for every model that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import cast

from dlf import _C
from dlf.ensemble import Ensemble
from dlf.errors import ErrorKind, PromptError, TextTooLongError
from dlf.experts.context import PromptKey
from dlf.guidance import SidePrompts
from dlf.text.chat_options import PLAIN_CHAT, ChatOptions
from dlf.text.layout import Example, Layout, Messages
from dlf.text.tokenizer import Tokenizer

__all__ = ["end_tokens", "lane_prompts"]

NONE_BESIDE: SidePrompts = MappingProxyType({})
EMPTY = "is empty; give text, or token ids such as [bos_token_id] to start from nothing"
MIN_SHARED = 64  # tokens; reading fewer of them again costs less than a chunk of their own


def lane_prompts(
    ensemble: Ensemble,
    prompt: str | Sequence[int] | Messages,
    experts: Sequence[int],
    examples: tuple[Example, ...] = (),
    which: str = "the prompt",
    continuation: int = 0,
    drafter: bool = False,
    beside: SidePrompts = NONE_BESIDE,
    chat: ChatOptions = PLAIN_CHAT,
) -> list[_C.Prompt]:
    """Write and encode a prompt for every lane.

    Parameters
    ----------
    ensemble
        Models and lanes.
    prompt
        Text, token ids, or messages.
    experts
        Numbers of the experts that the request fuses; a lane that none of them needs gets an empty prompt.
    examples
        Examples for the large model and the drafter.
    which
        Name of the prompt in errors.
    continuation
        Tokens of its continuation, if known.
    drafter
        Whether the engine's drafter reads it too.
    beside
        Negative and positive prompts. Without a negative prompt its lane reads the last token of the other side's, and
        without a positive one its lane reads `prompt`.
    chat
        How chat templates write conversations.

    Raises
    ------
    ValueError
        If it is empty, or longer than the context; the message says how many examples would fit.
    """
    if not prompt:
        raise PromptError(f"{which} {EMPTY}")
    found = [_C.Prompt()] * len(ensemble.lanes.lanes)
    encoded: dict[tuple[PromptKey | None, Layout, Tokenizer | bytes | int | None], _C.Prompt] = {}
    for number in ensemble.lanes.of_experts(experts, drafter=drafter):
        lane = ensemble.lanes.lanes[number]
        side = lane.prompt if lane.prompt in beside else None
        if lane.prompt is not None and side is None and lane.prompt.which == "negative":
            guided = next(expert for expert, base in ensemble.lanes.pairs if base == number)
            found[number] = _C.Prompt(found[guided].tokens[-1:], [])
            continue
        read = prompt if side is None else beside[side]
        whose = which if side is None else f"the {side.which} prompt of '{side.expert}'"
        text = read if isinstance(read, str) else None if isinstance(read[0], int) else cast(Messages, read)
        as_large = number == 0 or number == ensemble.lanes.drafter  # the drafter imitates the large model
        layout = Layout(lane.layout.template, examples) if as_large and examples else lane.layout
        if chat is not PLAIN_CHAT:
            layout = replace(layout, chat=chat)
        tokenizer = ensemble.models[lane.model].tokenizer
        own = ensemble.vocabulary.maps[lane.model] if text is None else None
        key: tuple[PromptKey | None, Layout, Tokenizer | bytes | int | None]
        if text is None:
            if not layout.plain:
                raise PromptError(
                    f"{whose} is token ids, but {_reader(ensemble, number)} reads it through a template or after "
                    "examples; give text"
                )
            key = side, layout, None if own is None else lane.model
        else:
            key = side, layout, tokenizer if layout.is_chat(text, tokenizer) else tokenizer.fingerprint
            if number > 0 and ensemble.models[lane.model].config.vocab_size < tokenizer.vocab_size:
                key = side, layout, lane.model  # to be checked against its own number of ids
        if key not in encoded:
            # The last token of a continuation is not read.
            room = ensemble.max_context - (continuation - 1 if continuation else 1)
            try:
                tokens, shared = (
                    (list(cast("Sequence[int]", read)), 0) if text is None else layout.encode(text, tokenizer, room)
                )
                length = f"{len(tokens)} tokens" if len(tokens) > room else None
            except TextTooLongError as error:
                length = f"at least {error.tokens} tokens"
            if length is not None:
                message = _too_long(ensemble, number, layout, text, (length, continuation, room), whose)
                raise PromptError(message, ErrorKind.TOO_LONG)
            # A text in a small model's own words may have tokens that the large model lacks.
            theirs = number == 0 or text is None
            ids = ensemble.vocab_size if theirs else ensemble.models[lane.model].config.vocab_size
            _check(tokens, ids, whose)
            if own is not None:
                tokens = own.feed[tokens].tolist()
            encoded[key] = _C.Prompt(tokens, [shared] if shared >= MIN_SHARED else [])
        found[number] = encoded[key]
    return found


def end_tokens(ensemble: Ensemble, prompt: str | Sequence[int] | Messages, experts: Sequence[int] = ()) -> list[int]:
    """Token ids that end an answer to this prompt: the large model's and those of the request's experts.

    In a chat the end of the assistant's turn is one of them. A base and a drafter end nothing: what they would say is
    taken away, or only guessed. An expert's id counts only if the large model has a special token there, so that
    no text ends at an ordinary token.

    Parameters
    ----------
    ensemble
        Models and lanes.
    prompt
        Text, token ids, or messages.
    experts
        Numbers of the experts that the request fuses.
    """
    found = dict.fromkeys(_ends(ensemble, prompt, 0))
    for expert in experts:
        lane = ensemble.lanes.pairs[expert][0]
        ends = (_of_large(ensemble, lane, token) for token in _ends(ensemble, prompt, lane))
        found |= dict.fromkeys(token for token in ends if token is not None and ensemble.tokenizer.is_special(token))
    return [token for token in found if token < ensemble.vocab_size]


def _of_large(ensemble: Ensemble, lane: int, token: int) -> int | None:
    """Id of the large model for a token of a lane's model, or None."""
    model = ensemble.lanes.lanes[lane].model
    if ensemble.vocabulary.maps[model] is None:
        return token
    return ensemble.tokenizer.vocab.get(ensemble.models[model].tokenizer.token(token) or "")


def _ends(ensemble: Ensemble, prompt: str | Sequence[int] | Messages, number: int) -> list[int]:
    """Ids that end a text for the model of a lane, by its configuration, its tokenizer and its chat template."""
    lane = ensemble.lanes.lanes[number]
    model = ensemble.models[lane.model]
    found = model.config.end_tokens(model.tokenizer.eos_token_id)
    if not isinstance(prompt, str) and isinstance(prompt[0], int):
        return found
    if lane.layout.is_chat(cast("str | Messages", prompt), model.tokenizer):
        turn = model.tokenizer.end_of_turn_id
        if turn is not None:
            found.append(turn)
    return found


def _check(tokens: list[int], ids: int, which: str) -> None:
    if not tokens:  # a special token instead would be a prompt that nobody wrote
        raise PromptError(f"{which} {EMPTY}")
    outside = next((token for token in tokens if not 0 <= token < ids), None)
    if outside is not None:
        raise PromptError(f"{which} has the token id {outside}; ids are from 0 to {ids - 1}")


def _too_long(
    ensemble: Ensemble,
    lane: int,
    layout: Layout,
    text: str | Messages | None,
    sizes: tuple[str, int, int],
    which: str,
) -> str:
    length, continuation, room = sizes
    context, trained = ensemble.max_context, ensemble.trained_context
    more = f" or raise max_context, up to {trained}" if trained > context else ""
    beside = f"the {continuation} of its continuation" if continuation else "at least one new token"
    holds = f"the context holds {context} with {beside}"
    if not layout.examples or text is None:
        return f"{which} has {length}, but {holds}; shorten it{more}"
    tokenizer = ensemble.models[ensemble.lanes.lanes[lane].model].tokenizer
    most = layout.fitting(text, tokenizer, room + 1)
    if most is None:
        return f"{which} alone is longer than the context of {context} tokens; shorten it{more}"
    return (
        f"{which} and the {len(layout.examples)} examples of {_reader(ensemble, lane)} have {length}, but "
        f"{holds}: {most} of the examples fit; give fewer{more}"
    )


def _reader(ensemble: Ensemble, lane: int) -> str:
    """Name of a lane's model in errors."""
    if lane == 0:
        return "the large model"
    for label, (expert, base) in zip(ensemble.labels, ensemble.lanes.pairs, strict=True):
        if lane in (expert, base):
            return f"expert '{label}'" if lane == expert else f"the base of expert '{label}'"
    return "the drafter"
