"""Tiny random checkpoints of every family, written by ``transformers`` like those of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import decoders, pre_tokenizers, trainers

VOCAB_SIZE = 384
PADDED_VOCAB_SIZE = 392
BOS, EOS = "<|begin|>", "<|end|>"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the shade of the old tree.",
    "Question: what is the sum of 12 and 30? Answer: the sum of 12 and 30 is 42.",
    "def add(first, second):\n    return first + second\n",
    "Ein naïver Café-Besitzer zahlt 5 € – 你好，世界 🙂",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message.role + '] ' + message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)

COMMON: dict[str, Any] = {
    "vocab_size": PADDED_VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "llama3": (
        "Llama",
        {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "tinyllama": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "smollm": (
        "Llama",
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "mistral": ("Mistral", {"head_dim": 24, "sliding_window": 12}),
    "qwen2": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 10,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3": (
        "Qwen3",
        {
            "head_dim": 32,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "mlp_only_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "olmoe": (
        "Olmoe",
        {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3, "pad_token_id": 0},
    ),
    "mixtral": ("Mixtral", {"head_dim": 24, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 12}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 24,
            "sliding_window": 12,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 6.0,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 24,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 20,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "olmo2": ("Olmo2", {"pad_token_id": 0}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 4, "sliding_window": 9, "pad_token_id": 0}),
    "phi3": (
        "Phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
            "sliding_window": 30,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5, 2.0, 2.5],
                "long_factor": [2.0, 4.0, 5.0, 8.0],
            },
        },
    ),
    "pythia": (
        "GPTNeoX",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
    ),
    "gpt_neox": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new"}),
    "gpt2": ("GPT2", {"n_inner": 100, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "tie_word_embeddings": True, "pad_token_id": 0}),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 16,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 112,
            "mlp_only_layers": [1],
        },
    ),
    "granite_moe": (
        "GraniteMoe",
        {
            "intermediate_size": 64,
            "num_local_experts": 4,
            "logits_scaling": 0.5,
            "attention_multiplier": 0.2,
            "hidden_act": "gelu",
            "pad_token_id": 0,
        },
    ),
    "granite_moe_shared": (
        "GraniteMoeShared",
        {
            "intermediate_size": 48,
            "num_local_experts": 5,
            "shared_intermediate_size": 72,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "pad_token_id": 0,
        },
    ),
    "starcoder2": ("Starcoder2", {"sliding_window": 12, "tie_word_embeddings": True}),
    "stablelm": ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "phi": ("Phi", {}),
    "cohere": ("Cohere", {"logit_scale": 0.4, "tie_word_embeddings": True, "pad_token_id": 0}),
    "command_r_plus": (
        "Cohere",
        {"use_qk_norm": True, "logit_scale": 0.4, "tie_word_embeddings": True, "pad_token_id": 0},
    ),
    "cohere2": (
        "Cohere2",
        {
            "num_hidden_layers": 4,
            "sliding_window": 12,
            "logit_scale": 0.4,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "glm": ("Glm", {"head_dim": 24, "pad_token_id": 0}),
    "glm4": ("Glm4", {"head_dim": 24, "pad_token_id": 0}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "pad_token_id": 0,
        },
    ),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
ARCHITECTURES = {"GPT2": "GPT2LMHeadModel"}


def config_class(family: str) -> type[transformers.PreTrainedConfig]:
    """Return the class of a family's configuration."""
    name = FAMILIES[family][0]
    return getattr(transformers, CONFIGS.get(name, f"{name}Config"))


def model_class(family: str) -> type[transformers.PreTrainedModel]:
    """Return the class of a family's models."""
    name = FAMILIES[family][0]
    return getattr(transformers, ARCHITECTURES.get(name, f"{name}ForCausalLM"))


def make_config(family: str, **overrides: Any) -> transformers.PreTrainedConfig:
    """Return the tiny configuration of a family, with `overrides`."""
    return config_class(family)(**(COMMON | FAMILIES[family][1] | overrides))


