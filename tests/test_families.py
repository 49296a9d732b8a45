"""A model family is data: the registry, and the fields of a specification."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from models import FAMILIES, draw, make_config, make_model, make_tokenizer, model_class
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

import dlf
from dlf import _C, families
from dlf.adapters.adapter import AdapterFile, load_adapter
from dlf.checkpoints.config import ModelConfig, read_config
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.source import open_checkpoint
from dlf.families.family import MODULES
from dlf.families.parts import fused, parts
from dlf.merging.fold import Fold
from dlf.model import load_model

TOKENS = [5, 17, 200, 3, 99, 42, 7, 7, 301, 12, 260]


def logits(folder: Path, spec: _C.ModelSpec | None = None, config: ModelConfig | None = None) -> torch.Tensor:
    """Return the logits of a text that is half prefilled and half decoded token by token."""
    config = config or read_config(folder)
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


def peer_logits(model: transformers.PreTrainedModel, tokens: list[int] = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def multimodal(folder: Path, family: str, seed: int = 3) -> transformers.PreTrainedModel:
    """Write a checkpoint whose text part is of a family, and return the model."""
    vision = dict.fromkeys(("hidden_size", "intermediate_size"), 32) | {"num_hidden_layers": 1, "image_size": 28}
    vision |= {"num_attention_heads": 2, "patch_size": 14}
    text = make_config(family).to_dict()
    if family == "gemma3":
        whole = transformers.Gemma3Config(
            text_config=text, vision_config=vision | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=1
        )
        model = transformers.Gemma3ForConditionalGeneration(whole)
    else:
        vision |= {"model_type": "pixtral", "head_dim": 16}
        whole = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
        model = transformers.Mistral3ForConditionalGeneration(whole)
    draw(model.float(), seed).eval().save_pretrained(folder)
    make_tokenizer(folder)
    return model


def respell(file: Path, *pairs: tuple[str, str]) -> Path:
    """Give the tensors of a file whose names begin with the first of a pair the second in its place."""
    found = {}
    for name, tensor in load_file(file).items():
        old, new = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
        found[new + name.removeprefix(old)] = tensor
    assert found.keys() != load_file(file).keys()
    save_file(found, file, metadata={"format": "pt"})
    return file


SPELLED = (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head"))


@pytest.mark.parametrize("family", ["gemma3", "mistral", "ministral3"])
def test_the_text_part_of_a_multimodal_checkpoint(
    tmp_path: Path, family: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Read both spellings of the names, without a warning about the vision part."""
    expected = peer_logits(multimodal(tmp_path, family))
    for pairs in ((), SPELLED):
        if pairs:
            respell(tmp_path / "model.safetensors", *pairs)
        source = Folder(tmp_path)
        assert source.config.tie_word_embeddings == (family == "gemma3")
        torch.testing.assert_close(logits(tmp_path, config=source.config), expected, atol=1e-4, rtol=0)
    assert not [one for one in recwarn if "not used" in str(one.message)]


@pytest.mark.parametrize("family", ["gemma3", "ministral3"])
def test_adapters_of_a_multimodal_checkpoint(tmp_path: Path, family: str) -> None:
    """Adapters have the spelling of one version or another, or that of the text part, and may adapt images, too."""
    folder = tmp_path / "base"
    model = multimodal(folder, family)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    peer = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    peer.save_pretrained(tmp_path / "adapter")
    expected, file = peer_logits(peer.eval()), tmp_path / "adapter" / "adapter_model.safetensors"
    prefix = "base_model.model."
    assert any(name.startswith(f"{prefix}model.language_model.layers.") for name in load_file(file))
    for spelling in ("model.language_model.", "language_model.model.", "model."):
        if spelling != "model.language_model.":
            respell(file, (f"{prefix}model.language_model.", prefix + "text."))
            respell(file, (prefix + "text.", prefix + spelling))
        for swap in ((), SPELLED):
            base = shutil.copytree(folder, tmp_path / f"{spelling}{len(swap)}")
            if swap:
                respell(base / "model.safetensors", *swap)
            with pytest.warns(RuntimeWarning, match="also adapts parts that a text needs not, such as"):
                adapter = load_adapter(tmp_path / "adapter", Folder(base).config, torch.float32)
            decoder = _C.Decoder(load_model(base).weights, slots=1, max_context=64, threads=1, adapters=[adapter])
            torch.testing.assert_close(decoder.prefill(TOKENS, 0, 0, 0), expected, atol=1e-4, rtol=0)
        if spelling != "model.language_model.":
            respell(file, (prefix + spelling, f"{prefix}model.language_model."))


