"""How tokens are chosen and where a text stops."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated

from dlf import _C
from dlf.errors import OptionError, OptionTypeError
from dlf.support.fields import MAX_VOCAB_SIZE
from dlf.support.option import Option
from dlf.support.option_values import as_flag, as_float, as_ids, as_int, as_sequences, as_strings, shown
from dlf.text.stop_strings import StopStrings

__all__ = ["SamplingOptions", "StopStrings"]

_MAX_SEED = 2**64 - 1
_MAX_SEQUENCES = 1024
_MAX_STOP_STRINGS = 1024  # each is looked for at every character
_MAX_STOP_CHARACTERS = 1 << 14
_MAX_STOP_IDS = 1 << 16
_MAX_BAD_WORDS = 1 << 14  # each is looked for at every step
_MAX_BAD_LENGTH = 1 << 20  # characters or token ids, all words together


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when a sequence ends.

    Names follow the ``GenerationConfig`` of transformers. The logits pass, in this order: repetition penalty, presence
    and frequency penalty, logit bias, bad words, minimum length, temperature, top-k, top-p, min-p.

    Parameters
    ----------
    max_new_tokens : int
        Most tokens to generate.
    min_new_tokens : int
        Tokens to generate before a stop token may come.
    temperature : float
        Divides the logits; 0 always takes the most probable token.
    top_k : int
        Draw among this many of the most probable tokens; 0 is off.
    top_p : float
        Draw from the smallest set of the most probable tokens whose probability reaches this; 1 is off.
    min_p : float
        Draw among tokens that are at least this probable relative to the most probable one; 0 is off.
    repetition_penalty : float
        Divides positive and multiplies negative logits of the tokens in the prompt and the generated text; 1 is off.
    presence_penalty : float
        Subtracted once from the logit of every generated token.
    frequency_penalty : float
        Subtracted from the logit of a token as often as it was generated.
    logit_bias : Mapping[int, float], optional
        Added to the logits of these tokens; ``-inf`` excludes one.
    bad_words : Sequence[str], optional
        Texts that must not be generated; the tokenizer turns them into token ids.
    bad_words_ids : Sequence[Sequence[int]], optional
        Sequences of token ids that must not be generated.
    stop_strings : str or Sequence[str], optional
        Generation ends where one of them appears; the text ends just before it.
    stop_token_ids : Sequence[int], optional
        Tokens that end the generation, besides the end-of-sequence token of the model.
    ignore_eos : bool
        Go on after end-of-sequence tokens, as benchmarks do.
    num_return_sequences : int
        Sequences to generate for each prompt.
    seed : int, optional
        The same seed draws the same tokens, whatever else is in the batch; without one the draws are unpredictable.
    logprobs : int
        How many of the most probable tokens to report at every step, with their log-probabilities.
    trace : bool
        Whether ``Completion.trace`` says which tokens the fusion changed; this samples each token twice.

    Raises
    ------
    TypeError
        If a value is of the wrong kind.
    ValueError
        If a value is outside its range.

    """

    max_new_tokens: Annotated[int, Option("Most tokens to generate.", flag="")] = 128
    min_new_tokens: Annotated[int, Option("Tokens before a stop token may come.", flag="")] = 0
    temperature: Annotated[float, Option("0 takes the most probable token.", flag="")] = 0.0
    top_k: Annotated[int, Option("Draw among this many tokens; 0 is off.", flag="")] = 0
    top_p: Annotated[float, Option("Draw from this much probability; 1 is off.", flag="")] = 1.0
    min_p: Annotated[float, Option("Least probability, relative to the top token's.", flag="")] = 0.0
    repetition_penalty: Annotated[float, Option("Divides the logits of tokens seen before; 1 is off.", flag="")] = 1.0
    presence_penalty: Annotated[float, Option("Subtracted from logits of generated tokens; 0 is off.", flag="")] = 0.0
    frequency_penalty: Annotated[float, Option("Subtracted each time a token was generated; 0 is off.", flag="")] = 0.0
    logit_bias: Annotated[Mapping[int, float] | None, Option("Added to the logits of these tokens.")] = None
    bad_words: Annotated[Sequence[str] | None, Option("Texts that must not be generated.")] = None
    bad_words_ids: Annotated[Sequence[Sequence[int]] | None, Option("Token ids that must not be generated.")] = None
    stop_strings: Annotated[
        str | Sequence[str] | None, Option("Text that ends the generation; may be repeated.", flag="--stop", each=str)
    ] = None
    stop_token_ids: Annotated[
        Sequence[int] | None,
        Option("Token that ends it, besides the model's own; may be repeated.", flag="--stop-token-id", each=int),
    ] = None
    ignore_eos: Annotated[bool, Option("Go on after the end of the text.", flag="")] = False
    num_return_sequences: Annotated[int, Option("Sequences to generate for each prompt.")] = 1
    seed: Annotated[int | None, Option("The same seed draws the same tokens.", flag="")] = None
    logprobs: Annotated[int, Option("How many top tokens to report.", flag="")] = 0
    trace: Annotated[bool, Option("Report which tokens the fusion changed.", flag="")] = False

    def __post_init__(self) -> None:
        self._set("max_new_tokens", as_int("max_new_tokens", self.max_new_tokens, 1))
        self._set("min_new_tokens", as_int("min_new_tokens", self.min_new_tokens, 0))
        if self.min_new_tokens > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens, {self.max_new_tokens}: "
                "lower it or raise max_new_tokens",
                "min_new_tokens",
            )
        self._check_filters()
        self._check_penalties()
        self._check_texts()
        as_flag("ignore_eos", self.ignore_eos)
        self._set("num_return_sequences", as_int("num_return_sequences", self.num_return_sequences, 1, _MAX_SEQUENCES))
        if self.num_return_sequences > 1 and self.temperature == 0:
            raise OptionError(
                f"num_return_sequences is {self.num_return_sequences}, but all of them would be the same at "
                "temperature 0: set a temperature above 0",
                "num_return_sequences",
            )
        if self.seed is not None:
            self._set("seed", as_int("seed", self.seed, 0, _MAX_SEED))
        # The sampler knows the size of the vocabulary and refuses more.
        self._set("logprobs", as_int("logprobs", self.logprobs, 0, MAX_VOCAB_SIZE))
        as_flag("trace", self.trace)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_filters(self) -> None:
        self._set("temperature", as_float("temperature", self.temperature))
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise OptionError(
                f"temperature is {self.temperature}: give a finite number >= 0 (0 is greedy)", "temperature"
            )
        self._set("top_k", as_int("top_k", self.top_k, 0))
        self._set("top_p", as_float("top_p", self.top_p))
        if not 0 < self.top_p <= 1:
            raise OptionError(
                f"top_p is {self.top_p}: give a probability above 0 and up to 1 (1 turns it off)", "top_p"
            )
        self._set("min_p", as_float("min_p", self.min_p))
        if not 0 <= self.min_p <= 1:
            raise OptionError(f"min_p is {self.min_p}: give a probability from 0 to 1 (0 turns it off)", "min_p")

    def _check_penalties(self) -> None:
        self._set("repetition_penalty", as_float("repetition_penalty", self.repetition_penalty))
        if not 1 / _C.MAX_PENALTY <= self.repetition_penalty <= _C.MAX_PENALTY:
            raise OptionError(
                f"repetition_penalty is {self.repetition_penalty}: give a number from {1 / _C.MAX_PENALTY:g} to "
                f"{_C.MAX_PENALTY:g} (1 turns it off)",
                "repetition_penalty",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = as_float(name, getattr(self, name))
            if not -_C.MAX_PENALTY <= value <= _C.MAX_PENALTY:
                raise OptionError(
                    f"{name} is {value}: give a number from {-_C.MAX_PENALTY:g} to {_C.MAX_PENALTY:g} (0 turns it off)",
                    name,
                )
            self._set(name, value)
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise OptionTypeError(
                f"logit_bias is {shown(self.logit_bias)}: give a mapping from token ids to numbers", "logit_bias"
            )
        biases = {}
        for token, given in self.logit_bias.items():
            number = as_int("a token of logit_bias", token, 0, field="logit_bias")
            bias = as_float(f"logit_bias of token {number}", given, "logit_bias")
            if not bias <= _C.MAX_BIAS:
                raise OptionError(
                    f"logit_bias of token {number} is {shown(given)}: give a number up to {_C.MAX_BIAS:g}, or -inf to "
                    "exclude it",
                    "logit_bias",
                )
            biases[number] = bias if bias >= -_C.MAX_BIAS else -math.inf  # below the range of float32
        self._set("logit_bias", biases)

    def _check_texts(self) -> None:
        if self.bad_words is not None:
            if isinstance(self.bad_words, str):
                word = shown(self.bad_words)
                raise OptionTypeError(f"bad_words is {word}: give a sequence of strings, [{word}]", "bad_words")
            self._set("bad_words", as_strings("bad_words", self.bad_words, _MAX_BAD_WORDS, _MAX_BAD_LENGTH))
        if self.bad_words_ids is not None:
            words = as_sequences("bad_words_ids", self.bad_words_ids, _MAX_BAD_WORDS, _MAX_BAD_LENGTH)
            self._set("bad_words_ids", words)
        if self.stop_strings is not None:
            strings = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
            strings = as_strings("stop_strings", strings, _MAX_STOP_STRINGS, _MAX_STOP_CHARACTERS)
            self._set("stop_strings", strings)
        if self.stop_token_ids is not None:
            self._set("stop_token_ids", as_ids("stop_token_ids", self.stop_token_ids, _MAX_STOP_IDS))

    def build(
        self,
        *,
        eos_token_ids: Sequence[int] = (),
        bad_words_ids: Sequence[Sequence[int]] = (),
        seed: int | None = None,
        stream: int = 0,
    ) -> _C.SamplingOptions:
        """Options of the C++ sampler for one sequence.

        Parameters
        ----------
        eos_token_ids : Sequence[int]
            End-of-sequence tokens of the model; left out under ``ignore_eos``.
        bad_words_ids : Sequence[Sequence[int]]
            The token ids of ``bad_words``; they join ``bad_words_ids``.
        seed : int, optional
            Used when the options have no seed; drawn at random when this is None too.
        stream : int
            Tells apart sequences that share a seed.

        Returns
        -------
        _C.SamplingOptions
            Options for ``_C.Sampler``.

        """
        if self.seed is not None:
            seed = self.seed
        elif seed is None:
            seed = secrets.randbits(64)
        return _C.SamplingOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=list((self.logit_bias or {}).items()),
            bad_words=[list(word) for word in (*(self.bad_words_ids or ()), *bad_words_ids)],
            stop_token_ids=[*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos_token_ids)],
            min_new_tokens=self.min_new_tokens,
            seed=seed,
            stream=stream,
            logprobs=self.logprobs,
        )
