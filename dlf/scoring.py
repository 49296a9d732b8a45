"""Prompts and continuations of a call of `Engine.score`, encoded for every lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlf import _C
from dlf.arguments import Prompt, as_list, token_ids
from dlf.ensemble import Ensemble
from dlf.errors import ErrorKind, PromptError, TextTooLongError
from dlf.guidance import SidePrompts
from dlf.prompts import lane_prompts
from dlf.results import Score
from dlf.text.layout import Example, Layout, Messages

__all__ = ["Continuation", "ScoreGroup", "as_continuations", "as_score", "score_groups"]

Continuation: TypeAlias = "str | list[int]"

AT_ONCE = 64  # continuations of one prompt in a job; other jobs of scoring wait for it


@dataclass
class ScoreGroup:
    """Continuations of one prompt, with their numbers in the call."""

    lanes: list[_C.Prompt]
    continuations: list[list[int]]
    numbers: list[int]

    def parts(self) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Numbers and continuations, a few at a time."""
        for begin in range(0, len(self.numbers), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            yield self.numbers[part], self.continuations[part]


def as_continuations(continuation: Any, prompts: int | None) -> tuple[list[Continuation], bool]:
    """The continuations, and whether there was a single one.

    Parameters
    ----------
    continuation
        Text, token ids, or a list of such.
    prompts
        Number of prompts, each with a continuation of its own; None for one prompt.

    Raises
    ------
    ValueError, TypeError
        If they are none of these, too few or too many, or one is empty.
    """
    single = isinstance(continuation, str) or token_ids(continuation) is not None
    several = None if single else as_list(continuation)
    if not single and several is None:
        raise TypeError(f"a continuation is text or token ids, or a list of such, not {type(continuation).__name__}")
    given = [continuation] if several is None else several
    if prompts is not None and (single or len(given) != prompts):
        have = "one continuation" if single else f"{len(given)} continuations"
        raise PromptError(f"{have} for {prompts} prompts; give a list with one for each")
    found: list[Continuation] = []
    for i, one in enumerate(given):
        which = "the continuation" if single else f"continuation {i}"
        tokens = one if isinstance(one, str) else token_ids(one)
        if tokens is None:
            raise TypeError(f"{which} must be text or a list of token ids")
        if not tokens:
            raise PromptError(f"{which} is empty; give at least one token")
        found.append(tokens)
    if not found:
        raise PromptError("there is no continuation; give text or token ids, or a list of such")
    return found, single


def score_groups(
    ensemble: Ensemble,
    prompts: Sequence[Prompt] | Sequence[Messages],
    continuations: Sequence[Continuation],
    experts: Sequence[int],
    examples: tuple[Example, ...],
    beside: Sequence[SidePrompts],
) -> list[ScoreGroup]:
    """Encode pairs of prompt and continuation; pairs with the same prompt form a group, which reads it once.

    `beside` has the negative and positive prompts of each pair.

    Raises
    ------
    ValueError
        If a prompt is empty, or longer than the context together with its continuation.
    """
    several = len(continuations) > 1
    by_prompt: dict[str, tuple[Any, SidePrompts, list[int]]] = {}
    encoded = []
    for i, (whole, continuation, sides) in enumerate(zip(prompts, continuations, beside, strict=True)):
        whose = f"continuation {i}" if several else "the continuation"
        try:
            prompt, tokens = _split(ensemble, whole, continuation, examples)
        except TextTooLongError as error:
            raise PromptError(
                f"{whose} and its prompt have at least {error.tokens} tokens, but the context holds "
                f"{ensemble.max_context}; shorten one of them",
                ErrorKind.TOO_LONG,
            ) from None
        outside = next((token for token in tokens if not 0 <= token < ensemble.vocab_size), None)
        if outside is not None:
            raise PromptError(f"{whose} has the token id {outside}; ids are from 0 to {ensemble.vocab_size - 1}")
        encoded.append(tokens)
        if isinstance(whole, str) and prompt != whole:  # the continuation has the spaces at its end
            sides = {key: _without(whole[len(prompt) :], side) for key, side in sides.items()}
        by_prompt.setdefault(repr((prompt, sides)), (prompt, sides, []))[2].append(i)
    groups = []
    for prompt, sides, numbers in by_prompt.values():
        own = [encoded[i] for i in numbers]
        which = f"prompt {numbers[0]}" if several else "the prompt"
        lanes = lane_prompts(ensemble, prompt, experts, examples, which, max(map(len, own)), beside=sides)
        groups.append(ScoreGroup(lanes, own, numbers))
    return groups


def _without(spaces: str, prompt: Any) -> Any:
    """A prompt without the spaces at its end."""
    return prompt.removesuffix(spaces) or prompt if isinstance(prompt, str) else prompt


def as_score(native: _C.Score, tokens: list[int], experts: list[str]) -> Score:
    """Scores of the step loop, as arrays."""
    return Score(
        tokens=tokens,
        logprobs=np.array(native.logprobs, np.float64),
        is_greedy=np.array(native.greedy, np.bool_),
        alpha=np.array(native.alpha, np.float64).reshape(len(tokens), len(experts)),
        f=np.array(native.f, np.float64),
        g=np.array(native.g, np.float64),
        experts=experts,
    )


def _split(
    ensemble: Ensemble, prompt: Any, continuation: Continuation, examples: tuple[Example, ...]
) -> tuple[Any, list[int]]:
    """The prompt, and the tokens that follow it in every lane.

    A text is encoded together with the large model's prompt, since a token may span both, and a space at the end of a
    prompt belongs to the word after it, as in lm-evaluation-harness.
    """
    lane = ensemble.lanes.lanes[0]
    tokenizer = ensemble.models[lane.model].tokenizer
    if not isinstance(continuation, str):
        return prompt, continuation
    most = ensemble.max_context
    apart = tokenizer.encode(continuation, add_special_tokens=False, max_tokens=most)
    if not prompt or (not isinstance(prompt, str) and isinstance(prompt[0], int)):
        return prompt, apart
    layout = Layout(lane.layout.template, examples) if examples else lane.layout
    if isinstance(prompt, str) and prompt.strip() and layout.text(prompt, tokenizer).endswith(prompt):
        written = prompt.rstrip()
        continuation = prompt[len(written) :] + continuation
        prompt = written
    special = not layout.is_chat(prompt, tokenizer)
    text = layout.text(prompt, tokenizer)
    before = len(tokenizer.encode(text, add_special_tokens=special, max_tokens=most))
    whole = tokenizer.encode(text + continuation, add_special_tokens=special, max_tokens=most)
    return prompt, whole[before:] or apart
