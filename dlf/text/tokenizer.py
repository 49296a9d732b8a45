"""Text to token ids and back: a checkpoint's tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

from dlf.errors import CheckpointError, TextTooLongError
from dlf.support.fields import MAX_VOCAB_SIZE
from dlf.text.decoding_unit import Unit, decoding_unit
from dlf.text.open_ended import open_ended
from dlf.text.tokenizer_codec import ConfinedCodec, open_codec
from dlf.text.tokenizer_parts import TokenizerParts, read_parts

__all__ = ["Tokenizer"]

MAX_TOKEN_ID = (1 << 32) - 1
CHARACTERS_PER_TOKEN = 12  # more than any language has
ANSWER = "sentinelanswer"  # an answer that shows where the assistant's turn ends


class Tokenizer:
    """The tokenizer of a checkpoint.

    Most tokenizers run in this process. One with parts that could crash it, or never end, runs in a helper process
    under limits of time and memory.

    Parameters
    ----------
    source
        A folder with ``tokenizer.json``, or what was read elsewhere. In a folder ``tokenizer_config.json``,
        ``special_tokens_map.json``, ``added_tokens.json`` and chat templates are read if they are there.

    Raises
    ------
    FileNotFoundError
        If there is no ``tokenizer.json``.
    CheckpointError
        If a file is damaged, or two of them give a token different ids.
    """

    def __init__(self, source: Path | TokenizerParts) -> None:
        parts = source if isinstance(source, TokenizerParts) else read_parts(Path(source))
        self._path, content, document, extra = parts.path, parts.content, parts.document, parts.extra
        self._codec = open_codec(content, document, parts.twice, extra.added, parts.path)
        self.fingerprint = hashlib.sha256(f"{json.dumps(extra.added)}\n{content}".encode()).digest()
        """Hash of everything that encoding depends on: tokenizers with the same hash encode alike."""
        self.decoding_unit = Unit.TEXT if parts.twice else decoding_unit(document.get("decoder"))
        """The smallest part of a text that `StreamDecoder` can give out."""
        self._ids = self._codec.vocab()
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        """Highest id + 1, added tokens included; a model's logits may be padded beyond it."""
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE:
            raise CheckpointError(f"{parts.path}: {self.vocab_size} token ids, not 1 to {MAX_VOCAB_SIZE}")
        for token, token_id in extra.ids.items():
            if self._ids.get(token, token_id) != token_id:
                raise CheckpointError(
                    f"{parts.path.parent}: the token {token!r:.60} should have the id {token_id}, but has "
                    f"{self._ids[token]} in tokenizer.json; the files do not belong together, so fetch the folder again"
                )
        added = self._codec.added()
        self.added_ids = frozenset(added)
        """Ids of added tokens: special ones, and others that the tokenizer's model does not make."""
        self._special = frozenset(content for content, special in added.values() if special)
        self._special_tokens = extra.named
        self.unk_token_id: int | None = self._ids.get(_unknown(document))
        """Id of the token that stands for text outside the vocabulary, if there is one."""
        self.bos_token_id: int | None = self._ids.get(extra.named.get("bos_token", ""))
        self.eos_token_id: int | None = self._ids.get(extra.named.get("eos_token", ""))
        self._chat_template = parts.template

    @property
    def vocab(self) -> Mapping[str, int]:
        """Every token and its id."""
        return self._ids

    @property
    def confined(self) -> bool:
        """Whether a helper process encodes and decodes, which takes longer."""
        return isinstance(self._codec, ConfinedCodec)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return bool(self._chat_template)

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, if there is one."""
        return self._chat_template.source

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The added token that ends an assistant's turn in the chat template, such as ``<|im_end|>``, or None.

        A template that fails on a conversation of two turns has none.
        """
        talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ANSWER}]
        try:
            before, found, after = self.apply_chat_template(talk, add_generation_prompt=False).rpartition(ANSWER)
            ids = self.encode(after.lstrip(), add_special_tokens=False) if found else []
        except ValueError:
            return None
        return ids[0] if ids and ids[0] in self.added_ids else None

    def encode(self, text: str, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Encode a text.

        Parameters
        ----------
        text
            Any text.
        add_special_tokens
            Whether to add the special tokens that ``tokenizer.json`` puts around a text.
        max_tokens
            Bound for texts from outside. A text with many more tokens is refused after a part of it was encoded; one
            with only a few more is encoded, so that its length is known.

        Returns
        -------
        list of int
            Token ids.

        Raises
        ------
        TextTooLongError
            If it has far more than `max_tokens` tokens.
        ValueError
            If the text has half of a surrogate pair, or the tokenizer cannot encode it, or not in time.
        TypeError
            If it is no str.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}")
        if max_tokens is not None:
            self._check_length(text, max(0, max_tokens))
        return self._encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids without a token, such as a model's padding of its logits, are left out.

        Raises
        ------
        ValueError
            If an id is negative or too large, or the tokenizer cannot decode them.
        """
        known = [index(token_id) for token_id in ids]
        if known and not 0 <= min(known) <= max(known) <= MAX_TOKEN_ID:
            raise ValueError("a token id is negative or too large")
        try:
            return self._codec.decode(known, skip_special_tokens)
        except ValueError as error:
            raise ValueError(f"{self._path} cannot decode these tokens: {error}") from error

    def token(self, token_id: int) -> str | None:
        """Token of an id as the vocabulary spells it, or None."""
        return self._codec.token(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether decoding with ``skip_special_tokens`` leaves this id out."""
        return self._codec.token(token_id) in self._special

    def apply_chat_template(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Write a conversation in the form that its model was trained on.

        Parameters
        ----------
        messages
            Mappings with ``role`` and ``content``.
        add_generation_prompt
            Whether to end with the opening of the assistant's next turn.
        continue_final_message
            Whether to end with the content of the last message, which the model goes on with.
        **variables
            Further variables for the template, such as ``tools`` or ``enable_thinking``.

        Raises
        ------
        ValueError
            If the checkpoint has no chat template, or the template refuses the messages.
        """
        given = self._special_tokens | {"tools": None, "documents": None} | variables

        def write(messages: list[dict[str, Any]]) -> str:
            return self._chat_template.render(
                **given | {"messages": messages, "add_generation_prompt": add_generation_prompt}
            )

        talk = [dict(message) for message in messages]
        return open_ended(write, talk) if continue_final_message else write(talk)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            return self._codec.encode(text, add_special_tokens)
        except ValueError as error:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    "the text has half of a surrogate pair, which is no character; decode it properly"
                ) from None
            raise ValueError(f"{self._path} cannot encode this text: {error}") from error

    def _check_length(self, text: str, max_tokens: int) -> None:
        """Refuse a text whose beginning already has more than twice `max_tokens` tokens, and a margin.

        A text has fewer tokens than its beginning only if the cut splits a long token, or with an odd normalizer.
        """
        size = max(CHARACTERS_PER_TOKEN * max_tokens, 4096)
        while size < len(text):
            if len(self._encode(text[:size], False)) > 2 * max_tokens + 256:
                raise TextTooLongError(max_tokens + 1)
            size *= 2


def _unknown(document: Mapping[str, Any]) -> str:
    """Token that the tokenizer's model gives for text that it does not know; empty if it has none."""
    model = document.get("model")
    if not isinstance(model, dict):
        return ""
    token, vocab, number = (model.get(key) for key in ("unk_token", "vocab", "unk_id"))
    if isinstance(vocab, list) and type(number) is int and 0 <= number < len(vocab):  # of a unigram model
        token = vocab[number][0] if isinstance(vocab[number], list) and vocab[number] else None
    return token if isinstance(token, str) else ""
