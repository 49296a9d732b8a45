"""How tokens are chosen and where a text stops."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from .stop_strings import StopStrings

if TYPE_CHECKING:
    from . import _C

__all__ = ["SamplingOptions", "StopStrings"]

_MAX_SEED = 2**64 - 1
_MAX_INT = 2**63 - 1  # what the sampler can hold


def _check_int(name: str, value: Any, least: int, most: int = _MAX_INT) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}: give an int")
    if not least <= int(value) <= most:
        bounds = f">= {least}" if most == _MAX_INT and int(value) < least else f"from {least} to {most}"
        raise ValueError(f"{name} is {value}: give an int {bounds}")


def _check_float(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}: give a number")


def _check_strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {value!r}: give a sequence of strings")
    for text in value:
        if not isinstance(text, str):
            raise TypeError(f"{name} holds {text!r}: give strings")
        if not text:
            raise ValueError(f"{name} holds an empty string: leave it out")
    return tuple(value)


def _check_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {value!r}: give a sequence of token ids")
    for token in value:
        _check_int(name, token, 0)
    return tuple(int(token) for token in value)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when a sequence ends.

    Names follow the ``GenerationConfig`` of transformers. The logits pass, in this order: repetition penalty, presence
    and frequency penalty, logit bias, bad words, minimum length, temperature, top-k, top-p, min-p.

    Parameters
    ----------
    max_new_tokens : int
        Tokens to generate at most.
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

    Raises
    ------
    TypeError
        If a value is of the wrong kind.
    ValueError
        If a value is outside its range.

    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    stop_strings: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    num_return_sequences: int = 1
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens, {self.max_new_tokens}: raise that"
            )
        self._check_filters()
        self._check_penalties()
        if self.bad_words is not None:
            if isinstance(self.bad_words, str):
                raise TypeError(f"bad_words is {self.bad_words!r}: give a sequence of strings, [{self.bad_words!r}]")
            self._set("bad_words", _check_strings("bad_words", self.bad_words))
        if self.bad_words_ids is not None:
            if isinstance(self.bad_words_ids, (str, bytes)) or not isinstance(self.bad_words_ids, Sequence):
                raise TypeError(f"bad_words_ids is {self.bad_words_ids!r}: give a sequence of sequences of token ids")
            words = tuple(_check_ids("bad_words_ids", word) for word in self.bad_words_ids)
            if not all(words):
                raise ValueError("bad_words_ids holds an empty word: give each word at least one token")
            self._set("bad_words_ids", words)
        if self.stop_strings is not None:
            strings = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
            self._set("stop_strings", _check_strings("stop_strings", strings))
        if self.stop_token_ids is not None:
            self._set("stop_token_ids", _check_ids("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos is {self.ignore_eos!r}: give True or False")
        _check_int("num_return_sequences", self.num_return_sequences, 1)
        if self.num_return_sequences > 1 and self.temperature == 0:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but all of them would be the same at "
                "temperature 0: set a temperature above 0"
            )
        if self.seed is not None:
            _check_int("seed", self.seed, 0, _MAX_SEED)
        _check_int("logprobs", self.logprobs, 0)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_filters(self) -> None:
        _check_float("temperature", self.temperature)
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}: give a finite number >= 0 (0 is greedy)")
        _check_int("top_k", self.top_k, 0)
        _check_float("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a probability above 0 and up to 1 (1 turns it off)")
        _check_float("min_p", self.min_p)
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}: give a probability from 0 to 1 (0 turns it off)")

    def _check_penalties(self) -> None:
        _check_float("repetition_penalty", self.repetition_penalty)
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}: give a finite number > 0 (1 turns it off)"
            )
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            _check_float(f"{name}_penalty", value)
            if not math.isfinite(value):
                raise ValueError(f"{name}_penalty is {value}: give a finite number (0 turns it off)")
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias is {self.logit_bias!r}: give a mapping from token ids to numbers")
        for token, bias in self.logit_bias.items():
            _check_int("a token of logit_bias", token, 0)
            _check_float(f"logit_bias of token {token}", bias)
            if not bias < math.inf:
                raise ValueError(f"logit_bias of token {token} is {bias}: give a finite number, or -inf to exclude it")
        self._set("logit_bias", {int(token): float(bias) for token, bias in self.logit_bias.items()})

    def build(
        self,
        *,
        eos_token_ids: Sequence[int] = (),
        bad_words_ids: Sequence[Sequence[int]] = (),
        seed: int | None = None,
        stream: int = 0,
    ) -> _C.SamplingOptions:
        """Options of the C++ sampler, for one sequence.

        Parameters
        ----------
        eos_token_ids : Sequence[int]
            End-of-sequence tokens of the model; left out under ``ignore_eos``.
        bad_words_ids : Sequence[Sequence[int]]
            The token ids of ``bad_words``; they join ``bad_words_ids``.
        seed : int, optional
            Used when the options have no seed; drawn at random when it is missing as well.
        stream : int
            Tells apart sequences that share a seed.

        Returns
        -------
        _C.SamplingOptions
            What ``_C.Sampler`` takes.

        """
        from . import _C

        if self.seed is not None:
            seed = self.seed
        elif seed is None:
            seed = secrets.randbits(64)
        return _C.SamplingOptions(
            temperature=float(self.temperature),
            top_k=self.top_k,
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            logit_bias=list((self.logit_bias or {}).items()),
            bad_words=[list(word) for word in (*(self.bad_words_ids or ()), *bad_words_ids)],
            stop_token_ids=[*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos_token_ids)],
            min_new_tokens=self.min_new_tokens,
            seed=seed,
            stream=stream,
            logprobs=self.logprobs,
        )
