"""LoRA adapters as PEFT writes them, with the results of PEFT."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_model
from reference.decoding import Reference
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C
from dlf.adapters.adapter import AdapterFile, load_adapter
from dlf.checkpoints.config import read_config
from dlf.checkpoints.folder import Folder
from dlf.errors import CheckpointError
from dlf.merging.fold import Fold
from dlf.model import load_model

peft = pytest.importorskip("peft")

PROMPT = "Question: what is the sum"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "all": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "attention": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
    "mlp": {"r": 3, "lora_alpha": 8, "target_modules": ["up_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2, "^model.layers.0.self_attn.k_proj": 5},
        "alpha_pattern": {"v_proj": 1, "model.layers.2.mlp.gate_proj": 30},
    },
    "rslora": {"r": 9, "lora_alpha": 6, "target_modules": ALL, "use_rslora": True},
    "wide": {"r": 40, "lora_alpha": 40, "target_modules": ["o_proj", "gate_proj"]},
}


def make_adapter(folder: Path, base: Path, seed: int, **config: Any) -> Path:
    """Write a PEFT folder whose updates are as large as the weights."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(task_type="CAUSAL_LM", **config),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                spread = 0.5 if parameter.dim() == 2 else 0.1
                # Replaces PEFT's initial values, which depend on other tests' seeds.
                parameter.copy_(
                    spread * torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                )
    model.save_pretrained(folder)
    return folder


def peft_logits(base: Path, adapter: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def decoder_of(base: Path, adapters: list[Path], dtype: str = "float32", slots: int = 4) -> _C.Decoder:
    model = load_model(base, dtype)
    loaded = [load_adapter(one, model.config, model.dtype) for one in adapters]
    return _C.Decoder(model.weights, slots, 64, 2, loaded)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_model(root / name, name, seed=5) for name in ("llama", "qwen2", "qwen3")}


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "llama", bases["llama"], 1, **KINDS["all"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_peft(bases: dict[str, Path], name: str, kind: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases[name], 1, **KINDS[kind])
    tokens = [5, 17, 300, 42, 8, 99, 3]
    expected = peft_logits(bases[name], adapter, tokens)
    decoder = decoder_of(bases[name], [adapter])
    found = decoder.prefill(tokens, 0, 0, 0)
    plain = decoder.prefill(tokens, 1, 0)
    scale = expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)
    assert (plain - expected).abs().max() > 0.05 * scale  # the adapter has an effect
    decoder.prefill(tokens[:4], 2, 0, 0)
    for i in range(4, len(tokens)):
        step = decoder.decode([tokens[i]], [2], [i], [0])
        torch.testing.assert_close(step[0], expected[i], rtol=0, atol=2e-5 * scale)


def test_bfloat16_is_within_its_rounding(bases: dict[str, Path], adapter: Path) -> None:
    tokens = [5, 17, 300, 42, 8, 99, 3]
    exact = peft_logits(bases["llama"], adapter, tokens)
    theirs = (peft_logits(bases["llama"], adapter, tokens, torch.bfloat16) - exact).abs().max()
    found = decoder_of(bases["llama"], [adapter], "bfloat16").prefill(tokens, 0, 0, 0)
    assert (found - exact).abs().max() < 1.5 * theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_depend_on_the_others(bases: dict[str, Path], adapter: Path, dtype: str, tmp_path: Path) -> None:
    """Rows with adapters of several ranks and with none, in any order."""
    base = bases["llama"]
    adapters = [adapter] + [make_adapter(tmp_path / kind, base, 2, **KINDS[kind]) for kind in ("attention", "wide")]
    decoder = decoder_of(base, adapters, dtype, slots=8)
    alone = []
    which = [0, -1, 2, 0, 1, 1, -1, 2]
    for slot, one in enumerate(which):
        decoder.prefill([5, 17, 30 + slot], slot, 0, one)
        alone.append(decoder.decode([40 + slot], [slot], [3], [one])[0])
    for order in (list(range(8)), [1, 6, 0, 3, 4, 5, 2, 7], [7, 0, 5, 1]):
        rows = decoder.decode([40 + slot for slot in order], order, [3] * len(order), [which[slot] for slot in order])
        for row, slot in zip(rows, order, strict=True):
            assert torch.equal(row, alone[slot])
    with pytest.raises(IndexError, match="adapter 3"):
        decoder.decode([1], [0], [0], [3])


