"""Turns the arguments of a call into requests of the step loop: checked, laid out and encoded."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlf import _C
from dlf.arguments import Prompt, as_prompts, chosen_experts, sampling_options
from dlf.ensemble import Ensemble
from dlf.errors import OptionError, OptionTypeError
from dlf.grammar import Grammar
from dlf.grammar_mask import GrammarMask
from dlf.guidance import NOT_GUIDED, Guided, take_guidance
from dlf.own_rule import OwnRule, RuleFunction
from dlf.prompts import end_tokens, lane_prompts
from dlf.request import RunningRequest
from dlf.rule import FIELDS, Rule, take_rule
from dlf.sampling import SamplingOptions, StopStrings
from dlf.scoring import Continuation, as_continuations
from dlf.speculation import Speculate, Speculation, as_speculation, native_speculation, uses_drafter
from dlf.support.option_values import MAX_INT, as_int, shown
from dlf.text.chat_options import PLAIN_CHAT, ChatOptions, take_chat
from dlf.text.layout import Example, Messages, as_examples

__all__ = ["Generation", "Scoring", "prepare"]


@dataclass(frozen=True)
class Generation:
    """Checked arguments of a call of `Engine.generate`.

    Attributes
    ----------
    prompts, single
        The prompts or conversations, and whether there was a single one rather than a list.
    sampling, examples, experts, rule, speculation
        As `Engine.generate` describes them.
    guided
        Its negative and positive prompts, and its guidance scale.
    own_rule
        A function as rule, which sees the logits that `rule` fuses.
    grammar
        What each answer must follow, if anything.
    chat
        How chat templates write conversations.
    priority
        The lower, the earlier.
    """

    prompts: Sequence[Prompt] | Sequence[Messages]
    single: bool
    sampling: SamplingOptions
    examples: tuple[Example, ...]
    experts: Sequence[str] | None
    rule: Rule
    speculation: Speculation | None
    guided: Guided = NOT_GUIDED
    own_rule: RuleFunction | None = None
    grammar: Grammar | None = None
    chat: ChatOptions = PLAIN_CHAT
    priority: int = 0

    @classmethod
    def of(
        cls,
        prompt: Any,
        messages: Any,
        options: Mapping[str, Any],
        *,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        rule: Rule | RuleFunction | None,
        speculate: Speculate,
    ) -> Generation:
        """Check the arguments of a call, as far as that needs no model.

        Raises
        ------
        ValueError, TypeError
            If one is impossible.
        """
        chat, others = take_chat(options)
        prompts, single = as_prompts(prompt, messages, chat)
        shots = () if examples is None else as_examples(examples)
        guided, others = take_guidance(others, len(prompts), chat)
        own, others = take_rule(rule, others)
        grammar = others.pop("grammar", None)
        if grammar is not None and not isinstance(grammar, Grammar):
            raise OptionTypeError(f"grammar is {shown(grammar)}: give a dlf.Grammar", "grammar")
        priority = as_int("priority", others.pop("priority", 0), -MAX_INT, MAX_INT)
        sampling = sampling_options(others)
        function = rule if callable(rule) else None
        draft = as_speculation(speculate)
        return cls(prompts, single, sampling, shots, experts, own, draft, guided, function, grammar, chat, priority)

    @property
    def sequences(self) -> int:
        """Number of completions."""
        return len(self.prompts) * self.sampling.num_return_sequences

    def check_single(self) -> None:
        """Refuse a call for several sequences, which a stream cannot give.

        Raises
        ------
        ValueError
            If the call asks for several.
        """
        if not self.single or self.sampling.num_return_sequences != 1:
            many = "prompt" if self.sampling.num_return_sequences == 1 else "num_return_sequences"
            raise OptionError("a stream has one sequence; make a stream for each, or use generate or complete", many)


@dataclass(frozen=True)
class Scoring:
    """Checked arguments of a call of `Engine.score`: as many prompts as continuations; `single` if none is a list."""

    prompts: Sequence[Prompt] | Sequence[Messages]
    continuations: Sequence[Continuation]
    single: bool
    examples: tuple[Example, ...]
    experts: Sequence[str] | None
    rule: Rule
    guided: Guided = NOT_GUIDED
    own_rule: RuleFunction | None = None

    @classmethod
    def of(
        cls,
        prompt: Any,
        continuation: Any,
        messages: Any,
        options: Mapping[str, Any],
        *,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        rule: Rule | RuleFunction | None,
    ) -> Scoring:
        """Check the arguments of a call, as far as that needs no model.

        Raises
        ------
        ValueError, TypeError
            If one is impossible.
        """
        prompts, one_prompt = as_prompts(prompt, messages)
        continuations, single = as_continuations(continuation, None if one_prompt else len(prompts))
        if one_prompt:
            prompts = [prompts[0]] * len(continuations)  # type: ignore[assignment]
        guided, others = take_guidance(options, 1 if one_prompt else len(prompts))
        own, others = take_rule(rule, others)
        for name in others:
            raise OptionTypeError(f"no option is called {name!r}; there are: {', '.join(FIELDS)}", name)
        shots = () if examples is None else as_examples(examples)
        function = rule if callable(rule) else None
        return cls(prompts, continuations, single, shots, experts, own, guided.repeated(len(continuations)), function)


def prepare(
    ensemble: Ensemble, wanted: Generation, ids: Iterator[int]
) -> tuple[list[RunningRequest], list[_C.Request]]:
    """Encode the prompts of a call for every lane, and make a request for each sample.

    Raises
    ------
    ValueError
        If a prompt is empty or longer than the context, or an expert or a drafter is unknown.
    """
    sampling = wanted.sampling
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    chosen = chosen_experts(wanted.experts, ensemble.labels)
    names = [ensemble.labels[number] for number in chosen]
    rule = ensemble.rule(wanted.guided.rule(wanted.rule, ensemble, chosen), wanted.experts, chosen)
    beside = wanted.guided.beside(ensemble, chosen, len(wanted.prompts))
    draft = native_speculation(wanted.speculation, ensemble, chosen)
    bad_words = [
        ensemble.tokenizer.encode(form, add_special_tokens=False)
        for word in sampling.bad_words or ()
        for form in (word, " " + word)
    ]
    requests: list[RunningRequest] = []
    submissions: list[_C.Request] = []
    for i, prompt in enumerate(wanted.prompts):
        which = f"prompt {i}" if len(wanted.prompts) > 1 else "the prompt"
        drafter = uses_drafter(draft, ensemble)
        lanes = lane_prompts(
            ensemble, prompt, chosen, wanted.examples, which, drafter=drafter, beside=beside[i], chat=wanted.chat
        )
        ends = end_tokens(ensemble, prompt, chosen)
        for sample in range(sampling.num_return_sequences):
            mask = None if wanted.grammar is None else GrammarMask(wanted.grammar, ensemble.grammar_tokens.of(ends))
            native = sampling.build(eos_token_ids=ends, bad_words_ids=bad_words, seed=seed, stream=sample)
            native.masked = mask is not None
            request = RunningRequest(
                next(ids),
                i * sampling.num_return_sequences + sample,
                len(lanes[0].tokens),
                ensemble.tokenizer,
                StopStrings(sampling.stop_strings or ()),
                names,
                rule.bounds,
                OwnRule(wanted.own_rule, names) if wanted.own_rule else None,
                mask,
            )
            requests.append(request)
            submissions.append(
                _C.Request(
                    request.request,
                    lanes,
                    chosen,
                    native,
                    sampling.max_new_tokens,
                    draft,
                    rule,
                    hook=request.own_rule is not None,
                    trace=sampling.trace,
                    priority=wanted.priority,
                )
            )
    return requests, submissions
