"""Adapters of the embedding and the head, with the results of PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_lanes import check_lanes, experts_of
from models import VOCAB_SIZE, make_model
from test_lora import decoder_of, peft_logits
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C
from dlf.adapters.adapter import AdapterFile, load_adapter
from dlf.checkpoints.config import read_config
from dlf.checkpoints.folder import Folder
from dlf.merging.fold import Fold
from dlf.model import load_model

peft = pytest.importorskip("peft")

TOKENS = [3, 5, 9, 200, 5, 41]
LAYERS = ["q_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "low-rank-embedding": {"target_modules": [*LAYERS, "embed_tokens"]},
    "low-rank-head": {"target_modules": [*LAYERS, "lm_head"]},
    "both-low-rank": {"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 5}},
    "saved-embedding": {"target_modules": LAYERS, "modules_to_save": ["embed_tokens"]},
    "saved-head": {"target_modules": LAYERS, "modules_to_save": ["lm_head"]},
    "both-saved": {"target_modules": LAYERS, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": LAYERS, "trainable_token_indices": [3, 200, 5]},
    "tokens-of-both": {
        "target_modules": LAYERS,
        "trainable_token_indices": {"embed_tokens": [3, 200], "lm_head": [9]},
    },
}


def make_adapter(folder: Path, base: Path, seed: int, vocab: int | None = None, **config: Any) -> Path:
    """Write a PEFT folder with random changes; the base's vocabulary is extended before to `vocab` tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocab is not None:
        model.resize_token_embeddings(vocab)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_model(folder / name, name, seed=6) for name in ("llama", "qwen3")}  # the second one's is tied


def logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_folding(bases: dict[str, Path], name: str, kind: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases[name], 1, **KINDS[kind])
    (tmp_path / "folded").mkdir()
    Fold(Folder(bases[name]), AdapterFile(adapter)).write(tmp_path / "folded")
    expected = peft_logits(bases[name], adapter, TOKENS)
    torch.testing.assert_close(logits(tmp_path / "folded", TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(bases[name], TOKENS)).abs().max() > 0.01
    tied = json.loads((tmp_path / "folded" / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (name == "qwen3" and kind == "tokens")


@pytest.mark.parametrize("kind", ["saved-embedding", "both-saved", "both-low-rank"])
def test_rows_beyond_the_base_are_left_out(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = make_adapter(tmp_path / "adapter", base, 2, vocab=400, **KINDS[kind])
    (tmp_path / "folded").mkdir()
    Fold(Folder(base), AdapterFile(adapter)).write(tmp_path / "folded")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(400)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0, :, :392]
    torch.testing.assert_close(logits(tmp_path / "folded", TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama_adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind."""
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: make_adapter(folder / kind, bases["llama"], 1, **KINDS[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_lanes(bases: dict[str, Path], name: str, kind: str, tmp_path: Path) -> None:
    """Gemma multiplies embeddings, GPT-2 adds those of positions."""
    base = bases[name] if name in bases else make_model(tmp_path / "base", name, seed=6)
    renamed = {"embed_tokens": "wte", "q_proj": "c_attn", "down_proj": "mlp.c_proj"} if name == "gpt2" else {}
    config = json.loads(json.dumps(KINDS[kind]))
    for key, value in config.items():
        if isinstance(value, list) and key != "trainable_token_indices":
            config[key] = [renamed.get(one, one) for one in value]
        elif isinstance(value, dict):
            config[key] = {renamed.get(one, one): of for one, of in value.items()}
        elif name == "gpt2" and key == "trainable_token_indices":
            config[key] = {"wte": value}
    adapter = make_adapter(tmp_path / "adapter", base, 1, **config)
    expected = peft_logits(base, adapter, TOKENS)
    decoder = decoder_of(base, [adapter])
    found, plain = decoder.prefill(TOKENS, 0, 0, 0), decoder.prefill(TOKENS, 1, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain, decoder_of(base, []).prefill(TOKENS, 1, 0))
    assert (plain - found).abs().max() > 0.01
    decoder.prefill(TOKENS[:3], 2, 0, 0)
    for i in range(3, len(TOKENS)):
        step = decoder.decode([TOKENS[i]], [2], [i], [0])
        torch.testing.assert_close(step[0], expected[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lanes_do_not_depend_on_the_others(bases: dict[str, Path], llama_adapters: dict[str, Path], dtype: str) -> None:
    decoder = decoder_of(bases["llama"], list(llama_adapters.values()), dtype, slots=12)
    which = [*range(len(KINDS)), -1, 3, 3, -1]
    alone = []
    for slot, one in enumerate(which):
        decoder.prefill([5, 17, 30 + slot], slot, 0, one)
        alone.append(decoder.decode([200 - slot], [slot], [3], [one])[0])
    for order in (list(range(12)), [9, 3, 10, 8, 11, 0, 7, 1, 6, 2, 5, 4], [7, 11, 4]):
        rows = decoder.decode([200 - slot for slot in order], order, [3] * len(order), [which[slot] for slot in order])
        for row, slot in zip(rows, order, strict=True):
            assert torch.equal(row, alone[slot])


@pytest.mark.parametrize("kind", ["both-low-rank", "both-saved", "tokens-of-both"])
def test_long_prompts(kind: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", seed=6, max_position_embeddings=512)
    adapter = make_adapter(tmp_path / "adapter", base, 1, **KINDS[kind])
    tokens = [(7 * i + i // 5) % 384 for i in range(300)]
    model = load_model(base, "float32")
    decoder = _C.Decoder(model.weights, 1, 301, 2, [load_adapter(adapter, model.config, model.dtype)])
    expected = peft_logits(base, adapter, tokens)
    torch.testing.assert_close(decoder.prefill(tokens, 0, 0, 0), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_bfloat16_lanes_are_within_its_rounding(bases: dict[str, Path], llama_adapters: dict[str, Path]) -> None:
    for adapter in llama_adapters.values():
        exact = peft_logits(bases["llama"], adapter, TOKENS)
        theirs = (peft_logits(bases["llama"], adapter, TOKENS, torch.bfloat16) - exact).abs().max()
        found = decoder_of(bases["llama"], [adapter], "bfloat16").prefill(TOKENS, 0, 0, 0)
        assert (found - exact).abs().max() < 2 * theirs


@pytest.mark.parametrize("kind", ["saved-embedding", "both-saved", "both-low-rank"])
def test_lanes_leave_out_rows_beyond_the_base(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = make_adapter(tmp_path / "adapter", base, 2, vocab=400, **KINDS[kind])
    (tmp_path / "folded").mkdir()
    Fold(Folder(base), AdapterFile(adapter)).write(tmp_path / "folded")
    found = decoder_of(base, [adapter]).prefill(TOKENS, 0, 0, 0)
    torch.testing.assert_close(found, logits(tmp_path / "folded", TOKENS), rtol=1e-4, atol=1e-4)


def test_tables_that_do_not_fit(bases: dict[str, Path], tmp_path: Path) -> None:
    spec = read_config(bases["llama"]).spec
    rows = torch.zeros(2, spec.hidden_size)
    for tensors, message in (
        ({"head.rows": rows}, "tensor head.rows is"),
        ({"head.rows": rows[0], "head.tokens": torch.tensor([3, 4]).int()}, "head.rows must be a matrix"),
        ({"head.rows": rows, "head.tokens": torch.tensor([3, 4])}, "an adapter must be float32"),
        ({"head.rows": rows, "head.tokens": torch.tensor([3]).int()}, "tensor head.tokens is Int"),
        ({"embedding.rows": rows, "embedding.tokens": torch.tensor([3, 3]).int()}, "embedding.tokens has 3 twice"),
        ({"embedding.rows": rows, "embedding.tokens": torch.tensor([-1, 3]).int()}, "has -1, which is outside"),
        ({"head.rows": rows, "head.tokens": torch.tensor([3, spec.vocab_size]).int()}, "outside the vocabulary"),
        ({"head.tokens": torch.tensor([3, 4]).int()}, "an adapter must be float32"),
        ({"embedding.a": rows, "embedding.b": rows}, "embedding.a is"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.Adapter(spec, tensors, {"embedding": 1.0})
    other = load_model(make_model(tmp_path / "base", "llama", vocab_size=spec.vocab_size + 8), "float32")
    for slot in ("head", "embedding"):
        whole = {f"{slot}.rows": torch.zeros(spec.vocab_size, spec.hidden_size)}
        some = {f"{slot}.rows": rows, f"{slot}.tokens": torch.tensor([3, 4]).int()}
        for tensors in (whole, some):
            with pytest.raises(ValueError, match="another embedding or head than its base"):
                _C.Decoder(other.weights, 1, 64, 1, [_C.Adapter(spec, tensors, {})])


OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
PROMPTS = ["Question: what is the sum", "x", "lazy dog " * 9]


def test_lanes_in_an_engine_are_those_of_merged_models(
    bases: dict[str, Path], family: dict[str, Path], llama_adapters: dict[str, Path]
) -> None:
    check_lanes(family["large"], bases["llama"], llama_adapters, PROMPTS, **OPTIONS)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lanes_on_cuda_are_those_of_the_cpu(
    bases: dict[str, Path], family: dict[str, Path], llama_adapters: dict[str, Path], dtype: str
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True}
    found, scores = [], []
    for device in ("cpu", "cuda"):
        with dlf.Engine(
            family["large"],
            experts_of(bases["llama"], llama_adapters),
            combine="centroid",
            dtype=dtype,
            device=device,
            max_batch=2,
            max_context=96,
        ) as engine:
            found.append(engine.generate(PROMPTS[:2], **options))
            scores.append(engine.score(PROMPTS[0], ["fox jumps"], experts=list(KINDS)[:3]))
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


@pytest.mark.cuda
@pytest.mark.parametrize("kinds", [["both-low-rank", "both-saved", "tokens-of-both"], ["tokens", "saved-head"]])
def test_lanes_on_cuda_do_not_depend_on_the_others(
    bases: dict[str, Path], family: dict[str, Path], llama_adapters: dict[str, Path], kinds: list[str]
) -> None:
    """All lanes of both requests fit into the rows that one kernel takes."""
    experts = experts_of(bases["llama"], {kind: llama_adapters[kind] for kind in kinds})
    options: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True}
    for graph in (True, False):
        with dlf.Engine(
            family["large"], experts, device="cuda", max_batch=2, max_context=96, cuda_graph=graph
        ) as engine:
            for prompt, together in zip(PROMPTS[:2], engine.generate(PROMPTS[:2], **options), strict=True):
                for drafted in (False, *(dlf.Speculation(drafter=kind, adaptive=False) for kind in kinds)):
                    alone = engine.generate(prompt, speculate=drafted, **options)
                    assert alone.tokens == together.tokens and np.array_equal(alone.alpha, together.alpha)
                    assert np.array_equal(alone.logprobs, together.logprobs)


def test_in_an_engine(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = make_adapter(tmp_path / "adapter", base, 3, **KINDS["both-low-rank"])
    prompt = [5, 17, 300]
    expert = dlf.Lora(base, adapter, merge=True)
    with dlf.Engine(base, [expert], combine="static", alpha=[1.0], dtype="float32", threads=1) as engine:
        found = engine.score(prompt, TOKENS)
    full = peft_logits(base, adapter, [*prompt, *TOKENS])[:, :VOCAB_SIZE].double().log_softmax(-1)
    expected = [float(full[2 + i, token]) for i, token in enumerate(TOKENS)]
    assert list(found.logprobs) == pytest.approx(expected, abs=1e-3)


def test_a_tied_matrix_is_held_once(bases: dict[str, Path], tmp_path: Path) -> None:
    sizes = []
    for tie in (True, False):
        kind = {"target_modules": LAYERS, "modules_to_save": ["embed_tokens", "lm_head"][: 1 if tie else 2]}
        adapter = make_adapter(tmp_path / str(tie), bases["qwen3"], 1, ensure_weight_tying=tie, **kind)
        config = read_config(bases["qwen3"])
        sizes.append(load_adapter(adapter, config, torch.float32).nbytes)
        found = decoder_of(bases["qwen3"], [adapter]).prefill(TOKENS, 0, 0, 0)
        torch.testing.assert_close(found, peft_logits(bases["qwen3"], adapter, TOKENS), rtol=1e-4, atol=1e-4)
    assert sizes[1] - sizes[0] == 4 * config.spec.vocab_size * config.spec.hidden_size
