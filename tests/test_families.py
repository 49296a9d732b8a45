"""A model family is data: the registry, and the fields of a specification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, make_model, model_class
from safetensors.torch import load_file, save_file

from dlf import _C, families
from dlf.checkpoints.config import read_config
from dlf.families.family import MODULES
from dlf.families.parts import fused, parts

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
    names = "vocab_size hidden_size norm attention feed_forward ropes layers".split()
    return _C.ModelSpec(**({name: getattr(spec, name) for name in names} | changes))


def test_every_family_has_a_tiny_configuration() -> None:
    """Every family is in models.py, so that all tests run it."""
    assert {model_class(name).__name__ for name in FAMILIES} == families.FAMILIES.keys()
    assert len({family.model_type for family in families.FAMILIES.values()}) == len(families.FAMILIES)


def test_slots_have_the_names_of_the_files() -> None:
    spec = _C.ModelSpec(
        vocab_size=10,
        hidden_size=8,
        norm=_C.NormSpec(),
        attention=_C.AttentionSpec(heads=4, kv_heads=2, head_dim=2, bias=True),
        feed_forward=_C.FeedForwardSpec(size=6),
        ropes=[_C.RopeSpec(inv_freq=[1.0])],
        layers=[_C.LayerSpec()] * 2,
    )
    plain = parts(MODULES, spec)
    assert plain["embedding"].tensor == plain["embedding"].name == "model.embed_tokens.weight"
    assert plain["1.q"].module == "model.layers.1.self_attn.q_proj"
    assert plain["1.q.bias"].tensor == "model.layers.1.self_attn.q_proj.bias"
    assert plain["0.feed_forward_norm"].tensor == "model.layers.0.post_attention_layernorm.weight"

    # Several slots in one tensor: one after the other, and head by head; and as [in, out].
    weight = torch.arange(16.0 * 8).view(16, 8)
    rows = parts(MODULES | fused("{layer}.qkv", "q", "k", "v"), spec)
    assert [rows[f"0.{slot}"].name for slot in "qkv"] == [f"0.qkv.weight[{slot}]" for slot in "qkv"]
    assert torch.equal(rows["0.k"].take(weight), weight[8:12]) and rows["0.k"].stored == (16, 8)
    assert rows["0.k"].take(weight).data_ptr() == weight[8].data_ptr()  # a view
    assert torch.equal(rows["0.v.bias"].take(weight[:, 0]), weight[12:, 0])
    heads = parts(MODULES | fused("{layer}.qkv", "q", "k", "v", interleaved=True), spec)
    assert torch.equal(heads["1.q"].take(weight), weight[[0, 1, 2, 3, 8, 9, 10, 11]])
    assert torch.equal(heads["1.v"].take(weight), weight[[6, 7, 14, 15]])
    turned = parts(MODULES | fused("{layer}.qkv", "q", "k", "v", transposed=True), spec)
    assert torch.equal(turned["1.v"].take(weight.t().contiguous()), weight[12:]) and turned["1.v"].stored == (8, 16)
    assert turned["1.v.bias"].stored == (16,)


def test_a_checkpoint_may_spell_names_in_another_way() -> None:
    config = read_config(Path(__file__).parents[1] / "dlf" / "zoo" / "small-base")
    family = replace(config.family, spellings=({}, {"model.": "", "lm_head": "out"}))
    names = family.spelled(config.spec, ["embed_tokens.weight", "layers.0.mlp.up_proj.weight", "out.weight"]).modules
    assert names["norm"].module == "norm" and names["head"].module == "out"
    assert family.spelled(config.spec, config.tensors()).modules == family.modules
    assert family.spelled(config.spec, []).modules == family.modules


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
        ({"ropes": [_C.RopeSpec(inv_freq=[1.0] * 9)]}, "at most head_dim / 2 = 8"),
        ({"ropes": [_C.RopeSpec(inv_freq=[1.0] * 8, long_inv_freq=[1.0])]}, "1 entries and inv_freq 8"),
        ({"ropes": [_C.RopeSpec(inv_freq=[1.0] * 8, query_beta=0.1)]}, "query_positions is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_specification_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = read_config(make_model(tmp_path, "llama")).spec
    with pytest.raises(ValueError, match=message):
        changed(spec, **changes)
