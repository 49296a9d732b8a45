"""Tokens that only other files than tokenizer.json have, read as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from models import EOS, VOCAB_SIZE, make_sentencepiece_tokenizer, make_tokenizer

from dlf.errors import CheckpointError
from dlf.text.stream_decoder import StreamDecoder
from dlf.text.tokenizer import Tokenizer

TEXT = "the cat<|im_start|>user\nhi<|im_end|> </s> x<pad><|end|> the end"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
CHATML = {"<|im_start|>": {}, "<|im_end|>": {}}


def added(first: int, **flags: bool) -> dict[str, Any]:
    return {str(first + i): FLAGS | flags | {"content": token} for i, token in enumerate(CHATML)}


@pytest.mark.parametrize("make", [make_tokenizer, make_sentencepiece_tokenizer])
@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": "CHATML", "eos_token": "<|im_end|>"}},
        {"tokenizer_config.json": {"added_tokens_decoder": "PLAIN", "pad_token": "<pad>"}},
        {"tokenizer_config.json": {"eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}},
        {"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": "</s>", **FLAGS, "rstrip": True}}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"end_token": "<|im_end|>"}}},
        {"added_tokens.json": "IDS", "special_tokens_map.json": {"eos_token": "<|im_end|>"}},
        {
            "added_tokens.json": "IDS",
            "special_tokens_map.json": {
                "eos_token": {"content": "</s>", "lstrip": True, "single_word": False, "normalized": False},
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            },
            "tokenizer_config.json": {"eos_token": EOS},
        },
    ],
)
def test_extra_tokens_equal_transformers(tmp_path: Path, make: Any, files: dict[str, Any]) -> None:
    make(tmp_path)
    size = Tokenizer(tmp_path).vocab_size
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for name, values in files.items():
        if values == "IDS":
            values = {token: size + i for i, token in enumerate(CHATML)}
        elif "added_tokens_decoder" in values:
            values = values | {"added_tokens_decoder": added(size, special=values["added_tokens_decoder"] == "CHATML")}
        (tmp_path / name).write_text(json.dumps(values))
    ours, theirs = Tokenizer(tmp_path), transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = ours.encode(TEXT)
    assert ids == theirs.encode(TEXT)
    assert ours.vocab == theirs.get_vocab()
    assert ours.eos_token_id == theirs.eos_token_id
    for skip in (True, False):
        text = ours.decode(ids, skip)
        assert text == theirs.decode(ids, skip_special_tokens=skip)
        stream = StreamDecoder(ours, skip)
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def write(folder: Path, **config: Any) -> Tokenizer:
    make_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def test_chat_tokens_are_one_token_and_eos_is_not_printed(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, added_tokens_decoder=added(VOCAB_SIZE), eos_token="</s>")
    assert tokenizer.encode("<|im_end|>") == [VOCAB_SIZE + 1]
    assert tokenizer.eos_token_id is not None and tokenizer.is_special(tokenizer.eos_token_id)
    assert tokenizer.decode([*tokenizer.encode("the"), tokenizer.eos_token_id]) == "the"


def test_the_fingerprint_covers_added_tokens(tmp_path: Path) -> None:
    plain = write(tmp_path / "a")
    assert plain.fingerprint == write(tmp_path / "b", model_max_length=7).fingerprint
    assert plain.fingerprint != write(tmp_path / "c", added_tokens_decoder=added(VOCAB_SIZE)).fingerprint


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": added(VOCAB_SIZE + 5)},  # would leave a hole
        {"added_tokens_decoder": added(3)},  # other tokens have these ids
        {"added_tokens_decoder": {"x": FLAGS | {"content": "a"}}},
        {"added_tokens_decoder": {"1": FLAGS}},
        {"added_tokens_decoder": [1]},
        {"extra_special_tokens": 3},
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="fetch"):
        write(tmp_path, **config)
