"""Random configurations of every family have the log-probabilities of ``transformers``, read in chunks and decoded."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from models import FAMILIES, draw, make_config, model_class
from safetensors.torch import load_file

from dlf import _C
from dlf.checkpoints.folder import Folder
from dlf.errors import CheckpointError

SEEDS = 12  # configurations of each family
ACTIVATIONS = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"]
# Values that a key gets, in families that have it.
CHOICES: dict[str, list[Any]] = {
    "vocab_size": [303, 317, 331, 352, 389, 400],
    "intermediate_size": [20, 36, 48, 72, 112, 132],
    "n_inner": [None, 50, 90],
    "num_hidden_layers": [1, 2, 3, 4, 5],
    "attn_logit_softcapping": [None, 2.0, 20.0],
    "final_logit_softcapping": [None, 2.0, 20.0],
    "query_pre_attn_scalar": [5, 20, 64],
    "clip_qkv": [None, 0.5, 3.0],
    "moe_intermediate_size": [8, 24, 32, 40],
    "shared_intermediate_size": [0, 16, 48, 72],
    "no_rope_layer_interval": [1, 2, 3, 4],
    "decoder_sparse_step": [1, 2],
    "sliding_window": [2, 5, 9],
} | {
    key: [False, True]
    for key in "tie_word_embeddings attention_bias mlp_bias use_bias use_qkv_bias norm_topk_prob use_parallel_residual "
    "use_qk_norm scale_attn_weights".split()
}
CHOICES |= dict.fromkeys(["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"], [1e-6, 1e-5, 1e-3])
CHOICES |= dict.fromkeys(["hidden_act", "activation_function", "hidden_activation"], ACTIVATIONS)
MULTIPLIERS = "embedding_multiplier logits_scaling residual_multiplier attention_multiplier logit_scale".split()
CHOICES |= dict.fromkeys(MULTIPLIERS, [0.25, 0.6, 1.3, 2.2])
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 20.0, "truncate": False},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]
KEEPS_ROPE = ("gemma3", "olmo3", "ministral3", "gpt2")  # which have tables of their own, or no rotation
HEADS_SHARE_THE_WIDTH = ("gpt2", "pythia", "gpt_neox", "phi", "stablelm")  # head_dim is hidden size / heads


def draw_settings(family: str, random: Random) -> dict[str, Any]:
    """Draw settings that the configuration of a family takes."""
    known = {"num_hidden_layers": 3} | make_config(family).to_dict() | FAMILIES[family][1]  # GPT-2 has other names
    found = {key: random.choice(values) for key, values in CHOICES.items() if key in known}
    heads, head_dim = random.choice([1, 2, 3, 4, 5, 6]), random.choice([4, 8, 16, 20, 24, 32])
    own = known.get("head_dim") and family not in HEADS_SHARE_THE_WIDTH
    found |= {"num_attention_heads": heads, "hidden_size": heads * (random.choice([4, 8, 12, 16]) if own else head_dim)}
    found |= {"head_dim": head_dim} if own else {}
    if "num_key_value_heads" in known and family not in ("gpt2", "pythia", "gpt_neox"):
        found["num_key_value_heads"] = random.choice([one for one in range(1, heads + 1) if heads % one == 0])
    for key in {"num_experts", "num_local_experts"} & known.keys():
        found[key] = random.choice([2, 3, 5, 8, 17])
        found["num_experts_per_tok"] = random.randint(1, min(found[key], 6))
    if "shared_expert_intermediate_size" in known:  # equal, for layers without experts
        found["shared_expert_intermediate_size"] = found["intermediate_size"]
    layers = found["num_hidden_layers"]
    if "mlp_only_layers" in known:
        found["mlp_only_layers"] = [layer for layer in range(layers) if random.random() < 0.3]
    if known.get("layer_types") and random.random() < 0.5:
        kinds = {"full_attention", "sliding_attention"} if "sliding_window" in known else set(known["layer_types"])
        found["layer_types"] = random.choices(sorted(kinds), k=layers)
        found |= {"use_sliding_window": True} if "use_sliding_window" in known else {}
    if "max_window_layers" in known:
        found |= {"use_sliding_window": True, "max_window_layers": random.randint(0, layers)}
    if family not in KEEPS_ROPE:
        rope = random.choice(ROPES[:1] if family == "phi3" else ROPES) | {
            "rope_theta": random.choice([123.0, 1e4, 1e6])
        }
        part = {"partial_rotary_factor": random.choice([0.5, 1.0])}
        found["rope_parameters"] = rope | (part if "partial_rotary_factor" in known["rope_parameters"] else {})
    return found


def logprobs(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return the log-probabilities of a text that is prefilled in two chunks and then decoded token by token."""
    config = Folder(folder).config
    weights = _C.Weights(config.spec, config.by_slot(load_file(folder / "model.safetensors")))
    decoder = _C.Decoder(weights, slots=2, max_context=64, threads=1)
    found = [decoder.prefill(tokens[:7], 1, 0), decoder.prefill(tokens[7:19], 1, 7)]
    found += [decoder.decode([token], [1], [place]) for place, token in enumerate(tokens[19:], start=19)]
    return torch.cat(found).log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_configurations(tmp_path: Path, family: str, seed: int) -> None:
    """Within 10⁻⁴, or as near to float64 as ``transformers`` in float32, where large factors amplify rounding."""
    random = Random(f"{family} {seed}")
    model: transformers.PreTrainedModel = draw(
        model_class(family)(make_config(family, **draw_settings(family, random))).float(), seed
    ).eval()
    if getattr(model.config, "num_experts_per_tok", None):
        model.set_experts_implementation("eager")  # its grouped products take no odd sizes
    model.save_pretrained(tmp_path)
    tokens = [random.randrange(2, 300) for _ in range(30)]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        exact = model.double()(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = logprobs(tmp_path, tokens)
    assert expected.std() > 0.1
    if (found - expected).abs().max() > 1e-4:
        assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model_class("qwen2_moe")(make_config("qwen2_moe", shared_expert_intermediate_size=56)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json: shared experts have the size 56 and layers .* 112"):
        _ = Folder(tmp_path).config
