"""The benchmark's llama.cpp files hold the model that they were made from."""

from pathlib import Path

import pytest
import torch

from bench.shapes import write_checkpoint

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")


def test_greedy_tokens_and_logits_are_those_of_transformers_in_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from bench.peers import llama_cpp

    folder = write_checkpoint(tmp_path / "model", "tiny", 0)
    model = llama_cpp.LlamaCpp(llama_cpp.prepare(folder, "bf16", tmp_path), threads=1, context=64)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = [(7919 * i) % 32000 for i in range(1, 17)]
    decoded = model.tokens(tokens)
    for _ in range(8):
        token = next(decoded)
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0, -1]
        # Activations are bfloat16 in llama.cpp's products, so a near tie may fall the other way.
        assert expected.max() - expected[token] < 0.02 * expected.std()
        tokens.append(token)
    again = torch.from_numpy(_logits(model, tokens[:-1]))
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens[:-1]])).logits[0, -1]
    assert torch.nn.functional.cosine_similarity(again, expected, dim=0) > 0.999


def _logits(model, tokens):  # type: ignore[no-untyped-def]
    next(model.tokens(tokens[:-1]))
    return model.logits(tokens[-1:]).copy()