def make_model(folder: Path, family: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny random float32 checkpoint with its tokenizer, and return its folder.

    Parameters
    ----------
    folder
        Made if need be.
    family
        A key of `FAMILIES`.
    seed
        Equal seeds give equal weights.
    **overrides
        Entries of the configuration.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = model_class(family)(make_config(family, **overrides)).float()
    draw(model, seed).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def draw(model: transformers.PreTrainedModel, seed: int) -> transformers.PreTrainedModel:
    """Give a model random weights whose distributions are far from flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
                parameter -= float(type(model).__name__.startswith("Gemma"))  # stored less 1
            elif name.endswith("bias") or "embed_tokens" in name or "lm_head" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            else:  # keeps the scale of activations
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def finetune(folder: Path, source: Path, seed: int, scale: float) -> Path:
    """Copy a model and change its weights a little, as fine-tuning an expert does."""
    shutil.copytree(source, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 else torch.tensor(1.0)
            parameter += scale * spread * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def overflowing(folder: Path, source: Path) -> Path:
    """Copy a model whose weights stay finite, but whose logits overflow."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_tokenizer(folder: Path) -> Path:
    """Write a byte-level BPE tokenizer of `VOCAB_SIZE` tokens, with a chat template."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(tokenizer, folder)


def make_sentencepiece_tokenizer(folder: Path) -> Path:
    """Write a tokenizer like those converted from sentencepiece (Llama 2, Mistral): byte fallback, leading '▁'."""
    pieces = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted({c for line in CORPUS for c in line if c.isalnum() and c.isascii()} | set(",.:?+"))
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "s"), ("o", "n")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    return _save(tokenizer, folder)


QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
# Four ids under the names of the R1 distills: for the first and the last, decoding leaves the token out.
R1 = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<|object_ref_end|>"]
QWEN_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
R1_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
    "{% else %}{{ '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def make_qwen_tokenizer(folder: Path, r1: bool = False) -> Path:
    """Write a byte-level BPE tokenizer whose added tokens come last, as Qwen2.5 has or, with `r1`, its R1 distills."""
    names = R1 if r1 else QWEN
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(n, special=n not in ("<｜User｜>", "<｜Assistant｜>")) for n in names])
    _save(tokenizer, folder)
    config = {"eos_token": names[0], "chat_template": R1_CHAT if r1 else QWEN_CHAT}
    config |= {"bos_token": names[3]} if r1 else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _save(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": BOS,
        "eos_token": {"__type": "AddedToken", "content": EOS, "special": True},
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def permute(folder: Path, source: Path, seed: int, foreign: int = 0) -> Path:
    """Copy a model of `make_model` with other ids for its tokens, and `foreign` ordinary tokens under other names.

    The tokenizer still encodes any text, but with a foreign token as the two tokens that it is made of.
    """
    shutil.copytree(source, folder)
    random = np.random.default_rng(seed)
    new = random.permutation(VOCAB_SIZE)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges = tokenizer["model"]["vocab"], [tuple(pair) for pair in tokenizer["model"]["merges"]]
    parts = {part for pair in merges for part in pair}
    whole = [pair for pair in merges if "".join(pair) not in parts]
    renamed = {"".join(whole[i]) for i in random.permutation(len(whole))[:foreign]}
    tokenizer["model"]["vocab"] = {f"<{t}>" if t in renamed else t: int(new[i]) for t, i in vocab.items()}
    tokenizer["model"]["merges"] = [pair for pair in merges if "".join(pair) not in renamed]
    for token in tokenizer["added_tokens"]:
        token["id"] = int(new[token["id"]])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config |= {key: int(new[config[key]]) for key in ("bos_token_id", "eos_token_id") if key in config}
        (folder / name).write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = tensors[name].clone()
            rows[torch.from_numpy(new)] = tensors[name][:VOCAB_SIZE]
            tensors[name] = rows
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_adapter(
    folder: Path, base: Path, seed: int, rank: int = 4, *, tables: str = "", experts: bool = False
) -> Path:
    """Write a LoRA folder as PEFT does, with random updates of all linear layers, those of `experts` too if wanted.

    `tables` says how the embedding and the head change: not at all, by a ``"low-rank"`` update, or ``"saved"`` whole.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {}
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - no mapping
    tensors = {}
    for name, shape in sorted(shapes.items()):
        of_mixture = ".experts." in name or name.endswith(".gate.weight")
        if experts if of_mixture else name.endswith("_proj.weight"):
            layer = "base_model.model." + name.removesuffix(".weight")
            for part, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                update = torch.randn(size, generator=generator) * 0.5 * size[1] ** -0.5
                tensors[f"{layer}.lora_{part}.weight"] = update
    config: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    embedding, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    vocab, hidden = shapes["model.embed_tokens.weight"]
    changes = {
        "": {},
        "low-rank": {
            f"{embedding}.lora_embedding_A": (rank, vocab),
            f"{embedding}.lora_embedding_B": (hidden, rank),
            f"{head}.lora_A.weight": (rank, hidden),
            f"{head}.lora_B.weight": (vocab, rank),
        },
        "saved": {f"{embedding}.weight": (vocab, hidden), f"{head}.weight": (vocab, hidden)},
    }[tables]
    for name, shape in changes.items():
        tensors[name] = torch.randn(shape, generator=generator) * 0.2
    if tables == "saved":
        config["modules_to_save"] = ["embed_tokens", "lm_head"]
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
