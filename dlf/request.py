"""One sequence on the Python side: from the step loop's tokens to text."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from dlf import _C
from dlf.errors import EngineError, LogitsError, NoTokenError
from dlf.grammar_mask import GrammarMask
from dlf.own_rule import OwnRule
from dlf.results import Completion, Piece, Step, Timings
from dlf.sampling import StopStrings
from dlf.text.stream_decoder import StreamDecoder
from dlf.text.tokenizer import Tokenizer

__all__ = ["RunningRequest", "raise_failure"]

ERRORS: dict[_C.FailureKind, type[Exception]] = {
    _C.FailureKind.bad_logits: LogitsError,
    _C.FailureKind.no_token: NoTokenError,
    _C.FailureKind.hook: EngineError,
}
REASONS = {_C.FinishReason.stop: "stop", _C.FinishReason.length: "length"}


class RunningRequest:
    """Collects the outputs of one sequence; `pieces` holds those that were not taken yet."""

    def __init__(
        self,
        request: int,
        index: int,
        prompt_tokens: int,
        tokenizer: Tokenizer,
        stop_strings: StopStrings,
        experts: list[str],
        alpha_max: list[float | None],
        own_rule: OwnRule | None = None,
        mask: GrammarMask | None = None,
    ) -> None:
        self.request = request
        self.pieces: deque[Piece] = deque()
        self.finish_reason: str | None = None
        self.cancelled = False  # from outside, by any thread
        self.error: BaseException | None = None
        self._index = index
        self._prompt_tokens = prompt_tokens
        self.tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._stop_strings = stop_strings
        self._experts = experts
        self._alpha_max = alpha_max
        self.own_rule = own_rule
        self.mask = mask
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._own_tokens: list[int] = []
        self._logprobs: list[float] = []
        self._top_logprobs: list[dict[int, float]] = []
        self._alpha: list[list[float]] = []
        self._divergences: list[tuple[float, float]] = []
        self._cached_tokens = 0
        self._passes = 0
        self._drafted = 0
        self._start = time.perf_counter()
        self._now = self._start
        self._times: list[float] = []
        self._steps: list[Step] = []
        self._spent = dict.fromkeys(("large", "small", "solve", "sample"), 0.0)

    @property
    def finished(self) -> bool:
        """Whether no further token will come."""
        return self.finish_reason is not None or self.cancelled

    def spend(self, timings: _C.StepTimings, time: float) -> None:
        """Add a step that this sequence took part in; the step ended at `time`."""
        draft = (timings.drafted, timings.drafter)
        self._steps.append(Step(time - self._now, 0, *draft, timings.graph, timings.small_passes))
        self._now = time
        for part in self._spent:
            self._spent[part] += getattr(timings, part)

    def take(self, output: _C.StepOutput) -> None:
        """Add the output of a step."""
        if output.finish == _C.FinishReason.error:
            self.fail(_as_error(output.failure, self.own_rule, self.mask))
            return
        self._times.append(self._now)
        self._steps[-1].tokens += 1
        self._tokens.append(output.token)
        self._cached_tokens = output.cached_tokens
        if output.drafted >= 0:
            self._passes += 1
            self._drafted += output.drafted
        if output.own_token >= 0:
            self._own_tokens.append(output.own_token)
        self._logprobs.append(output.logprob)
        self._alpha.append(output.alpha)
        self._divergences.append((output.f, output.g))
        top = dict(zip(output.top_tokens, output.top_logprobs, strict=True)) if output.top_tokens else None
        if top is not None:
            self._top_logprobs.append(top)
        self.finish_reason = REASONS.get(output.finish)
        text, stopped = self._push(output.token)
        if not stopped and self.finished:
            rest, stopped = self._stop_strings.push(self._decoder.flush())
            text += rest if stopped else rest + self._stop_strings.flush()
        if stopped:
            self.finish_reason = "stop"
        self._text.append(text)
        alpha = np.array(output.alpha, np.float64)
        own = output.own_token if output.own_token >= 0 else None
        self.pieces.append(Piece(text, output.token, output.logprob, alpha, self._index, output.f, output.g, top, own))

    def cut(self, reason: str) -> None:
        """End the sequence after the last piece that was taken; drop the tokens after it."""
        if self.finish_reason is not None and not self.pieces:
            return
        kept = len(self._tokens) - len(self.pieces)
        self.pieces.clear()
        self._stop_strings = StopStrings(self._stop_strings.strings)
        self._decoder = StreamDecoder(self.tokenizer)
        self._text = [self._push(token)[0] for token in self._tokens[:kept]]
        for kind in (
            self._tokens,
            self._own_tokens,
            self._logprobs,
            self._top_logprobs,
            self._alpha,
            self._divergences,
            self._times,
        ):
            del kind[kept:]
        self._text.append(self._stop_strings.push(self._decoder.flush())[0] + self._stop_strings.flush())
        self.finish_reason = reason

    def fail(self, error: BaseException) -> None:
        """End the sequence with an error."""
        self.error, self.finish_reason = error, "error"

    def raise_failure(self) -> None:
        """Raise the error that ended the sequence, if there was one."""
        if self.error is not None:
            raise self.error

    def _push(self, token: int) -> tuple[str, bool]:
        """Text that can be shown now, and whether a stop string was found; special tokens can be part of one."""
        text = self._decoder.push(token)
        if not text and self.tokenizer.is_special(token):
            return self._stop_strings.push(self.tokenizer.token(token) or "", shown=False)
        return self._stop_strings.push(text)

    def completion(self) -> Completion:
        """Result of the sequence so far; later tokens do not change it."""
        steps = len(self._tokens)
        f, g = np.array(self._divergences, np.float64).reshape(steps, 2).T
        total = sum(self._spent.values()) or 1.0
        return Completion(
            text="".join(self._text),
            tokens=list(self._tokens),
            logprobs=np.array(self._logprobs, np.float64),
            alpha=np.array(self._alpha, np.float64).reshape(steps, len(self._experts)),
            f=f,
            g=g,
            finish_reason=self.finish_reason or ("cancelled" if self.cancelled else None),
            prompt_tokens=self._prompt_tokens,
            timings=Timings(
                time_to_first_token=self._times[0] - self._start if self._times else 0.0,
                token_times=np.diff(np.array(self._times, np.float64)),
                shares={part: seconds / total for part, seconds in self._spent.items()},
                steps=list(self._steps),
            ),
            experts=self._experts,
            top_logprobs=list(self._top_logprobs),
            cached_tokens=self._cached_tokens,
            passes=self._passes,
            drafted=self._drafted,
            own_tokens=list(self._own_tokens),
            alpha_max=list(self._alpha_max),
        )


def raise_failure(failure: _C.Failure, own_rule: OwnRule | None = None) -> None:
    """Raise the error of a request, if the step loop reports one."""
    if failure.kind != _C.FailureKind.none:
        raise _as_error(failure, own_rule)


def _as_error(failure: _C.Failure, own_rule: OwnRule | None, mask: GrammarMask | None = None) -> BaseException:
    if failure.kind == _C.FailureKind.hook and own_rule is not None and own_rule.error is not None:
        return own_rule.error
    if failure.kind == _C.FailureKind.no_token and mask is not None and mask.error is not None:
        return mask.error
    return ERRORS[failure.kind](failure.message)
