"""Decodes token by token."""

from __future__ import annotations

from dlf.text.decoding_unit import Unit
from dlf.text.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]

REPLACEMENT = "\ufffd"  # written by decoders for bytes that are no complete UTF-8 character


class StreamDecoder:
    """Decodes ids one by one; the pieces together are exactly what decoding all of them at once gives.

    A decoder looks beyond single tokens: a character may be spread over several (they decode to U+FFFD until it is
    complete), and the first token of a text may lose its leading space. So a token is decoded together with one that
    came before it, and only what it adds is given out [1]_. The work for a token does not grow with the length of the
    text.

    The decoders of a few old models change much earlier text, or treat the last token differently. With these, `flush`
    returns all of the text.

    .. [1] The windows of vLLM's ``detokenize_incrementally``, here with one token of context.
    """

    # Tokens to wait for a complete character: UTF-8 has at most 4 bytes each, so more will never become one.
    _PATIENCE = 8

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []  # tokens of context (none at first), then those not given out yet
        self._kept = 0  # tokens of context
        self._context = ""  # text of the context

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain now; it may be empty."""
        token = self._tokenizer.token(token_id)
        if token is None or (self._skip_special_tokens and self._tokenizer.is_special(token_id)):
            return ""
        self._window.append(token_id)
        if self._tokenizer.decoding_unit is Unit.TEXT:
            return ""
        # Byte tokens decode together with their neighbours: one wrong byte turns a whole run of them into U+FFFD.
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return ""
        text = self._decode(self._window)
        if self._tokenizer.decoding_unit is Unit.TOKEN or not text.endswith(REPLACEMENT):
            return self._give_out(text, len(self._window))
        if len(self._window) - self._kept >= self._PATIENCE:
            return self._give_out_invalid(text)
        return ""

    def flush(self) -> str:
        """Return the rest of the text, an incomplete character as U+FFFD; the next id begins a new text."""
        piece = self._decode(self._window)[len(self._context) :]
        self._window, self._kept, self._context = [], 0, ""
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _give_out(self, text: str, count: int) -> str:
        """Give out the first `count` tokens of the window, which decode to `text`.

        The last of them becomes the context, unless it decodes to nothing: it would not show that a text has begun.
        """
        piece = text[len(self._context) :]
        kept = self._window[count - 1 : count]
        context = self._decode(kept)
        if not context and self._context:
            kept, context = self._window[: self._kept], self._context
        elif not context:
            kept, context = self._window[:count], text
        self._window[:count] = kept
        self._kept, self._context = len(kept), context
        return piece

    def _give_out_invalid(self, text: str) -> str:
        """Give out what no further byte can change: up to a border whose two sides decode alike apart and together.

        An incomplete character spans at most three borders, so one of the last four is of this kind.
        """
        for count in range(len(self._window) - 1, max(len(self._window) - 5, self._kept), -1):
            head = self._decode(self._window[:count])
            if head + self._decode(self._window[count:]) == text:
                return self._give_out(head, count)
        return ""