def test_copies_of_a_multimodal_checkpoint_keep_its_other_parts(tmp_path: Path) -> None:
    base, expert = tmp_path / "base", tmp_path / "expert"
    multimodal(base, "gemma3")
    multimodal(expert, "gemma3", seed=4)
    respell(expert / "model.safetensors", *SPELLED)
    stored = load_file(base / "model.safetensors")
    other = {name: tensor for name, tensor in stored.items() if name.startswith(("vision_tower", "multi_modal"))}
    merged = dlf.TaskArithmetic(base, {expert: 1.0}).save(tmp_path / "merged")
    converted = dlf.convert(base, tmp_path / "converted", dtype="bfloat16")
    quantized = dlf.convert(base, tmp_path / "quantized", weights="int8")
    for folder, dtype in ((merged, torch.float32), (converted, torch.bfloat16), (quantized, torch.float32)):
        found = load_file(folder / "model.safetensors")
        assert len(other) > 10 and all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in other.items())
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    torch.testing.assert_close(peer_logits(model), logits(expert, config=Folder(expert).config), atol=1e-3, rtol=0)
    ignored = json.loads((quantized / "config.json").read_text())["quantization_config"]["ignore"]
    assert "multi_modal_projector.mm_soft_emb_norm" in ignored and not any("language_model" in one for one in ignored)


