"""Text to token ids and back: a checkpoint's ``tokenizer.json``, its chat template, and decoding token by token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from dlf.chat_template import ChatTemplate
from dlf.errors import CheckpointError, TokenizerMismatchError
from dlf.fields import MAX_VOCAB_SIZE, read_json

__all__ = ["StreamDecoder", "Tokenizer", "check_same_tokenizer"]

MAX_TOKENIZER_BYTES = 256 << 20
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no complete UTF-8 character


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    Parameters
    ----------
    folder
        A folder with ``tokenizer.json``; ``tokenizer_config.json`` and ``chat_template.jinja`` are read if they are
        there.

    Raises
    ------
    FileNotFoundError
        If there is no ``tokenizer.json``.
    CheckpointError
        If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; fetch the checkpoint again, or write one with transformers: "
                "AutoTokenizer.from_pretrained(name).save_pretrained(folder)"
            )
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB; fetch the checkpoint again")
        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is no valid tokenizer ({error}); fetch the checkpoint again") from error
        self.fingerprint = hashlib.sha256(content).digest()
        """Of its file: two with the same encode alike."""
        # Padding and cutting are the engine's business; some files carry what their training used.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        """Highest id + 1, added tokens included; a model's logits may be padded beyond it."""
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE:
            raise CheckpointError(f"{path}: {self.vocab_size} token ids, not 1 to {MAX_VOCAB_SIZE}")
        self._special_ids = frozenset(i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special)

        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        self._special_tokens = {key: token for key in config if (token := _special_token(config, key)) is not None}
        self.bos_token_id: int | None = self._ids.get(self._special_tokens.get("bos_token", ""))
        self.eos_token_id: int | None = self._ids.get(self._special_tokens.get("eos_token", ""))
        self._chat_template = ChatTemplate.read(folder, config)

    @property
    def vocab(self) -> Mapping[str, int]:
        """Every token and its id."""
        return self._ids

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint comes with one."""
        return bool(self._chat_template)

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, if there is one."""
        return self._chat_template.source

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that ``tokenizer.json`` puts around one unless told not to."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            if not isinstance(text, str):
                raise TypeError(f"a text must be a str, not {type(text).__name__}") from error
            raise ValueError(
                "the text has half of a surrogate pair, which is no character; decode it properly"
            ) from error
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids without a token, such as a model's padding of its logits, are left out."""
        try:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise ValueError(f"a token id is negative or too large: {error}") from error
        return text

    def token(self, token_id: int) -> str | None:
        """The token of an id as the vocabulary spells it, or None."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def is_special(self, token_id: int) -> bool:
        """Whether decoding with ``skip_special_tokens`` leaves this id out."""
        return token_id in self._special_ids

    def apply_chat_template(
        self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Write a conversation as the prompt its model was trained on.

        Parameters
        ----------
        messages
            Mappings with ``role`` and ``content``.
        add_generation_prompt
            Whether to end with the opening of the assistant's next turn.
        **variables
            Further variables for the template, such as ``tools`` or ``enable_thinking``.

        Raises
        ------
        ValueError
            If the checkpoint has no chat template, or the template refuses the messages.
        """
        return self._chat_template.render(
            **self._special_tokens
            | {"tools": None, "documents": None}
            | variables
            | {"messages": [dict(message) for message in messages], "add_generation_prompt": add_generation_prompt}
        )


class StreamDecoder:
    """Decodes ids one by one; the pieces together are exactly what decoding all of them at once gives.

    A decoder looks beyond single tokens: a character may be spread over several (they decode to U+FFFD until it is
    complete), and the first token of a text may lose its leading space. So a token is decoded together with the one
    before it, and only what it adds is given out [1]_. The work for a token does not grow with the length of the text.

    .. [1] The windows of vLLM's ``detokenize_incrementally``, here with one token of context.
    """

    # A UTF-8 character has 4 bytes, so a longer wait is for bytes that will never be a character.
    _PATIENCE = 8

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []  # one token of context (none at first), then those not given out yet
        self._context = ""  # what the context decodes to

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain by now, often of this id alone, possibly empty."""
        token = self._tokenizer.token(token_id)
        if token is None or (self._skip_special_tokens and self._tokenizer.is_special(token_id)):
            return ""
        self._window.append(token_id)
        # Byte tokens decode together with their neighbours: one wrong byte turns a whole run of them into U+FFFD.
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return ""
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._give_out(text, len(self._window))
        if len(self._window) > self._PATIENCE:
            return self._give_out_invalid(text)
        return ""

    def flush(self) -> str:
        """Return the rest of the text, an incomplete character as U+FFFD; the next id begins a new text."""
        piece = self._decode(self._window)[len(self._context) :]
        self._window, self._context = [], ""
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _give_out(self, text: str, count: int) -> str:
        """Give out the first `count` tokens of the window, which decode to `text`, and keep the last as context."""
        piece = text[len(self._context) :]
        self._window = self._window[count - 1 :]
        self._context = self._decode(self._window[:1])
        return piece

    def _give_out_invalid(self, text: str) -> str:
        """Give out what no further byte can change: up to a border where both sides decode the same apart as together.

        A character that is under way spans at most three borders, so one of the last four is such.
        """
        for count in range(len(self._window) - 1, max(len(self._window) - 5, 1), -1):
            head = self._decode(self._window[:count])
            if head + self._decode(self._window[count:]) == text:
                return self._give_out(head, count)
        return ""


def check_same_tokenizer(a: Tokenizer, b: Tokenizer, name_a: str, name_b: str) -> None:
    """Check that the two tokenizers agree wherever both have a say.

    One may have tokens at the end that the other lacks; but an id that both have must mean the same token, and a token
    that both have must have the same id.

    Raises
    ------
    TokenizerMismatchError
        Naming the first ids that differ, and how many do.
    """
    if a.vocab == b.vocab:
        return
    tokens_b = {token_id: token for token, token_id in b.vocab.items()}
    differing, shared = [], 0
    for token, token_id in a.vocab.items():
        other, other_id = tokens_b.get(token_id), b.vocab.get(token)
        shared += other is not None
        if other not in (None, token) or other_id not in (None, token_id):
            differing.append((token_id, token, other, other_id))
    if not differing and shared:
        return
    differing.sort()
    examples = "; ".join(
        f"{token_id} is {token!r:.40} in {name_a}, "
        + (f"{other!r:.40} in {name_b}" if other is not None else f"which has the id {other_id} in {name_b}")
        for token_id, token, other, other_id in differing[:3]
    )
    raise TokenizerMismatchError(
        f"{name_a} and {name_b} do not share a tokenizer: {len(differing)} of {len(a.vocab)} and {len(b.vocab)} tokens "
        f"differ ({examples}); fuse models of one family"
    )


def _special_token(config: Mapping[str, Any], key: str) -> str | None:
    """A special token of ``tokenizer_config.json``, written as a string or as an object with ``content``."""
    value = config[key]
    if isinstance(value, dict):
        value = value.get("content")
    return value if key.endswith("_token") and isinstance(value, str) else None
