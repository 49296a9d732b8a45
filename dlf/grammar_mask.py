"""Keeps the answer of one request within a grammar: a mask on the logits of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlf import _C
from dlf.errors import OptionError
from dlf.grammar import HINT, Grammar
from dlf.text.token_bytes import token_bytes
from dlf.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["GrammarMask", "GrammarTokens"]

BEFORE = "\x02"  # a character that no tokenizer joins with the next one


class GrammarMask:
    """Masks the logits of one request, on the thread that steps.

    Parameters
    ----------
    grammar
        What the answer may be.
    tokens
        The vocabulary, from `GrammarTokens.of`.

    Raises
    ------
    OptionError
        If the grammar has a mistake; the message says which.
    ImportError
        If llguidance is missing.
    """

    def __init__(self, grammar: Grammar, tokens: LLTokenizer) -> None:
        self._matcher = _matcher(grammar, tokens)
        self._taken = 0  # decoded tokens that the matcher has read
        self._drafted: list[int] = []  # tokens of the last step's draft

    def __call__(self, rows: _C.HookRows) -> None:
        """Mask the logits of a step, at each of its positions."""
        count = rows.step - self._taken
        if count > 0:  # the accepted part of the last draft, and the token after it
            self._take([*self._drafted[: count - 1], rows.tokens[0]])
            self._taken = rows.step
        self._drafted = rows.tokens[1:]
        read = 0
        for row in range(len(rows.tokens)):
            if row > 0 and not self._matcher.is_stopped():
                if self._matcher.try_consume_tokens([rows.tokens[row]]) == 0:
                    break  # the draft is wrong from here on
                read += 1
            self._mask(rows.fused[row])
        if read:
            self._matcher.rollback(read)

    def _take(self, tokens: list[int]) -> None:
        if self._matcher.is_stopped():  # the answer has ended, but the request goes on behind the end
            return
        if not self._matcher.consume_tokens(tokens):
            raise OptionError(f"the grammar cannot be followed further: {_error(self._matcher)}", "grammar")

    def _mask(self, logits: torch.Tensor) -> None:
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise OptionError(f"the grammar cannot be followed further: {_error(self._matcher)}", "grammar")
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little")
        logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)


class _Vocabulary:
    """A tokenizer in the form that llguidance wraps."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]) -> None:
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [token_bytes(tokenizer, token) for token in range(vocab_size)]
        self.special_token_ids = [token for token in range(vocab_size) if tokenizer.is_special(token)]
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(BEFORE, add_special_tokens=False)

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text that stands within another one: tokenizers may add a space to the begin of a whole text."""
        found = self._tokenizer.encode(BEFORE + text, add_special_tokens=False)
        count = len(self._before)
        return (
            found[count:] if found[:count] == self._before else self._tokenizer.encode(text, add_special_tokens=False)
        )


class GrammarTokens:
    """The tokens of one model as llguidance holds them, made when they are first needed, which takes up to a second."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._made: dict[tuple[int, ...], LLTokenizer] = {}

    def of(self, ends: Sequence[int]) -> LLTokenizer:
        """Return the tokens for answers that these ids end.

        Raises
        ------
        OptionError
            If there is no such id.
        ImportError
            If llguidance is missing.
        """
        if not ends:
            raise OptionError(
                "the model has no token that ends a text, and so an answer that follows a grammar", "grammar"
            )
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise ImportError(HINT) from error
        if tuple(ends) not in self._made:
            wrapped: Any = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size, tuple(ends)))
            self._made[tuple(ends)] = LLTokenizer(wrapped, n_vocab=self._vocab_size, eos_token=list(ends))
        return self._made[tuple(ends)]


def _matcher(grammar: Grammar, tokens: LLTokenizer) -> LLMatcher:
    from llguidance import LLMatcher

    found = LLMatcher(tokens, grammar.compiled, log_level=0)
    if found.is_error():
        raise OptionError(f"the grammar has a mistake: {_error(found)}", "grammar")
    return found


def _error(matcher: LLMatcher) -> str:
    """What llguidance says, without the state of its parser."""
    return matcher.get_error().partition("<state>")[0].strip()
