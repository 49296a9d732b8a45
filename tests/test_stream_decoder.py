"""Streamed pieces join to the decoded text, for any decoder and any tokens in any order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dlf import zoo
from dlf.text.decoding_unit import Unit
from dlf.text.stream_decoder import StreamDecoder
from dlf.text.tokenizer import Tokenizer

BYTES = bytes_to_unicode()
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FUSE = [{"type": "ByteFallback"}, {"type": "Fuse"}]
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": True}


def sequence(*decoders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(decoders)}


def strip(content: str, start: int, stop: int) -> dict[str, Any]:
    return {"type": "Strip", "content": content, "start": start, "stop": stop}


TOKEN_BY_TOKEN: dict[str, Any] = {
    "none": None,
    "bytes": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "llama": sequence(SPACES, *FUSE, strip(" ", 1, 0)),
    "gemma": sequence(SPACES, *FUSE),
    "metaspace": METASPACE | {"prepend_scheme": "always"},
    "metaspace, never": METASPACE | {"prepend_scheme": "never"},
    "wordpiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "fuse": {"type": "Fuse"},
    "byte fallback": {"type": "ByteFallback"},
}
WHOLE: dict[str, Any] = {
    "bpe": {"type": "BPEDecoder", "suffix": "</w>"},
    "ctc": {"type": "CTC", "pad_token": "a", "word_delimiter_token": "▁", "cleanup": True},
    "strip of the end": sequence(*FUSE, strip("a", 0, 2)),
    "strip of two": sequence(SPACES, *FUSE, strip(" ", 2, 0)),
    "replace across tokens": sequence(*FUSE, {"type": "Replace", "pattern": {"String": "aa"}, "content": "b"}),
    "replace at the end": sequence(*FUSE, {"type": "Replace", "pattern": {"Regex": "a+$"}, "content": "b"}),
    "bytes are made": sequence({"type": "Replace", "pattern": {"String": "▁"}, "content": "<0x"}, *FUSE),
    "wordpiece, fused": sequence({"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}),
}
TOKENS = [
    *["", " ", "a", "aa", "▁", "▁a", "a▁", "##", "##a", "##n't", "n't", ".", " do not", "\ufffd", "a\ufffd", "é"],
    *["<0x41>", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0xzz>", "▁41>", "</w>", "a</w>", "<s>", "</s>"],
    *(BYTES[byte] for byte in (0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0x20, 0xFF)),
    BYTES[0xE2] + BYTES[0x82],
    BYTES[0xAC] + "a",
]


def make(folder: Path, decoder: dict[str, Any] | None) -> Tokenizer:
    """Make a tokenizer of odd tokens, with gaps between their ids."""
    vocab = {token: i + (3 if i > 20 else 0) for i, token in enumerate(dict.fromkeys(TOKENS))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[token], "content": token, "special": True} | flags for token in ("<s>", "</s>")],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    made = {name: make(root / name, decoder) for name, decoder in (TOKEN_BY_TOKEN | WHOLE).items()}
    return made | {"zoo": Tokenizer(zoo.path("small-base"))}


@pytest.mark.parametrize("name", [*TOKEN_BY_TOKEN, *WHOLE, "zoo"])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_the_text(tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = tokenizers[name]
    few = data.draw(st.lists(st.integers(0, tokenizer.vocab_size), min_size=1, max_size=6))
    ids = data.draw(st.lists(st.sampled_from(few), max_size=30))
    stream = StreamDecoder(tokenizer, skip)
    try:
        text = tokenizer.decode(ids, skip)
    except ValueError:  # some decoders strip more than the text has
        return
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_which_decoders_stream(tokenizers: dict[str, Tokenizer]) -> None:
    assert all(tokenizers[name].decoding_unit is not Unit.TEXT for name in (*TOKEN_BY_TOKEN, "zoo"))
    assert all(tokenizers[name].decoding_unit is Unit.TEXT for name in WHOLE)
    stream = StreamDecoder(tokenizers["llama"])
    vocab = tokenizers["llama"].vocab
    assert [stream.push(vocab[token]) for token in ("▁a", "▁", "\ufffd", "a")] == ["a", " ", "\ufffd", "a"]
