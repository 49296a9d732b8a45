"""Adapters of experts and routers, in the two forms in which PEFT saves them, with the results of PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_lanes import check_lanes, experts_of
from models import make_model
from safetensors.torch import load_file, save_file
from test_lora import decoder_of, make_adapter, peft_logits
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C
from dlf.adapters.adapter import AdapterFile, load_adapter
from dlf.checkpoints.config import read_config
from dlf.checkpoints.folder import Folder
from dlf.errors import CheckpointError
from dlf.merging.fold import Fold
from dlf.model import load_model

FAMILIES = ["qwen3_moe", "mixtral", "olmoe"]
TOKENS = [3, 5, 9, 200, 5, 41, 77, 300]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "experts": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "target_parameters": EXPERTS},
    "down": {"r": 3, "lora_alpha": 3, "target_modules": ["v_proj"], "target_parameters": EXPERTS[1:]},
    "router": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "target_parameters": ["gate.weight"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["o_proj"],
        "target_parameters": [*EXPERTS, "gate.weight"],
        "rank_pattern": {r".*\.gate_up_proj": 6, "mlp.gate.weight": 3},
        "alpha_pattern": {r".*\.gate_up_proj": 3},
    },
}


def write_single(folder: Path, base: Path, seed: int, rank: int = 3) -> Path:
    """Write an adapter of every linear layer as PEFT does before transformers 5: experts have names of their own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, linear in read_config(base).linear_modules().items():
        out, columns = linear.shape
        for part, shape in (("A", (rank, columns)), ("B", (out, rank))):
            update = 0.5 * torch.randn(shape, generator=generator) * shape[1] ** -0.5
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = update
    folder.mkdir()
    ends = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ends, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def folded_logits(base: Path, adapter: Path, folder: Path) -> torch.Tensor:
    folder.mkdir()
    Fold(Folder(base), AdapterFile(adapter)).write(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def check(base: Path, adapter: Path, expected: torch.Tensor) -> None:
    """Compare prompts and steps; the base's own rows stay as they are."""
    decoder = decoder_of(base, [adapter])
    found, plain = decoder.prefill(TOKENS, 0, 0, 0), decoder.prefill(TOKENS, 1, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain, decoder_of(base, []).prefill(TOKENS, 1, 0))
    assert (plain - found).abs().max() > 0.01
    decoder.prefill(TOKENS[:3], 2, 0, 0)
    for i in range(3, len(TOKENS)):
        step = decoder.decode([TOKENS[i]], [2], [i], [0])
        torch.testing.assert_close(step[0], expected[i], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_model(folder / name, name, seed=6) for name in FAMILIES}


@pytest.fixture(scope="module")
def adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of OLMoE, which has experts in every layer."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {kind: make_adapter(folder / kind, bases["olmoe"], 1, **KINDS[kind]) for kind in KINDS}
    return found | {"single": write_single(folder / "single", bases["olmoe"], 3)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_parameters(bases: dict[str, Path], family: str, kind: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases[family], 1, **KINDS[kind])
    expected = peft_logits(bases[family], adapter, TOKENS)
    check(bases[family], adapter, expected)
    torch.testing.assert_close(folded_logits(bases[family], adapter, tmp_path / "folded"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_experts(bases: dict[str, Path], family: str, tmp_path: Path) -> None:
    adapter = write_single(tmp_path / "adapter", bases[family], 1)
    expected = folded_logits(bases[family], adapter, tmp_path / "folded")
    check(bases[family], adapter, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_depend_on_the_others(bases: dict[str, Path], adapters: dict[str, Path], dtype: str) -> None:
    decoder = decoder_of(bases["olmoe"], list(adapters.values()), dtype, slots=9)
    which = [0, 1, 2, 3, 4, -1, 3, 4, -1]
    alone = []
    for slot, one in enumerate(which):
        decoder.prefill([5, 17, 30 + slot], slot, 0, one)
        alone.append(decoder.decode([200 - slot], [slot], [3], [one])[0])
    for order in (list(range(9)), [8, 3, 6, 0, 7, 4, 1, 5, 2], [7, 4, 5]):
        rows = decoder.decode([200 - slot for slot in order], order, [3] * len(order), [which[slot] for slot in order])
        for row, slot in zip(rows, order, strict=True):
            assert torch.equal(row, alone[slot])


def test_a_prompt_of_many_rows(bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    """Prompts have products of their own."""
    base = make_model(tmp_path / "base", "olmoe", seed=6, max_position_embeddings=512)
    tokens = [(7 * i + i // 5) % 384 for i in range(300)]
    model = load_model(base, "float32")
    loaded = load_adapter(adapters["patterns"], model.config, model.dtype)
    decoder = _C.Decoder(model.weights, 1, 301, 2, [loaded])
    expected = peft_logits(base, adapters["patterns"], tokens)
    torch.testing.assert_close(decoder.prefill(tokens, 0, 0, 0), expected, rtol=1e-4, atol=2e-4)


def test_an_adapter_of_another_mixture_is_refused(adapters: dict[str, Path], bases: dict[str, Path]) -> None:
    loaded = load_adapter(adapters["single"], read_config(bases["olmoe"]), torch.float32)
    for other in ("qwen3_moe", "mixtral"):
        with pytest.raises(ValueError, match="load it for this base"):
            _C.Decoder(load_model(bases[other], "float32").weights, 1, 64, 1, [loaded])


def test_files_that_are_refused(adapters: dict[str, Path], bases: dict[str, Path], tmp_path: Path) -> None:
    config = read_config(bases["olmoe"])
    for kind in ("patterns", "single"):
        tensors = load_file(adapters[kind] / "adapter_model.safetensors")
        stack, router = "base_model.model.model.layers.1.mlp.experts", "base_model.model.model.layers.1.mlp.gate"
        own = f"{stack}.2.up_proj"
        changes: list[tuple[dict[str, torch.Tensor | None], str]] = [
            ({f"{router}.lora_{part}.weight": None for part in "AB"}, "has nothing for model.layers.1.mlp.gate"),
            ({f"{router}.lora_A.weight": torch.zeros(1, 64)}, "must be floating-point"),
        ]
        if kind == "patterns":
            a, b = f"{stack}.lora_A.weight", f"{stack}.lora_B.weight"
            changes += [
                ({a: None}, "has no lora_A of the experts of layer 1"),
                ({a: None, b: None}, "has nothing for model.layers.1.mlp.experts.down_proj, which target_parameters"),
                ({a: tensors[a][1:]}, r"must be floating-point \[32, 48\]"),
                ({a: tensors[a].int()}, "must be floating-point"),
                ({a: tensors[a][:, 1:].contiguous()}, "fit no parameter of this base's experts"),
                ({a: tensors[a][0]}, "fit no parameter"),
                ({a: tensors[f"{stack}.base_layer.lora_A.weight"], b: tensors[f"{stack}.base_layer.lora_B.weight"]},
                 "changes model.layers.1.mlp.experts.gate_up_proj twice"),
                ({f"{own}.lora_A.weight": torch.zeros(4, 64), f"{own}.lora_B.weight": torch.zeros(48, 4)},
                 "changes model.layers.1.mlp.experts.2.up_proj in two ways"),
            ]  # fmt: skip
        else:
            changes += [
                ({f"{own}.lora_{part}.weight": None for part in "AB"}, "has nothing for .*experts.2.up_proj"),
                ({f"{own}.lora_A.weight": None}, "has no lora_A of model.layers.1.mlp.experts.2.up_proj"),
                ({f"{stack}.99.up_proj.lora_A.weight": torch.zeros(3, 64)}, "belongs to no linear layer"),
            ]
        for i, (changed, message) in enumerate(changes):
            copy = Path(shutil.copytree(adapters[kind], tmp_path / f"{kind}{i}"))
            kept = {key: value.clone() for key, value in (tensors | changed).items() if value is not None}
            save_file(kept, copy / "adapter_model.safetensors")
            with pytest.raises(CheckpointError, match=message):
                load_adapter(copy, config, torch.float32)


OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
PROMPTS = ["Question: what is the sum", "x"]


def test_in_an_engine(bases: dict[str, Path], family: dict[str, Path], adapters: dict[str, Path]) -> None:
    check_lanes(family["large"], bases["olmoe"], adapters, PROMPTS, **OPTIONS)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cuda(bases: dict[str, Path], family: dict[str, Path], adapters: dict[str, Path], dtype: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True}
    chosen = {kind: adapters[kind] for kind in ("patterns", "single", "down")}
    found, scores = [], []
    for device in ("cpu", "cuda"):
        with dlf.Engine(
            family["large"],
            experts_of(bases["olmoe"], chosen),
            combine="centroid",
            dtype=dtype,
            device=device,
            max_batch=2,
            max_context=96,
        ) as engine:
            found.append(engine.generate(PROMPTS, **options))
            scores.append(engine.score(PROMPTS[0], ["fox jumps"]))
            if device == "cuda":
                for prompt, together in zip(PROMPTS, found[1], strict=True):
                    for drafted in (False, *(dlf.Speculation(drafter=kind, adaptive=False) for kind in chosen)):
                        alone = engine.generate(prompt, speculate=drafted, **options)
                        assert alone.tokens == together.tokens and np.array_equal(alone.alpha, together.alpha)
    for host, ours in zip(*found, strict=True):
        if dtype == "float32":
            assert ours.tokens == host.tokens
            np.testing.assert_allclose(ours.logprobs, host.logprobs, atol=1e-3)
            np.testing.assert_allclose(ours.alpha, host.alpha, atol=5e-3)
        else:
            np.testing.assert_allclose(ours.alpha[0], host.alpha[0], atol=0.1)
    atol = 1e-3 if dtype == "float32" else 0.5
    for host, ours in zip(*scores, strict=True):
        np.testing.assert_allclose(ours.logprobs, host.logprobs, atol=atol)
