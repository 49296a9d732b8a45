"""config.json as transformers 4 and 5 write it, and with mistakes."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, config_class, make_config, model_class

from dlf.checkpoints.config import ModelConfig, read_config
from dlf.errors import CheckpointError, UnknownArchitectureError
from dlf.families import FAMILIES as REGISTRY

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    LLAMA3 | {"original_max_position_embeddings": 64},
    LLAMA3,
    YARN,
    YARN | {"attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    YARN | {"factor": None},
    {"rope_type": "dynamic", "factor": 2.7},
]
# Families with one rotation of whole heads in all layers.
ONE_ROTATION = "llama llama3 tinyllama smollm mistral qwen2 qwen3 gemma2 olmo2 granite qwen3_moe mixtral".split()


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def minimal(architecture: str = "LlamaForCausalLM", **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture]} | values


def windows(config: ModelConfig) -> list[int]:
    return [layer.window for layer in config.spec.layers]


def rotary(family: str, config: Any) -> Any:
    module = importlib.import_module(model_class(family).__module__)
    return getattr(module, f"{FAMILIES[family][0]}RotaryEmbedding")(config)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: "-".join(map(str, rope.values())))
@pytest.mark.parametrize("family", ONE_ROTATION)
def test_rotary_frequencies_are_those_of_transformers(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    rope = rope | {"rope_theta": 500000.0}
    expected = rotary(family, make_config(family, rope_parameters=dict(rope)))
    config = make_config(family, rope_parameters=dict(rope))
    config.architectures = [model_class(family).__name__]
    config.save_pretrained(tmp_path)
    (ours,) = read_config(tmp_path).spec.ropes
    np.testing.assert_array_equal(ours.inv_freq, expected.inv_freq.numpy())
    assert ours.scaling == pytest.approx(expected.attention_scaling, rel=1e-12)

    # The same with the keys of version 4.
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    old = {"type" if key == "rope_type" else key: value for key, value in rope.items() if key != "rope_theta"}
    write(tmp_path, values | {"rope_theta": 500000, "rope_scaling": old if old != {"type": "default"} else None})
    assert read_config(tmp_path).spec.ropes[0].inv_freq == ours.inv_freq


def longrope(head_dim: int, **values: Any) -> dict[str, Any]:
    short, long = ([first + 0.37 * i for i in range(head_dim // 2)] for first in (1, 4.5))
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long} | values


@pytest.mark.parametrize("values", [{"factor": 8.0}, {}, {"factor": 0.5}, {"attention_factor": 1.19}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_longrope_has_two_lists_and_the_context_says_which(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    config = make_config(family)
    rope = longrope(getattr(config, "head_dim", 16), **values) | {"original_max_position_embeddings": 32}
    config = make_config(family, rope_parameters=dict(rope))
    theirs = rotary(family, config)
    config.architectures = [model_class(family).__name__]
    config.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert (ours.context_length, ours.short_context) == (256, 32)
    (rope,) = ours.spec.ropes
    assert rope.scaling == pytest.approx(theirs.attention_scaling, rel=1e-12)
    for length, context in ((32, 32), (33, 33), (256, 256), (5, 2)):
        theirs(torch.zeros(1), torch.arange(length)[None])
        np.testing.assert_array_equal(rope.frequencies(context), theirs.inv_freq.numpy())

    # The same with Phi-3's keys.
    values = json.loads((tmp_path / "config.json").read_text())
    old = {key: value for key, value in values.pop("rope_parameters").items() if key not in ("rope_type", "rope_theta")}
    outside = old.pop("original_max_position_embeddings")
    write(tmp_path, values | {"rope_scaling": old | {"type": "su"}, "original_max_position_embeddings": outside})
    for context in (32, 33):
        assert read_config(tmp_path).spec.ropes[0].frequencies(context) == rope.frequencies(context)


@pytest.mark.parametrize(
    ("positions", "rope", "length"),
    [
        (2048, {"rope_type": "default"}, 2048),
        (2048, {"rope_type": "linear", "factor": 4.0}, 8192),
        (2048, {"rope_type": "linear", "factor": 0.5}, 2048),
        (2048, {"rope_type": "dynamic", "factor": 4.0}, 2048),
        (2048, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 2048}, 16384),
        (131072, LLAMA3 | {"original_max_position_embeddings": 8192}, 131072),  # Llama 3.2: 32 * 8192 is twice as long
        (32768, YARN | {"original_max_position_embeddings": 32768}, 131072),
        (40960, YARN | {"original_max_position_embeddings": 32768}, 131072),  # Qwen3
        (131072, YARN | {"original_max_position_embeddings": 32768}, 131072),
        (131072, YARN | {"factor": None, "original_max_position_embeddings": 32768}, 131072),
        (2**28, YARN | {"factor": 1e6}, 2**28),
        (4096, longrope(128, factor=4.0), 16384),
        (4096, longrope(128), 4096),
        (131072, longrope(128, factor=4.0, original_max_position_embeddings=4096), 131072),
        (2048, {"type": "mrope", "mrope_section": [16, 24, 24]}, 2048),
    ],
)
def test_scaling_lengthens_the_context(tmp_path: Path, positions: int, rope: dict[str, Any], length: int) -> None:
    values = minimal(max_position_embeddings=positions, rope_parameters=rope)
    assert read_config(write(tmp_path, values)).context_length == length


@pytest.mark.parametrize(("key", "kind"), [("type", "ntk"), ("rope_type", "proportional"), ("type", ["linear"])])
def test_another_kind_of_scaling_is_named_under_its_key(tmp_path: Path, key: str, kind: Any) -> None:
    found = re.escape(repr(kind))
    with pytest.raises(CheckpointError, match=rf"'{key}' must be .*dynamic.*longrope.*mrope, not {found};"):
        read_config(write(tmp_path, minimal(rope_scaling={key: kind, "factor": 2.0})))


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("theta", [10000, 100000.0, 500000.0, 1000000])
def test_default_frequencies_of_common_sizes(tmp_path: Path, head_dim: int, theta: float) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    expected = rotary("llama", make_config("llama", head_dim=head_dim, rope_parameters=dict(rope))).inv_freq.numpy()
    config = read_config(write(tmp_path, minimal(head_dim=head_dim, rope_parameters=rope)))
    np.testing.assert_array_equal(config.spec.ropes[0].inv_freq, expected)


@pytest.mark.parametrize("family", {FAMILIES[name][0]: name for name in FAMILIES}.values())
def test_defaults_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """A file that says only the architecture is read as transformers reads it."""
    theirs = config_class(family)()
    ours = read_config(write(tmp_path, minimal(model_class(family).__name__)))
    for name in "max_position_embeddings tie_word_embeddings bos_token_id".split():
        assert getattr(ours, name) == getattr(theirs, name), name
    spec, attention, said = ours.spec, ours.spec.attention, theirs.to_dict()
    assert (spec.vocab_size, spec.hidden_size) == (theirs.vocab_size, theirs.hidden_size)
    assert len(spec.layers) == theirs.num_hidden_layers
    inner = said.get("intermediate_size") or said.get("n_inner") or 4 * theirs.hidden_size
    epsilon = next(
        said[key] for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon") if key in said
    )
    assert (spec.feed_forward.size, spec.norm.epsilon) == (inner, epsilon)
    heads = theirs.num_attention_heads
    assert (attention.heads, attention.kv_heads) == (heads, said.get("num_key_value_heads") or heads)
    assert attention.head_dim == (said.get("head_dim") or theirs.hidden_size // heads)
    scale = said.get("query_pre_attn_scalar", attention.head_dim)
    assert attention.query_scalar == pytest.approx(said.get("attention_multiplier", scale**-0.5) ** -2)
    assert attention.softcap == (said.get("attn_logit_softcapping") or 0)
    assert spec.logit_softcap == (said.get("final_logit_softcapping") or 0)
    ends = theirs.eos_token_id
    assert ours.eos_token_ids == (() if ends is None else tuple(ends) if isinstance(ends, list) else (ends,))
    if spec.experts.count:
        chosen = theirs.num_experts_per_tok, getattr(theirs, "norm_topk_prob", True)
        assert (spec.experts.chosen, spec.experts.normalise) == chosen
        assert spec.experts.count == (said.get("num_local_experts") or said["num_experts"])
        assert spec.experts.size == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
    assert all(layer.experts == (spec.experts.count > 0) for layer in spec.layers)
    slides = [kind == "sliding_attention" for kind in said.get("layer_types") or []]
    if not slides:
        slides = [said.get("sliding_window") is not None and said.get("use_sliding_window", True)] * len(spec.layers)
    assert windows(ours) == [said["sliding_window"] if one else 0 for one in slides]
    rope = theirs.to_dict().get("rope_parameters")
    for layer, one in zip(spec.layers, slides, strict=True):
        table = rope and rope.get("sliding_attention" if one else "full_attention", rope)
        if spec.ropes[layer.rope].inv_freq and table["rope_type"] == "default":
            size = len(spec.ropes[layer.rope].inv_freq)
            assert size == int(table.get("partial_rotary_factor", 1.0) * attention.head_dim) // 2
            assert spec.ropes[layer.rope].inv_freq[1] == pytest.approx(table["rope_theta"] ** (-1 / size), rel=1e-6)
    turns = (
        said.get("no_rope_layers") or (slides if family == "cohere2" else None) or [family != "gpt2"] * len(spec.layers)
    )
    assert [len(spec.ropes[layer.rope].inv_freq) > 0 for layer in spec.layers] == [bool(one) for one in turns]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (minimal("MistralForCausalLM", sliding_window=None), [0, 0, 0]),
        (minimal("MistralForCausalLM", sliding_window=7), [7, 7, 7]),
        (minimal("LlamaForCausalLM", sliding_window=7), [0, 0, 0]),
        (minimal("Qwen2ForCausalLM", sliding_window=7, max_window_layers=1), [0, 0, 0]),
        (minimal("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=7, max_window_layers=1), [0, 7, 7]),
        (minimal("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=None, max_window_layers=1), [0, 0, 0]),
        (
            minimal(
                "Qwen3ForCausalLM",
                use_sliding_window=True,
                sliding_window=7,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
            [7, 0, 7],
        ),
    ],
)
def test_sliding_windows(tmp_path: Path, values: dict[str, Any], expected: list[int]) -> None:
    assert windows(read_config(write(tmp_path, values | {"num_hidden_layers": 3}))) == expected


@pytest.mark.parametrize(
    ("values", "biases"),
    [
        (minimal("LlamaForCausalLM", attention_bias=True), (True, True, False)),
        (minimal("LlamaForCausalLM", mlp_bias=True), (False, False, True)),
        (minimal("Qwen2ForCausalLM", attention_bias=False), (True, False, False)),
        (minimal("Qwen3ForCausalLM", attention_bias=True), (True, True, False)),
        (minimal("MistralForCausalLM", attention_bias=True), (False, False, False)),
    ],
)
def test_biases(tmp_path: Path, values: dict[str, Any], biases: tuple[bool, bool, bool]) -> None:
    spec = read_config(write(tmp_path, values)).spec
    assert (spec.attention.bias, spec.attention.output_bias, spec.feed_forward.bias) == biases


def test_the_end_is_what_either_file_says(tmp_path: Path) -> None:
    write(tmp_path, minimal(eos_token_id=[5, 6], torch_dtype="bfloat16", vocab_size=9))
    assert read_config(tmp_path).eos_token_ids == (5, 6)
    for written, expected in ((7, (7, 5, 6)), ([6, 8, 6], (6, 8, 5)), (None, (5, 6))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
        assert read_config(tmp_path).eos_token_ids == expected
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": [6, 9]}')
    config = read_config(tmp_path)
    assert config.eos_token_ids == (6, 9, 5)
    assert config.end_tokens(None) == [6, 5]  # 9 is not an id of the model
    assert config.end_tokens(2) == [6, 5, 2] and config.end_tokens(5) == [6, 5] and config.end_tokens(9) == [6, 5]
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": True},
        {"vocab_size": 1.5},
        {"vocab_size": "32000"},
        {"vocab_size": None},
        {"vocab_size": 0},
        {"vocab_size": 1 << 64},
        {"hidden_size": 65537},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2000},
        {"num_attention_heads": 33},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 64},
        {"head_dim": 33},
        {"head_dim": [64]},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": -1e-6},
        {"rms_norm_eps": False},
        {"hidden_act": "relu"},
        {"hidden_act": []},
        {"tie_word_embeddings": 1},
        {"quantization_config": [4]},
        {"dtype": "int8"},
        {"dtype": {}},
        {"eos_token_id": -1},
        {"eos_token_id": [1, "2"]},
        {"bos_token_id": 1e3},
        {"rope_theta": float("inf")},
        {"rope_theta": "10000"},
        {"rope_scaling": []},
        {"rope_scaling": {"type": ["linear"]}},
        {"rope_scaling": {"type": "dynamic"}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2},
        {"rope_scaling": longrope(128) | {"long_factor": None}},
        {"rope_scaling": longrope(126)},
        {"rope_scaling": longrope(128) | {"short_factor": [1.0] * 63 + ["1"]}},
        {"rope_scaling": longrope(128) | {"short_factor": [1.0] * 63 + [0.0]}},
        {"rope_scaling": longrope(128, factor=2.0, original_max_position_embeddings=1)},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": "llama3", "factor": 8.0}},
        {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
        {"rope_scaling": YARN | {"truncate": 1}},
        {"rope_scaling": {"type": ""}},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default"}}},
        {"partial_rotary_factor": 0.5},
    ],
    ids=str,
)
def test_bad_values_are_named(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_config(write(tmp_path, minimal(**values)))
    key = next(iter(values))
    inner = values[key] if isinstance(values[key], dict) else {}
    words = [key, "quantized", "rope_type", *inner, "low_freq_factor", "factor"]
    assert any(word in str(caught.value) for word in words)


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", ["OPTForCausalLM"], [["LlamaForCausalLM"]], {}, [3]])
def test_unknown_architecture_lists_the_known(tmp_path: Path, names: Any) -> None:
    with pytest.raises(UnknownArchitectureError, match="Qwen3ForCausalLM"):
        read_config(write(tmp_path, {"architectures": names}))


@pytest.mark.parametrize("architecture", REGISTRY)
def test_a_model_type_stands_in_for_architectures(tmp_path: Path, architecture: str) -> None:
    kind = REGISTRY[architecture].model_type
    for names in ({}, {"architectures": None}, {"architectures": []}):
        assert read_config(write(tmp_path, {"model_type": kind} | names)).family is REGISTRY[architecture]
    for name in ("SomeModel", "SomeForSequenceClassification"):
        with pytest.raises(UnknownArchitectureError, match=rf"{name}.*no class of {kind} models that predicts tokens"):
            read_config(write(tmp_path, {"model_type": kind, "architectures": [name]}))


@pytest.mark.parametrize(
    ("kind", "what"), [("mamba", "recurrent"), ("t5", "encoders with a decoder"), ("bert", "encoders"), ("opt", "")]
)
def test_families_of_another_kind_are_told_what_is_supported(tmp_path: Path, kind: str, what: str) -> None:
    message = rf"{kind}.*{what}.*decoder-only transformers: .*Gemma3ForCausalLM.*docs/guide/families\.md"
    with pytest.raises(UnknownArchitectureError, match=message):
        read_config(write(tmp_path, {"model_type": kind}))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b" " * (17 << 20)],
)
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_missing_config_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="fetch"):
        read_config(tmp_path)


def fuzz(folder: Path, rounds: int) -> None:
    """Mutate whole values and single bytes; every outcome is a configuration or one of our errors."""
    random = np.random.default_rng(0)
    junk = [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**70,
        1e308,
        -0.5,
        float("nan"),
        "",
        "x",
        [],
        [None],
        {},
        {"rope_type": "yarn"},
    ]
    read = 0
    for _ in range(rounds):
        values = make_config(str(random.choice(list(FAMILIES)))).to_dict()
        values["architectures"] = [str(random.choice(list(REGISTRY)))]
        rope = dict(ROPES[random.integers(len(ROPES))]) | {"rope_theta": 10000.0}
        values["rope_parameters"] = rope
        for target in (values, rope):
            if random.random() < 0.7:
                target[str(random.choice(list(target)))] = junk[random.integers(len(junk))]
        content = bytearray(json.dumps(values), "utf-8")
        for _ in range(random.integers(0, 3)):
            content[random.integers(len(content))] = random.integers(256)
        (folder / "config.json").write_bytes(content)
        try:
            assert isinstance(read_config(folder), ModelConfig)
            read += 1
        except CheckpointError:
            continue
    assert 0.05 * rounds < read < 0.95 * rounds


@pytest.mark.parametrize("rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzz(tmp_path: Path, rounds: int) -> None:
    fuzz(tmp_path, rounds)