def test_a_prompt_of_several_pieces(tmp_path: Path) -> None:
    """The prompt of 300 tokens is read in passes of 256."""
    base = make_model(tmp_path / "base", "llama", max_position_embeddings=512)
    adapter = make_adapter(tmp_path / "adapter", base, 1, **KINDS["all"])
    tokens = [(7 * i + i // 5) % 384 for i in range(300)]
    model = load_model(base, "float32")
    loaded = load_adapter(adapter, model.config, model.dtype)
    decoder = _C.Decoder(model.weights, 1, 301, 2, [loaded])
    expected = peft_logits(base, adapter, [*tokens, 9])
    found = torch.cat([decoder.prefill(tokens, 0, 0, 0), decoder.decode([9], [0], [300], [0])])
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * expected.abs().max())


def test_an_adapter_of_another_base_is_refused(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    """The shapes are checked before memory beyond them is read."""
    config = read_config(bases["llama"])
    loaded = load_adapter(adapter, config, torch.float32)
    for sizes, message in (
        ({"intermediate_size": config.spec.feed_forward.size + 32}, "layer 0 of an adapter has other shapes"),
        ({"num_hidden_layers": len(config.spec.layers) - 1}, "layers and its base"),
    ):
        other = load_model(make_model(tmp_path / message.replace(" ", "-"), "llama", **sizes), "float32")
        with pytest.raises(ValueError, match=message):
            _C.Decoder(other.weights, 1, 64, 1, [loaded])
    with pytest.raises(ValueError, match="load it in the type of the base"):
        _C.Decoder(load_model(bases["llama"], "bfloat16").weights, 1, 64, 1, [loaded])


def test_a_quantized_base(bases: dict[str, Path], adapter: Path) -> None:
    model = load_model(bases["llama"], "float32", "int8")
    loaded = load_adapter(adapter, model.config, model.dtype)
    tokens = [5, 17, 300, 42, 8]
    found = _C.Decoder(model.weights, 2, 64, 2, [loaded]).prefill(tokens, 0, 0, 0)
    expected = peft_logits(bases["llama"], adapter, tokens)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("use_dora", [False, True])
def test_folding_is_peft_merging(bases: dict[str, Path], use_dora: bool, tmp_path: Path) -> None:
    base = bases["qwen2"]
    adapter = make_adapter(tmp_path / "adapter", base, 3, use_dora=use_dora, **KINDS["patterns"])
    (tmp_path / "folded").mkdir()
    Fold(Folder(base), AdapterFile(adapter)).write(tmp_path / "folded")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    expected = model.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "folded" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "folded" / "tokenizer.json").is_file()


def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    solved = dlf.fusion.solve(large[None], base[None], experts[None], combine="centroid")
    return solved.alpha[0], solved.logits[0]


def test_adapters_in_an_engine(family: dict[str, Path], tmp_path: Path) -> None:
    """Several adapters on one base beside other kinds of experts; requests with all or some of them."""
    base = family["base"]
    one, two = (
        make_adapter(tmp_path / kind, base, seed, **KINDS[kind]) for seed, kind in enumerate(("all", "attention"))
    )
    shots = [("The quick brown", "fox"), ("def add", "(first)")]
    experts = [
        dlf.Lora(base, one),
        dlf.Lora(None, two, name="two"),
        dlf.InContext(base, shots),
        dlf.Expert(family["expert-a"], base),
        dlf.Lora(base, one, name="folded", merge=True),
    ]
    options: dict[str, Any] = {"max_new_tokens": 25, "ignore_eos": True}
    results = []
    for size in (0, 1 << 28):
        with dlf.Engine(
            family["large"], experts, base=base, combine="centroid", threads=2, prefix_cache_bytes=size
        ) as engine:
            lanes = engine._ensemble.lanes
            assert lanes.counts() == [1, 4, 1, 1] and lanes.adapters == [[], [str(one), str(two)], [], []]
            results.append([engine.generate(PROMPT, **options), engine.generate(PROMPT, experts=["all"], **options)])
            results[-1].append(engine.generate(PROMPT, experts=["two", "expert-a"], **options))
            results[-1].append(engine.generate(PROMPT, experts=["folded"], **options))
            encode, vocab = engine.tokenizer.encode, engine.vocab_size
            assert engine.experts == ["all", "two", "in-context", "expert-a", "folded"]
    for before, after in zip(*results, strict=True):
        assert before.tokens == after.tokens
        assert np.array_equal(before.alpha, after.alpha)

    reference = Reference(family["large"], base, [base, base, base, family["expert-a"], base], vocab)
    for place, path in ((2, one), (3, two), (6, one)):
        reference.models[place] = peft.PeftModel.from_pretrained(reference.models[place], path).eval()
    plain, with_shots = encode(PROMPT), encode("".join(f"{q} {a}\n\n" for q, a in shots) + PROMPT)
    tokens, alpha = reference.generate(plain, 25, fuse, [plain, plain, with_shots, plain, plain])
    assert results[0][0].tokens == tokens
    np.testing.assert_allclose(results[0][0].alpha, alpha, atol=2e-3)
    np.testing.assert_allclose(results[0][1].alpha, results[0][3].alpha, atol=2e-3)  # folded or not


def test_adapters_come_and_go(family: dict[str, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", family["base"], 4, **KINDS["all"])
    with dlf.Engine(family["large"], [dlf.Lora(family["base"], adapter)], base=family["base"]) as engine:
        before = engine.generate(PROMPT, max_new_tokens=9)
        loaded = engine._ensemble.adapters[1][0]
        engine.add_expert(family["expert-a"])
        assert engine._ensemble.adapters[1][0] is loaded
        assert engine.generate(PROMPT, max_new_tokens=9, experts=["adapter"]).tokens == before.tokens
        engine.remove_expert("adapter")
        assert not any(engine._ensemble.adapters)
        assert engine.generate(PROMPT, max_new_tokens=9).experts == ["expert-a"]


def change(folder: Path, tmp_path: Path, **values: Any) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | values))
    return copy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*path_initial_model_for_weight_conversion"),
        ({"modules_to_save": ["lm_head"]}, "has no matrix of lm_head, which modules_to_save names"),
        ({"modules_to_save": ["score"]}, "'modules_to_save' has 'score'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "has no rows of model.embed_tokens, whose trainable_token_indices"),
        ({"trainable_token_indices": [1, 1]}, "'trainable_token_indices' must be distinct token ids"),
        ({"trainable_token_indices": {"embed_tokens": ["a"]}}, "must be distinct token ids"),
        ({"use_dora": True}, "merge=True|has no lora_magnitude_vector"),
        ({"r": 0}, "'r' must be an integer from 1 to 1024"),
        ({"r": 7}, r"for this base and adapter_config.json it must be floating-point \[7, \d+\]"),
        ({"lora_alpha": "x"}, "'lora_alpha' must be a number"),
        ({"alpha_pattern": {"(?=a)b": 1}}, r"alpha_pattern.*'\(\?=a\)b'.*RE2.*give names of modules"),
        ({"rank_pattern": {r"(q)\1": 1}}, "RE2"),
        ({"rank_pattern": {"q{,3}": 1}}, "something else in Python"),
        ({"rank_pattern": {"[[:alpha:]]": 1}}, "something else in Python"),
        ({"rank_pattern": {"(a{1000}){1000}": 1}}, "RE2"),
        ({"rank_pattern": {"\ud800": 1}}, "RE2"),
        ({"rank_pattern": {f"(.?){{200}}{i}": 1 for i in range(4096)}}, "can be matched in time"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "'q_proj' must be a number"),
        ({"rank_pattern": {"(": 1}}, "give names of modules"),
        ({"rank_pattern": {"q_proj": 3.5}}, "'q_proj' must be an integer"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
    ],
)
def test_configurations_that_are_refused(
    family: dict[str, Path], values: dict[str, Any], message: str, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    changed = change(adapter, tmp_path, **values)
    with pytest.raises(CheckpointError, match=message):
        dlf.Engine(family["large"], [dlf.Lora(bases["llama"], changed)])


# In alphabetical order, as PEFT writes them: the first match counts.
PATTERNS: list[dict[str, Any]] = [
    {"rank_pattern": {r".*\.[02]\..*": 3, ".*_proj": 5}},
    {"rank_pattern": {"(q|k)_proj": 3, "self_attn.(v|o)_proj": 5, "up": 7}, "alpha_pattern": {r".*\.mlp\..*": 30}},
    {"rank_pattern": {"^model.layers.1.self_attn.q_proj$": 3, r"\d+\.mlp\.\w+": 6}, "alpha_pattern": {"(a+)+b": 1}},
    {"rank_pattern": {"[a-z]_proj": 2}, "alpha_pattern": {"proj": 2, "(?i:Q_PROJ)": 5, r"[^.]*n\.k_proj": 9}},
    {"alpha_pattern": {"up_proj|q_proj": 2, "layers.1": 3, "x)|(.*v_proj": 7}},
]


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_patterns_are_those_of_peft(bases: dict[str, Path], patterns: dict[str, Any], tmp_path: Path) -> None:
    base = bases["llama"]
    folder = make_adapter(tmp_path / "adapter", base, 1, r=4, lora_alpha=8, target_modules=ALL, **patterns)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    updates = AdapterFile(folder).read(read_config(base))
    assert len(updates) == 3 * len(ALL)
    for layer, update in updates.items():
        theirs = model.get_submodule(f"base_model.model.{layer}")
        assert (len(update.a), update.scale) == (theirs.r["default"], theirs.scaling["default"]), layer
    assert len({(len(update.a), update.scale) for update in updates.values()}) > 1


TARGETS: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": ["q_proj", "mlp.up_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.[01]\..*"},
    {"target_modules": ["q_proj"], "layers_to_transform": 2},
    {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    {"target_modules": ["model.layers.0.mlp.down_proj"]},
]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_a_layer_that_is_missing_is_noticed(bases: dict[str, Path], targets: dict[str, Any], tmp_path: Path) -> None:
    """Each way of the configuration to name layers is checked."""
    config = read_config(bases["llama"])
    folder = make_adapter(tmp_path / "adapter", bases["llama"], 1, r=4, lora_alpha=8, **targets)
    assert AdapterFile(folder).read(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    layer = sorted(AdapterFile(folder).read(config))[-1]
    rest = {name: tensor for name, tensor in tensors.items() if f".{layer}." not in name}
    save_file(
        rest
        | {
            f"base_model.model.model.layers.1.mlp.gate_proj.lora_{part}.weight": tensor
            for part, tensor in (("A", torch.zeros(4, 64)), ("B", torch.zeros(112, 4)))
        },
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=f"has nothing for {layer}, which target_modules names"):
        AdapterFile(folder).read(config)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_targets_that_are_not_matched_cost_a_check_only(bases: dict[str, Path], key: str, tmp_path: Path) -> None:
    config = read_config(bases["llama"])
    settings = {"target_modules": ["q_proj"], "exclude_modules": None}
    settings |= {
        key: r".*(?<!layers\.1\.self_attn\.)q_proj" if key == "target_modules" else r".*(?<=1\.self_attn\.)q_proj"
    }
    folder = make_adapter(tmp_path / "adapter", bases["llama"], 1, r=4, lora_alpha=8, **settings)
    assert sorted(AdapterFile(folder).read(config)) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)]


def test_keys_that_nobody_knows_are_a_warning(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    config = read_config(bases["llama"])
    changed = change(adapter, tmp_path, something_new={"a": 1}, unsloth_version="2025.1", of_no_effect=False)
    with pytest.warns(
        RuntimeWarning, match="has 'something_new', 'unsloth_version', which dlf does not know"
    ) as caught:
        found = AdapterFile(changed).read(config)
    assert len(caught) == 1
    for layer, update in AdapterFile(adapter).read(config).items():
        assert torch.equal(found[layer].a, update.a) and found[layer].scale == update.scale


def test_keys_of_peft_are_known() -> None:
    """Every key of the installed version is classified: a new one may change what an adapter computes."""
    from dlf.adapters.config import COMPUTED, OTHERS, TRAINING

    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert known <= COMPUTED | OTHERS | TRAINING


def test_files_of_an_adapter_that_cannot_be_read(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    config = read_config(bases["llama"])
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 268435456\n"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        copy = Path(shutil.copytree(adapter, tmp_path / name))
        (copy / name).write_text(pointer)
        with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
            AdapterFile(copy).read(config)
    path = tmp_path / "adapter_model.safetensors" / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    AdapterFile(path.parent)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        AdapterFile(path.parent)


def test_tensors_that_are_refused(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    config = read_config(bases["llama"])

    def load(tensors: dict[str, torch.Tensor]) -> None:
        copy = Path(shutil.copytree(adapter, tmp_path / "changed", dirs_exist_ok=True))
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, copy / "adapter_model.safetensors")
        load_adapter(copy, config, torch.float32)

    tensors = load_file(adapter / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    load(tensors)
    for changed, message in (
        ({}, "has no tensors"),
        ({first: tensors[first]}, "has nothing for model.layers.0.self_attn.k_proj, which target_modules names"),
        (
            {name: tensor for name, tensor in tensors.items() if name != first.replace("lora_A", "lora_B")},
            "has no lora_B of model.layers.0.self_attn.q_proj",
        ),
        (tensors | {first: tensors[first].int()}, "it must be floating-point"),
        (tensors | {first: tensors[first] / 0}, "not finite"),
        (tensors | {"base_model.model.lm_head.lora_A.weight": tensors[first]}, "has no lora_B.weight of lm_head"),
        (tensors | {"base_model.model.lm_head.bias": tensors[first]}, "is no update of lm_head that dlf knows"),
        (tensors | {first.replace(".0.", ".9."): tensors[first]}, "belongs to no linear layer"),
        (tensors | {first.replace("lora_A", "lora_magnitude_vector"): torch.ones(64)}, "DoRA's"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(changed)
    (tmp_path / "changed" / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="damaged"):
        load_adapter(tmp_path / "changed", config, torch.float32)


def test_folders_that_are_no_adapters(adapter: Path, family: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        dlf.Engine(family["large"], [dlf.Lora(family["base"], family["base"])])
    with pytest.raises(FileNotFoundError, match="no folder"):
        dlf.Engine(family["large"], [dlf.Lora(family["base"], tmp_path / "nowhere")])
    copy = Path(shutil.copytree(adapter, tmp_path / "pickled"))
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        dlf.Engine(family["large"], [dlf.Lora(family["base"], copy)])
    with pytest.raises(ValueError, match="has no base"):
        dlf.Engine(family["large"], [dlf.Lora(None, adapter)])
