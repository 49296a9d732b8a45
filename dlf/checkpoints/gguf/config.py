"""Writes the metadata of a GGUF file as the ``config.json`` that the model had.

Keys are those of ``gguf.constants.Keys``. Where llama.cpp fixes a value in its code (``src/models/*.cpp``), so does
this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dlf.checkpoints.gguf.file import GgufFile
from dlf.checkpoints.gguf.values import read_values
from dlf.errors import CheckpointError, UnknownArchitectureError
from dlf.families.rope import MAX_POSITIONS

__all__ = ["architecture_of", "config_values"]

Values: TypeAlias = "dict[str, Any]"
Meta: TypeAlias = "Mapping[str, Any]"

COMMON = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
EPSILON = "attention.layer_norm_epsilon"
EXPERTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
LOCAL_EXPERTS = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
ROPE_FACTORS = "rope_freqs.weight"  # as rope_factors_long and rope_factors_short: divide the frequencies
MAX_ROPE_FACTORS = 4096
# Tokens that end a text in llama.cpp, whatever the file says.
END_OF_TEXT = (
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> <|end_of_text|> <eos>"
).split()


def _llama(meta: Meta, file: GgufFile) -> Values:
    biased = "blk.0.attn_q.bias" in file.tensors
    found = {"attention_bias": biased, "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors}
    if not meta.get("expert_count"):
        return found
    return found | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"} | _named(meta, LOCAL_EXPERTS)


def _plain(meta: Meta, file: GgufFile) -> Values:
    return {}


def _qwen3(meta: Meta, file: GgufFile) -> Values:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors}


def _qwen3_moe(meta: Meta, file: GgufFile) -> Values:
    found = _named(meta, EXPERTS | {"moe_intermediate_size": "expert_feed_forward_length"})
    return found | {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


def _olmoe(meta: Meta, file: GgufFile) -> Values:
    return {"norm_topk_prob": False} | _named(meta, EXPERTS)


def _gemma(meta: Meta, large: int) -> Values:
    """Return what Gemma 2 and 3 share; their model of `large` layers alone scales queries by hidden size."""
    wide = meta.get("block_count") == large
    scale = _quotient(meta, "embedding_length", "attention.head_count") if wide else meta.get("attention.key_length")
    return {"query_pre_attn_scalar": scale, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}


def _gemma2(meta: Meta, file: GgufFile) -> Values:
    names = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
    window = {"sliding_window": meta.get("attention.sliding_window", 4096)}
    return _gemma(meta, large=46) | window | _named(meta, names)


def _gemma3(meta: Meta, file: GgufFile) -> Values:
    pattern = _listed(meta.get("attention.sliding_window_pattern", 6))
    layers = (
        {"layer_types": _layer_types(pattern)} if isinstance(pattern, list) else {"sliding_window_pattern": pattern}
    )
    found = _gemma(meta, large=62) | layers | {"rope_local_base_freq": meta.get("rope.freq_base_swa", 10000.0)}
    return found | _named(
        meta, {"sliding_window": "attention.sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
    )


def _olmo2(meta: Meta, file: GgufFile) -> Values:
    window, pattern = meta.get("attention.sliding_window"), meta.get("attention.sliding_window_pattern")
    if not window or pattern is None:
        return {}
    names = {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}
    return names | {"sliding_window": window, "layer_types": _layer_types(_listed(pattern))}


def _phi3(meta: Meta, file: GgufFile) -> Values:
    window = meta.get("attention.sliding_window") or None
    return {"sliding_window": window} | _named(
        meta, {"original_max_position_embeddings": "rope.scaling.original_context_length"}
    )


GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def _granite(meta: Meta, file: GgufFile) -> Values:
    return _llama(meta, file) | _named(meta, GRANITE)


def _granite_moe(meta: Meta, file: GgufFile) -> Values:
    found = {"attention_bias": "blk.0.attn_q.bias" in file.tensors} | _named(meta, GRANITE | LOCAL_EXPERTS)
    shared = meta.get("expert_shared_feed_forward_length")
    if not shared:
        return found
    names = {"architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared"}
    return found | names | {"shared_intermediate_size": shared}


def _smollm3(meta: Meta, file: GgufFile) -> Values:
    return {"no_rope_layer_interval": 4, "use_sliding_window": False}


def _gpt_neox(meta: Meta, file: GgufFile) -> Values:
    names = {"use_parallel_residual": "use_parallel_residual", "layer_norm_eps": "attention.layer_norm_epsilon"}
    return {"hidden_act": "gelu", "attention_bias": "blk.0.attn_qkv.bias" in file.tensors} | _named(meta, names)


def _gpt2(meta: Meta, file: GgufFile) -> Values:
    names = {
        "n_embd": "embedding_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_positions": "context_length",
        "n_inner": "feed_forward_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    }
    return _named(meta, names)


def _starcoder2(meta: Meta, file: GgufFile) -> Values:
    return {"norm_epsilon": meta.get(EPSILON), "use_bias": "blk.0.attn_q.bias" in file.tensors}


def _stablelm(meta: Meta, file: GgufFile) -> Values:
    return {
        "layer_norm_eps": meta.get(EPSILON),
        "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors,
    }


def _phi2(meta: Meta, file: GgufFile) -> Values:
    return {"layer_norm_eps": meta.get(EPSILON), "hidden_act": "gelu_new"}


def _cohere(meta: Meta, file: GgufFile) -> Values:
    normed = "blk.0.attn_q_norm.weight" in file.tensors
    return {"layer_norm_eps": meta.get(EPSILON), "use_qk_norm": normed} | _named(meta, {"logit_scale": "logit_scale"})


def _cohere2(meta: Meta, file: GgufFile) -> Values:
    window = {"sliding_window": meta.get("attention.sliding_window"), "sliding_window_pattern": 4}
    return _cohere(meta, file) | window


def _glm(meta: Meta, file: GgufFile) -> Values:
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors}


def _qwen2_moe(meta: Meta, file: GgufFile) -> Values:
    sizes = {
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    }
    found = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return found | _named(meta, EXPERTS | sizes)


# Architecture in the file: class and model_type in config.json, and what goes there beside `COMMON`.
ARCHITECTURES: dict[str, tuple[str, str, Callable[[Meta, GgufFile], Values]]] = {
    "llama": ("LlamaForCausalLM", "llama", _llama),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", _plain),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", _qwen3),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe", _qwen3_moe),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", _gemma2),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", _gemma3),
    "olmo2": ("Olmo2ForCausalLM", "olmo2", _olmo2),
    "olmoe": ("OlmoeForCausalLM", "olmoe", _olmoe),
    "phi3": ("Phi3ForCausalLM", "phi3", _phi3),
    "granite": ("GraniteForCausalLM", "granite", _granite),
    "granitemoe": ("GraniteMoeForCausalLM", "granitemoe", _granite_moe),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3", _smollm3),
    "gptneox": ("GPTNeoXForCausalLM", "gpt_neox", _gpt_neox),
    "gpt2": ("GPT2LMHeadModel", "gpt2", _gpt2),
    "mistral3": ("Ministral3ForCausalLM", "ministral3", _plain),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2", _starcoder2),
    "stablelm": ("StableLmForCausalLM", "stablelm", _stablelm),
    "phi2": ("PhiForCausalLM", "phi", _phi2),
    "command-r": ("CohereForCausalLM", "cohere", _cohere),
    "cohere2": ("Cohere2ForCausalLM", "cohere2", _cohere2),
    "glm4": ("Glm4ForCausalLM", "glm4", _glm),
    "chatglm": ("GlmForCausalLM", "glm", _glm),
    "qwen2moe": ("Qwen2MoeForCausalLM", "qwen2_moe", _qwen2_moe),
}


def architecture_of(file: GgufFile) -> str:
    """Return the architecture that a file names.

    Raises
    ------
    UnknownArchitectureError
        If it is none of `ARCHITECTURES`.
    """
    found = file.metadata.get("general.architecture")
    if found not in ARCHITECTURES:
        raise UnknownArchitectureError(
            f"{file.path}: 'general.architecture' is {found!r:.80}; dlf runs {', '.join(ARCHITECTURES)} as GGUF files: "
            "choose such a model"
        )
    return str(found)


def config_values(file: GgufFile) -> Values:
    """Return the content of ``config.json``, from metadata and the shapes of tensors.

    Raises
    ------
    CheckpointError, UnknownArchitectureError
        If dlf does not know the architecture, or a value cannot be what it should.
    """
    name = architecture_of(file)
    meta = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    architecture, model_type, further = ARCHITECTURES[name]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no token_embd.weight: it is no language model, or a part of one")
    if meta.get("attention.value_length", meta.get("attention.key_length")) != meta.get("attention.key_length"):
        raise CheckpointError(f"{file.path}: heads have values of another size than keys, which dlf does not run")
    values: Values = {"architectures": [architecture], "model_type": model_type}
    values |= _named(meta, COMMON) | {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": meta.get("rope.freq_base", 10000.0),  # llama.cpp's default, whatever the family's is
        "torch_dtype": _dtype(file),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(file, embedding.shape[0]),
    }
    head_dim = values.get("head_dim") or _quotient(meta, "embedding_length", "attention.head_count")
    rotated = meta.get("rope.dimension_count", head_dim)
    if rotated and head_dim:
        values |= {"partial_rotary_factor": rotated / head_dim, "rotary_pct": rotated / head_dim}
    return values | _rope(meta, file, rotated) | further(meta, file)


def _rope(meta: Meta, file: GgufFile, rotated: Any) -> Values:
    """Return ``rope_scaling``: that of the metadata, or the factors that a tensor has."""
    long, short = ("rope_factors_long.weight", "rope_factors_short.weight")
    lengths = {"original_max_position_embeddings": meta.get("rope.scaling.original_context_length")}
    if ROPE_FACTORS in file.tensors:
        # The frequencies of Llama 3, which depend on factors that the file no longer has.
        factors = _factors(file, ROPE_FACTORS, rotated)
        lengths = {"original_max_position_embeddings": meta.get("context_length")}
        kind = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return {"rope_scaling": kind | lengths}
    if long in file.tensors and short in file.tensors:
        kind = {
            "rope_type": "longrope",
            "short_factor": _factors(file, short, rotated),
            "long_factor": _factors(file, long, rotated),
            "attention_factor": meta.get("rope.scaling.attn_factor", 1.0),
        }
        return {"rope_scaling": kind | lengths}
    kind_name, factor = meta.get("rope.scaling.type"), meta.get("rope.scaling.factor", meta.get("rope.scale_linear"))
    if kind_name in (None, "none", "longrope") or not factor:
        return {}
    further = {
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
        "attention_factor": "rope.scaling.attn_factor",
        "mscale_all_dim": "rope.scaling.yarn_log_multiplier",
        "llama_4_scaling_beta": "attention.temperature_scale",
    }
    scaling = {"rope_type": kind_name, "factor": factor, "mscale": 1.0}
    return {"rope_scaling": scaling | lengths | _named(meta, further)}


def _factors(file: GgufFile, name: str, rotated: Any) -> list[float]:
    tensor = file.tensors[name]
    if len(tensor.shape) != 1 or tensor.shape[0] > MAX_ROPE_FACTORS or tensor.kind.name != "F32":
        raise CheckpointError(f"{file.path}: {name} is {tensor.kind.name} {list(tensor.shape)}; fetch the model again")
    factors: list[float] = read_values(tensor).tolist()
    return factors


def _dtype(file: GgufFile) -> str:
    """Return the type that values which are not quantised to native tiles are held in."""
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return "float32" if kinds <= {"F32"} else "float16" if kinds <= {"F16", "F32"} else "bfloat16"


def _end_tokens(file: GgufFile, size: int) -> list[int]:
    """Ids that end a text: those that the file names, then those that llama.cpp knows by their text."""
    keys = ("eos", "eot", "eom")
    named = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    known = tokens if isinstance(tokens, list) else []
    found = [one for one in named if one is not None]
    found += [number for number, token in enumerate(known) if token in END_OF_TEXT]
    return [one for one in dict.fromkeys(found) if type(one) is not int or one < size]


def _named(meta: Meta, names: Mapping[str, str]) -> Values:
    return {name: _listed(meta[key]) for name, key in names.items() if key in meta}


def _listed(value: Any) -> Any:
    """Return an array as a list, so that it is no number, and printed in full nowhere."""
    return value.tolist() if hasattr(value, "tolist") else value


def _layer_types(windowed: Any) -> Any:
    return (
        ["sliding_attention" if one else "full_attention" for one in windowed] if isinstance(windowed, list) else None
    )


def _quotient(meta: Meta, a: str, b: str) -> int | None:
    one, other = meta.get(a), meta.get(b)
    return one // other if type(one) is int and type(other) is int and 0 < other <= MAX_POSITIONS else None