def test_the_names_of_the_first_gpt2_files(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = make_model(tmp_path, "gpt2")
    expected = logits(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(folder, config=Folder(folder).config), expected)
    assert not [one for one in recwarn if "not used" in str(one.message)]


def test_no_context_beyond_the_learned_positions(tmp_path: Path) -> None:
    weights = load_model(make_model(tmp_path, "gpt2", max_position_embeddings=16)).weights
    with pytest.raises(ValueError, match="learned only 16 positions"):
        _C.Decoder(weights, slots=1, max_context=17, threads=1)


@pytest.mark.parametrize("family", ["gemma2", "phi3", "pythia", "gpt2", "glm4", "cohere", "phi", "qwen2_moe"])
def test_adapters_of_parts_of_a_tensor(tmp_path: Path, family: str) -> None:
    """PEFT adapts whole stored modules: fused ones, head by head, in pairs, stored as [in, out], of shared experts."""
    folder = make_model(tmp_path / "base", family)
    base = model_class(family).from_pretrained(folder, dtype=torch.float32)
    config = Folder(folder).config
    linear = {name for name, module in base.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    ends = sorted({name.rsplit(".", 1)[-1] for name in linear & config.linear_modules().keys()})
    peer = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=ends))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    peer.save_pretrained(tmp_path / "adapter")
    expected = peer_logits(peer.eval())
    weights = load_model(folder).weights
    adapter = load_adapter(tmp_path / "adapter", config, torch.float32)
    decoder = _C.Decoder(weights, slots=1, max_context=64, threads=1, adapters=[adapter])
    torch.testing.assert_close(decoder.prefill(TOKENS, 0, 0, 0), expected, atol=1e-4, rtol=0)
    decoder.prefill(TOKENS[:6], 0, 0, 0)
    for position, token in enumerate(TOKENS[6:], start=6):
        found = decoder.decode([token], [0], [position], [0])
        torch.testing.assert_close(found[0], expected[position], atol=1e-4, rtol=0)
    (tmp_path / "folded").mkdir()
    Fold(open_checkpoint(folder), AdapterFile(tmp_path / "adapter")).write(tmp_path / "folded")
    folded = Folder(tmp_path / "folded").config
    torch.testing.assert_close(logits(tmp_path / "folded", config=folded), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gemma3", "phi3", "pythia", "gpt2", "olmo2", "granite", "phi", "glm", "qwen2_moe"])
def test_fused_drafted_and_scored(tmp_path: Path, family: str) -> None:
    """Experts change the large model's tokens, drafts change nothing, and scores are those of generation."""
    large, expert, base = (make_model(tmp_path / str(seed), family, seed=seed) for seed in (1, 2, 3))
    with dlf.Engine(large, [dlf.Expert(expert, base=base)], threads=2, max_batch=4, max_context=96) as engine:
        plain = engine.generate(TOKENS, max_new_tokens=24, ignore_eos=True, speculate=False)
        together = engine.generate([TOKENS, TOKENS[:4]], max_new_tokens=24, ignore_eos=True, speculate=False)
        drafted = engine.generate(
            TOKENS, max_new_tokens=24, ignore_eos=True, speculate=dlf.Speculation("base", 3, adaptive=False)
        )
        assert plain.tokens == together[0].tokens == drafted.tokens
        assert list(plain.logprobs) == list(together[0].logprobs) == list(drafted.logprobs)
        scored = engine.score(TOKENS, plain.tokens)
        torch.testing.assert_close(torch.tensor(scored.logprobs), torch.tensor(plain.logprobs), atol=1e-4, rtol=0)


FRESH: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 60, "head_dim": 256}),
    ("gemma2", {"attn_logit_softcapping": None, "tie_word_embeddings": False, "attention_bias": True}),
    ("gemma3", {"num_key_value_heads": 1, "sliding_window": 3, "final_logit_softcapping": 5.0, "head_dim": 6}),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ("olmo2", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
    ("olmo3", {"sliding_window": 2, "num_attention_heads": 2}),
    ("phi3", {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 16, "tie_word_embeddings": True}),
    ("pythia", {"num_attention_heads": 2, "hidden_act": "gelu_fast", "tie_word_embeddings": True}),
    ("gpt2", {"n_inner": None, "scale_attn_weights": False, "num_attention_heads": 1}),
    ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5}),
    ("ministral3", {"num_key_value_heads": 1, "sliding_window": 7}),
    ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    ("qwen3_moe", {"num_local_experts": 70, "num_experts_per_tok": 9, "moe_intermediate_size": 8, "hidden_size": 48}),
    ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "hidden_size": 68, "sliding_window": None}),
    ("starcoder2", {"use_bias": False, "sliding_window": None, "num_key_value_heads": 4, "hidden_act": "gelu"}),
    ("stablelm", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("phi", {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
    ("cohere", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": False}),
    ("cohere2", {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 5}),
    ("glm4", {"attention_bias": False, "head_dim": 16, "num_key_value_heads": 4}),
    ("qwen2_moe", {"mlp_only_layers": [], "shared_expert_intermediate_size": 56, "norm_topk_prob": True}),
    ("granite_moe", {"num_experts_per_tok": 1, "hidden_act": "silu", "tie_word_embeddings": True}),
    ("granite_moe_shared", {"shared_intermediate_size": 0}),
    ("olmoe", {"num_key_value_heads": 1, "num_experts_per_tok": 8, "norm_topk_prob": True, "attention_bias": True}),
    ("olmoe", {"clip_qkv": 0.6}),
    ("gemma3", {"attn_logit_softcapping": 1.0}),
    (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "llama_4_scaling_beta": 0.3,
                "original_max_position_embeddings": 4,
            }
        },
    ),
    ("cohere", {"use_qk_norm": True, "num_key_value_heads": 1, "head_dim": 24}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 2}),
]


@pytest.mark.parametrize(("family", "settings"), FRESH, ids=lambda value: value if isinstance(value, str) else "")
def test_fresh_configurations(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    folder = make_model(tmp_path, family, seed=7, **settings)
    model = model_class(family).from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(folder, config=Folder(folder).config), peer_logits(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gemma3", "olmo3", "pythia", "smollm3"])
def test_the_keys_of_version_4(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path, family)
    expected = read_config(folder).spec.ropes
    values = json.loads((folder / "config.json").read_text())
    rope = values.pop("rope_parameters")
    rope = rope.get("full_attention", rope)
    values["rotary_emb_base" if family == "pythia" else "rope_theta"] = rope["rope_theta"]
    if family == "pythia":
        values["rotary_pct"] = rope["partial_rotary_factor"]
    if family == "gemma3":
        values["rope_local_base_freq"] = 10000.0
    (folder / "config.json").write_text(json.dumps(values))
    found = read_config(folder).spec.ropes
    assert [rope.inv_freq for rope in found] == [rope.inv_freq for rope in expected]
