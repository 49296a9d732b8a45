"""GGUF files give what llama.cpp computes from them, where llama-cpp-python is installed (extra ``bench``)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CORPUS, FAMILIES, VOCAB_SIZE, make_model
from real.questions import MULTILINGUAL
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import Unigram

llama_cpp = pytest.importorskip("llama_cpp")

from gguf_files import NOT_IN_GGUF, write_file, write_gguf  # noqa: E402

from dlf import _C  # noqa: E402
from dlf.checkpoints.source import open_source  # noqa: E402
from dlf.model import load_model  # noqa: E402

TOKENS = [5, 17, 300, 42, 8, 99, 120, 7] * 4
# llama.cpp looks GELU up in a table of float16 numbers.
ROUNDED = {"gemma2", "gemma3", "gpt2", "gpt_neox", "phi", "pythia", "starcoder2"}
# What llama.cpp leaves out: Phi-3's window, keys of groups in OLMoE, GPT-NeoX without biases, norms of heads in a
# Command R of fewer layers, heads of another size in the first GLM-4.
NOT_IN_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "phi3": {"sliding_window": None},
    "olmoe": {"num_key_value_heads": 4},
    "gpt_neox": {"attention_bias": True},
    "command_r_plus": {"num_hidden_layers": 64},
    "glm": {"head_dim": 16},
}


def peer_logits(path: Path) -> torch.Tensor:
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1
    )
    model.eval(TOKENS)
    found = torch.tensor(model.scores[: len(TOKENS)])
    model.close()
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits(tmp_path: Path, family: str) -> None:
    changes = NOT_IN_GGUF.get(family, {}) | NOT_IN_LLAMA_CPP.get(family, {})
    folder = make_model(tmp_path / "model", family, vocab_size=VOCAB_SIZE, **changes)
    path = write_gguf(tmp_path / "model.gguf", folder)
    found = _C.Decoder(load_model(path).weights, slots=1, max_context=64, threads=1).prefill(TOKENS, 0, 0)
    expected = peer_logits(path)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=5e-3 if family in ROUNDED else 1e-4, rtol=0)


TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two\n\n spaces ",
    "12345 x²½ \t▁a ▁▁ b",
    "日本語 e\u0301 🙂 ﬁ Ａｂ",
    "<unk></s>a</s> b",
    "a" * 50,
]


@pytest.fixture(scope="module")
def pieces() -> list[tuple[str, float]]:
    """Tokens of a trained unigram vocabulary and their scores, after three special ones."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *MULTILINGUAL.splitlines()], trainer)
    return [(token, score) for token, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def settings() -> Iterator[dict[str, bool]]:
    for prefix, merges in itertools.product((True, False), repeat=2):
        yield {"add_space_prefix": prefix, "remove_extra_whitespaces": merges}


@pytest.mark.parametrize("flags", list(settings()), ids=str)
@pytest.mark.parametrize("with_bytes", [False, True])
def test_unigram(tmp_path: Path, pieces: list[tuple[str, float]], with_bytes: bool, flags: dict[str, bool]) -> None:
    rest = [(f"<0x{byte:02X}>", -50.0) for byte in range(256)] if with_bytes else []
    metadata = {
        "model": "t5",
        "tokens": [token for token, _ in [*pieces, *rest]],
        "scores": [float(score) for _, score in [*pieces, *rest]],
        "token_type": [3, 3, 2] + [1] * (len(pieces) - 3) + [6] * len(rest),
        "padding_token_id": 0,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        **flags,
    }
    sizes = {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    sizes |= {"attention.head_count": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    write_file(tmp_path / "v.gguf", "llama", named | {f"llama.{key}": value for key, value in sizes.items()}, {})
    peer = llama_cpp.Llama(str(tmp_path / "v.gguf"), vocab_only=True, verbose=False)
    tokenizer = open_source(tmp_path / "v.gguf").tokenizer()
    for text in [*TEXTS, MULTILINGUAL]:
        assert tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=True, special=True), text
    peer.close()
