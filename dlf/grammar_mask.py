"""Keeps the answer of one request within a grammar: says which tokens may follow, at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    """Writes the masks of one request, on the thread that steps.

    A mask that cannot be written fails the request; `error` then says why.

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
        self.error: BaseException | None = None

    def __call__(self, rows: _C.MaskRows) -> None:
        """Write the masks of a step, at each of its positions."""
        try:
            self._write(rows)
        except BaseException as error:
            self.error = error

    def _write(self, rows: _C.MaskRows) -> None:
        matcher, words = self._matcher, rows.words
        # A request may go on behind the end of its answer; nothing but further ends may follow there.
        if rows.decoded and not matcher.is_stopped() and not matcher.consume_tokens(rows.decoded):
            raise self._stuck()
        begin, size, stride = words.data_ptr(), words.nbytes // len(words), words.stride(0) * words.itemsize
        first = len(rows.drafted) + 1 - len(words)  # position of the first mask
        if first == 0:
            self._write_row(begin, size)
        read = 0
        for position, token in enumerate(rows.drafted, 1):
            if not matcher.is_stopped():
                if matcher.try_consume_tokens([token]) == 0:
                    break  # the draft is wrong from here on
                read += 1
            if position >= first:
                self._write_row(begin + (position - first) * stride, size)
        if read:
            matcher.rollback(read)

    def _write_row(self, address: int, size: int) -> None:
        self._matcher.unsafe_compute_mask_ptr(address, size)
        if self._matcher.is_error():
            raise self._stuck()

    def _stuck(self) -> OptionError:
        return OptionError(f"the grammar cannot be followed further: {_error(self._matcher)}", "grammar")


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
