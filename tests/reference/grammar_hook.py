"""The obvious way to hold an answer to a grammar: a function as rule that sets the logits of a step to -inf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import dlf

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarHook:
    """Masks the fused logits of one request in place, so that the engine draws from what is left."""

    def __init__(self, grammar: dlf.Grammar, tokens: LLTokenizer) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokens, grammar.compiled, log_level=0)
        self._taken = 0  # decoded tokens that the matcher has read
        self._drafted: list[int] = []  # tokens of the last step's draft

    def __call__(self, step: dlf.StepLogits) -> None:
        """Mask the logits of a step, at each of its positions."""
        count = step.step - self._taken
        if count > 0:  # the accepted part of the last draft, and the token after it
            if not self._matcher.is_stopped():
                assert self._matcher.consume_tokens([*self._drafted[: count - 1], step.tokens[0]])
            self._taken = step.step
        self._drafted = step.tokens[1:]
        read = 0
        for row, token in enumerate(step.tokens):
            if row > 0 and not self._matcher.is_stopped():
                if self._matcher.try_consume_tokens([token]) == 0:
                    break  # the draft is wrong from here on
                read += 1
            self._mask(step.fused[row])
        if read:
            self._matcher.rollback(read)

    def _mask(self, logits: torch.Tensor) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little")
        logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)
