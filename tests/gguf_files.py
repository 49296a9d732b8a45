"""Writes tiny GGUF files with the ``gguf`` package, as llama.cpp's ``convert_hf_to_gguf.py`` converts a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import load_file

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "phi3": "phi3",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
    "smollm3": "smollm3",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
    "ministral3": "mistral3",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "phi": "phi2",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "glm4": "glm4",
    "glm": "chatglm",
    "qwen2_moe": "qwen2moe",
}
KEYS = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", "shared_intermediate_size"),
}
# Settings that a file of these families cannot have.
NOT_IN_GGUF: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 24},
    "gemma3": {"query_pre_attn_scalar": 24, "sliding_window_pattern": 6, "num_hidden_layers": 7},
    "gpt_neox": {"hidden_act": "gelu"},
    "granite_moe": {"hidden_act": "silu"},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True},
    "starcoder2": {"sliding_window": None},
}
NO_WINDOW = ("mistral", "ministral3", "qwen2", "qwen2_moe", "starcoder2")  # GGUF has none for them
# Places of the float16 numbers in a block, whose upper exponents random bytes must not have.
HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def write_gguf(path: Path, folder: Path, kind: str = "F32", split: int = 0, **changes: Any) -> Path:
    """Convert a folder, and return the first file.

    Parameters
    ----------
    path
        The file.
    folder
        A folder that ``models.make_model`` wrote.
    kind
        Type of matrices whose rows are whole blocks: a float, or one that ``gguf`` can quantize.
    split
        Most tensors of a file; 0 writes one file.
    **changes
        Metadata to add or replace, by key with ``__`` for each dot; None removes one.
    """
    config = json.loads((folder / "config.json").read_text())
    name = ARCHITECTURES[config["model_type"]]
    metadata = _metadata(config, name) | vocabulary(folder)
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    converted = _converted(tensors, config, name)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        converted |= {f"rope_factors_{key}.weight": torch.tensor(rope[f"{key}_factor"]) for key in ("long", "short")}
        old, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        metadata |= {
            f"{name}.rope.scaling.original_context_length": old,
            f"{name}.rope.scaling.attn_factor": math.sqrt(1 + math.log(longest / old) / math.log(old)),
            f"{name}.rope.dimension_count": int(rope.get("partial_rotary_factor", 1.0) * head_dim),
        }
    if rope.get("rope_type") == "llama3":
        converted["rope_freqs.weight"] = _llama3_factors(rope, config)
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    write_file(path, name, metadata, converted, kind, split)
    return path if not split else sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def write_file(
    path: Path, name: str, metadata: dict[str, Any], tensors: dict[str, torch.Tensor], kind: str = "F32", split: int = 0
) -> None:
    """Write metadata and tensors, matrices as a type."""
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    quantized = GGMLQuantizationType[kind]
    for own, tensor in tensors.items():
        values = tensor.float().numpy()
        whole = values.ndim > 1 and values.shape[-1] % GGML_QUANT_SIZES[quantized][0] == 0
        if whole and kind != "F32":
            writer.add_tensor(own, gguf.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return random blocks of a type whose values are all finite, uint8 ``[rows, bytes]``."""
    block, size = GGML_QUANT_SIZES[kind]
    content = np.random.default_rng(seed).integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for place in HALVES[kind.name]:
        content[..., place + 1] &= 0xBF
    return content.reshape(rows, -1)


def vocabulary(folder: Path, pre: str = "gpt-2") -> dict[str, Any]:
    """Return the metadata of a byte-level tokenizer."""
    document = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    model, added = document["model"], {one["content"]: one for one in document["added_tokens"]}
    ids = model["vocab"] | {content: one["id"] for content, one in added.items()}
    tokens = sorted(ids, key=lambda token: ids[token])
    kinds = [1 if token not in added else 3 if added[token]["special"] else 4 for token in tokens]
    eos = config["eos_token"]
    names = {"bos": config.get("bos_token"), "eos": eos["content"] if isinstance(eos, dict) else eos}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.chat_template": config["chat_template"],
    } | {f"tokenizer.ggml.{key}_token_id": ids[token] for key, token in names.items() if token}


