"""A model family is data: the registry, and the fields of a specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import COMMON, FAMILIES, draw, make_model
from safetensors.torch import load_file, save_file
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from dlf import _C, families
from dlf.checkpoints.config import read_config
from dlf.families.family import COMMON_DEFAULTS, Family, decoder
from dlf.support.fields import Fields

TOKENS = [5, 17, 200, 3, 99, 42, 7, 7, 301, 12, 260]


def logits(folder: Path, spec: _C.ModelSpec | None = None) -> torch.Tensor:
    """Return the logits of a text that is half prefilled and half decoded token by token."""
    config = read_config(folder)
    tensors = config.by_slot(load_file(folder / "model.safetensors"))
    decoder = _C.Decoder(_C.Weights(spec or config.spec, tensors), slots=1, max_context=64, threads=1)
    found = [decoder.prefill(TOKENS[:6], 0, 0)]
    found += [decoder.decode([token], [0], [position]) for position, token in enumerate(TOKENS[6:], start=6)]
    return torch.cat(found)


def changed(spec: _C.ModelSpec, **changes: Any) -> _C.ModelSpec:
    names = "vocab_size hidden_size norm_epsilon attention feed_forward ropes layers".split()
    return _C.ModelSpec(**({name: getattr(spec, name) for name in names} | changes))


def test_every_family_has_a_tiny_configuration() -> None:
    """Every family is in models.py, so that all tests run it."""
    assert {f"{name}ForCausalLM" for name, _ in FAMILIES.values()} == families.FAMILIES.keys()
    assert len({family.model_type for family in families.FAMILIES.values()}) == len(families.FAMILIES)


def test_slots_have_the_names_of_the_files() -> None:
    family = families.FAMILIES["LlamaForCausalLM"]
    assert family.tensor("embedding") == "model.embed_tokens.weight"
    assert family.module("12.o") == "model.layers.12.self_attn.o_proj"
    assert family.tensor("12.o.bias") == "model.layers.12.self_attn.o_proj.bias"
    assert family.tensor("3.feed_forward_norm") == "model.layers.3.post_attention_layernorm.weight"


def test_a_family_is_one_piece_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM3: Llama without rotary embedding in every fourth layer."""

    def spec(fields: Fields) -> _C.ModelSpec:
        plain = decoder(fields)
        still = _C.RopeSpec(inv_freq=[0.0] * (plain.attention.head_dim // 2))
        turned = fields.raw("no_rope_layers")
        layers = [_C.LayerSpec(rope=0 if turns else 1) for turns in turned]
        return changed(plain, ropes=[*plain.ropes, still], layers=layers)

    family = Family("SmolLM3ForCausalLM", "smollm3", COMMON_DEFAULTS | {"eos_token_id": 128001}, spec)
    monkeypatch.setitem(families.FAMILIES, family.architecture, family)
    config = SmolLM3Config(**(COMMON | {"num_hidden_layers": 4, "pad_token_id": 0, "use_sliding_window": False}))
    model = draw(SmolLM3ForCausalLM(config).float(), seed=3).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits(tmp_path), expected, atol=1e-4, rtol=0)
    turned = changed(read_config(tmp_path).spec, layers=[_C.LayerSpec()] * 4)
    assert not torch.allclose(logits(tmp_path, turned), expected)


def test_scores_are_divided_by_the_root_of_the_scalar(tmp_path: Path) -> None:
    """A scalar four times as large is bit-identical to halving every query."""
    folder = make_model(tmp_path / "model", "llama")
    spec = read_config(folder).spec
    sizes = {name: getattr(spec.attention, name) for name in ("heads", "kv_heads", "head_dim")}
    found = logits(folder, changed(spec, attention=_C.AttentionSpec(**sizes, query_scalar=4 * sizes["head_dim"])))
    plain = logits(folder)
    tensors = load_file(folder / "model.safetensors")
    halved = {name: tensor / 2 if "q_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(found, logits(folder)) and not torch.allclose(found, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": _C.AttentionSpec(heads=4, kv_heads=3, head_dim=16)}, "no multiple of kv_heads"),
        ({"attention": _C.AttentionSpec(heads=4, kv_heads=4, head_dim=15)}, "must be even"),
        ({"attention": _C.AttentionSpec(heads=4, kv_heads=4, head_dim=1024)}, "at most 512"),
        ({"attention": _C.AttentionSpec(heads=4, kv_heads=4, head_dim=16, query_scalar=0)}, "must be above 0"),
        ({"layers": []}, "number of layers"),
        ({"layers": [_C.LayerSpec(rope=1)]}, "a layer has rope 1; number of ropes: 1"),
        ({"layers": [_C.LayerSpec(window=-1)]}, "window -1"),
        ({"ropes": [_C.RopeSpec(inv_freq=[1.0])]}, "8 entries"),
        ({"ropes": [_C.RopeSpec(inv_freq=[1.0] * 8, long_inv_freq=[1.0])]}, "8 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_specification_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = read_config(make_model(tmp_path, "llama")).spec
    with pytest.raises(ValueError, match=message):
        changed(spec, **changes)