def _metadata(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = {}
    for key, names in KEYS.items():
        value = next((config[one] for one in names if config.get(one) is not None), None)
        if key == "attention.head_count_kv" and config["model_type"] in ("gpt2", "gpt_neox"):
            continue  # whose own configuration has no such key
        if key == "attention.sliding_window" and config["model_type"] in NO_WINDOW:
            continue
        if value is not None:
            found[f"{name}.{key}"] = value
    rope = config.get("rope_parameters") or {}
    if config["model_type"] == "gemma3_text":
        found["gemma3.rope.freq_base"] = rope["full_attention"]["rope_theta"]
    elif config["model_type"] == "olmo3":
        found["olmo2.rope.freq_base"] = rope["full_attention"]["rope_theta"]
    elif "rope_theta" in rope:
        found[f"{name}.rope.freq_base"] = rope["rope_theta"]
    if config["model_type"] == "olmo3":
        kinds = [one == "sliding_attention" for one in config["layer_types"]]
        found["olmo2.attention.sliding_window_pattern"] = kinds
    if "partial_rotary_factor" in rope and config["model_type"] != "phi3":
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found[f"{name}.rope.dimension_count"] = int(rope["partial_rotary_factor"] * head_dim)
    if rope.get("rope_type") == "yarn":
        found |= {
            f"{name}.rope.scaling.type": "yarn",
            f"{name}.rope.scaling.factor": rope["factor"],
            f"{name}.rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            f"{name}.rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
            f"{name}.attention.temperature_scale": rope["llama_4_scaling_beta"],
        }
    if config["model_type"] == "gpt2":
        found["gpt2.feed_forward_length"] = config.get("n_inner") or 4 * config["n_embd"]
    return found


def _converted(tensors: dict[str, torch.Tensor], config: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Return tensors under their names in GGUF, changed as the conversion does."""
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(architecture), layers)
    found: dict[str, Any] = {}
    for key, tensor in _split(tensors).items():
        before, dot, after = key.partition(".experts.")
        number, _, rest = after.partition(".")
        merged = f"{before}.experts.{rest}" if dot and number.isdigit() else key
        own = names.get_name(merged, try_suffixes=(".weight", ".bias"))
        if own is None:
            continue  # a buffer
        changed = _changed(tensor, own, config, name)
        if merged != key:
            found.setdefault(own, {})[int(number)] = changed
        else:
            found[own] = changed
    return {
        own: torch.stack([one[i] for i in range(len(one))]) if isinstance(one, dict) else one
        for own, one in found.items()
    }


def _split(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under names that ``gguf`` knows, gates and ups apart, which Granite's mixtures have in one."""
    apart = {
        "block_sparse_moe.input_linear": ("block_sparse_moe.experts.w1", "block_sparse_moe.experts.w3"),
        "shared_mlp.input_linear": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    }
    found = {}
    for key, tensor in tensors.items():
        one = next((one for one in apart if one in key), None)
        found |= (
            {key: tensor}
            if one is None
            else {key.replace(one, new): half for new, half in zip(apart[one], tensor.chunk(2, dim=-2), strict=True)}
        )
    return found


def _changed(tensor: torch.Tensor, own: str, config: dict[str, Any], name: str) -> torch.Tensor:
    heads = config.get("num_attention_heads") or config["n_head"]
    if name in ("llama", "granite", "granitemoe", "smollm3", "mistral3") and (".attn_q." in own or ".attn_k." in own):
        count = heads if ".attn_q." in own else config["num_key_value_heads"]
        halves = tensor.reshape(count, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if name == "gptneox" and ".attn_qkv." in own:
        parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
        return torch.cat([parts[:, i].reshape(-1, *tensor.shape[1:]) for i in range(3)])
    if (
        name == "gpt2"
        and own.endswith("weight")
        and any(part in own for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    ):
        return tensor.t().contiguous()
    if own.endswith("shexp.weight") and tensor.shape[0] == 1:
        return tensor[0]  # a matrix of one row
    if name in ("gemma2", "gemma3") and own.endswith("norm.weight"):
        return tensor + 1
    return tensor


def _llama3_factors(rope: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """Divisors of the frequencies, as ``generate_extra_tensors`` of the conversion computes them."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    found = []
    for frequency in frequencies.tolist():
        length = 2 * torch.pi / frequency
        if length < old / high:
            found.append(1.0)
        elif length > old / low:
            found.append(rope["factor"])
        else:
            smooth = (old / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(found)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
