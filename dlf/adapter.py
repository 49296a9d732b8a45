"""Reads LoRA adapters as PEFT saves them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dlf import _C
from dlf.checkpoint import check_finite, expected_tensors
from dlf.config import ModelConfig
from dlf.errors import CheckpointError
from dlf.fields import Fields, read_json
from dlf.hub import resolve_adapter

__all__ = ["AdapterFile", "LowRank", "load_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1024
MAX_PATTERNS = 4096
PREFIX = "base_model.model."
TENSOR = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
PATTERN = re.compile(
    r"\^?(?:[\w-]|\\?\.)+\$?"
)  # names of modules; what repeats or branches could take forever to match

# Keys that say how an adapter was trained, not what it computes.
TRAINING = set(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core "
    "peft_version qalora_group_size revision runtime_config target_modules task_type".split()
)
COMPUTED = set("alpha_pattern bias init_lora_weights lora_alpha peft_type r rank_pattern use_dora use_rslora".split())
NEUTRAL_STARTS = ("gaussian", "eva", "orthogonal")  # which leave the base what it is
NOT_PLAIN = "dlf adds plain LoRA to the linear layers of attention and MLP; train such an adapter"


@dataclass(frozen=True)
class LowRank:
    """The update of one linear layer: scale * B A, and DoRA's magnitudes."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scale: float
    magnitude: torch.Tensor | None = None  # [out]


class AdapterFile:
    """An adapter's configuration, and its tensors for a base, none of which is read yet.

    Parameters
    ----------
    name
        Folder or hub id.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If it is no adapter, or computes something else than LoRA.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name)
        self.folder = resolve_adapter(name)
        self.path = self.folder / WEIGHTS
        if not (self.folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {CONFIG}: give the folder of an adapter, as PEFT's save_pretrained writes it"
            )
        if not self.path.is_file():
            if (self.folder / "adapter_model.bin").is_file():
                raise CheckpointError(
                    f"{self.folder} has only a pickled adapter, which dlf does not open because it can run code; save "
                    "it as safetensors (PEFT: model.save_pretrained(folder))"
                )
            raise FileNotFoundError(f"{self.path} is missing; fetch the adapter again")
        where = str(self.folder / CONFIG)
        values = read_json(self.folder / CONFIG)
        _refuse_others(values, where)
        defaults = {"lora_alpha": 8, "r": 8, "use_rslora": False, "use_dora": False}
        fields = Fields({key: value for key, value in values.items() if value is not None}, defaults, where)
        self._rank = fields.integer("r", 1, MAX_RANK)
        self._alpha = fields.number("lora_alpha", 0, 1e6)
        self._rslora = fields.flag("use_rslora")
        self.dora = fields.flag("use_dora")
        self._ranks = _patterns(fields, "rank_pattern", 1)
        self._alphas = _patterns(fields, "alpha_pattern", 0)
        targets = values.get("target_modules")
        some = any(values.get(key) for key in ("layers_to_transform", "exclude_modules"))
        self._targets = targets if isinstance(targets, list) and not some else []

    def read(self, config: ModelConfig) -> dict[str, LowRank]:
        """Read the updates, under the names of the base's linear layers, as they are in the file.

        Raises
        ------
        CheckpointError
            If the file is damaged, or a tensor fits no layer of this base, is missing or misshapen.
        """
        shapes = expected_tensors(config)
        found: dict[str, dict[str, torch.Tensor]] = {}
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    layer, part = self._place(key, shapes)
                    wanted = self._shape(layer, part, shapes[layer + ".weight"])
                    header = file.get_slice(key)
                    if tuple(header.get_shape()) != wanted or header.get_dtype() not in ("F32", "F16", "BF16"):
                        raise CheckpointError(
                            f"{self.path}: tensor '{key}' is {header.get_dtype()} {header.get_shape()}; for this base "
                            f"and {CONFIG} it must be floating-point {list(wanted)}"
                        )
                    found.setdefault(layer, {})[part] = file.get_tensor(key)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} is damaged or cannot be read ({error}); fetch it again") from error
        if not found:
            raise CheckpointError(f"{self.path} has no tensors; fetch the adapter again")
        for layer in (name.removesuffix(".weight") for name in shapes if name.endswith("_proj.weight")):
            if layer not in found and any(f".{layer}".endswith(f".{target}") for target in self._targets):
                raise CheckpointError(
                    f"{self.path} has nothing for {layer}, which target_modules names; fetch the adapter again"
                )
        parts = ("lora_A", "lora_B", "lora_magnitude_vector")[: 3 if self.dora else 2]
        for layer, tensors in found.items():
            missing = [part for part in parts if part not in tensors]
            if missing:
                raise CheckpointError(f"{self.path} has no {missing[0]} of {layer}; fetch the adapter again")
        return {
            layer: LowRank(t["lora_A"], t["lora_B"], self._scale(layer), t.get("lora_magnitude_vector"))
            for layer, t in found.items()
        }

    def check_low_rank(self) -> None:
        """Raise CheckpointError if the adapter cannot run beside its base, but has to be folded into it."""
        if self.dora:
            raise CheckpointError(
                f"{self.folder} is a DoRA adapter, whose result is no low-rank update; fold it into the base with "
                "dlf.Lora(..., merge=True)"
            )

    def _place(self, key: str, shapes: Mapping[str, Any]) -> tuple[str, str]:
        match = TENSOR.fullmatch(key.removeprefix(PREFIX))
        if not match or not key.startswith(PREFIX) or match[1] + ".weight" not in shapes:
            raise CheckpointError(
                f"{self.path}: tensor '{key:.120}' belongs to no linear layer of attention or MLP of this base; "
                f"{NOT_PLAIN}, or give the base that it was trained on"
            )
        if match[2] == "lora_magnitude_vector" and not self.dora:
            raise CheckpointError(f"{self.path}: tensor '{key}' is DoRA's, but {CONFIG} does not say use_dora")
        return match[1], match[2]

    def _shape(self, layer: str, part: str, weight: tuple[int, ...]) -> tuple[int, ...]:
        rank = int(_matched(self._ranks, layer, self._rank))
        return {"lora_A": (rank, weight[1]), "lora_B": (weight[0], rank)}.get(part, (weight[0],))

    def _scale(self, layer: str) -> float:
        rank = _matched(self._ranks, layer, self._rank)
        alpha = _matched(self._alphas, layer, self._alpha)
        return alpha / (math.sqrt(rank) if self._rslora else rank)


def load_adapter(name: str | os.PathLike[str], config: ModelConfig, native: _C.ModelConfig, dtype: torch.dtype) -> Any:
    """Load an adapter for a base, in the type of the base's activations.

    Parameters
    ----------
    name
        Folder or hub id.
    config, native
        The base's.
    dtype
        Of the base's embedding.

    Returns
    -------
    _C.Adapter

    Raises
    ------
    FileNotFoundError, CheckpointError
        If it is no adapter for this base, or needs to be merged.
    """
    file = AdapterFile(name)
    file.check_low_rank()
    tensors: dict[str, torch.Tensor] = {}
    scales: dict[str, float] = {}
    for layer, update in file.read(config).items():
        for part, tensor in (("lora_A", update.a), ("lora_B", update.b.t())):
            tensors[f"{layer}.{part}"] = tensor.to(dtype, copy=True).contiguous()
            check_finite(tensors[f"{layer}.{part}"], f"{layer}.{part}", file.path)
        scales[layer] = update.scale
    return _C.Adapter(native, tensors, scales)


def _refuse_others(values: Mapping[str, Any], where: str) -> None:
    """Refuse whatever makes the adapter another than plain LoRA or DoRA."""
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {values.get('peft_type')!r:.40}, not 'LORA'; {NOT_PLAIN}")
    if values.get("bias") not in (None, "none"):
        raise CheckpointError(f"{where}: bias is {values['bias']!r:.40}: the adapter has changed biases; {NOT_PLAIN}")
    start = values.get("init_lora_weights", True)
    if start is not None and not isinstance(start, bool) and start not in NEUTRAL_STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights is {start!r:.40}, which changes the base itself; save the adapter as plain "
            "LoRA (PEFT: save_pretrained(folder, path_initial_model_for_weight_conversion=...))"
        )
    for key in sorted(values.keys() - TRAINING - COMPUTED):
        if values[key] not in (None, False, 0, [], {}):
            raise CheckpointError(f"{where}: '{key}' is {values[key]!r:.60}; {NOT_PLAIN}")


def _patterns(fields: Fields, key: str, low: int) -> dict[str, float]:
    table = fields.table(key)
    if len(table) > MAX_PATTERNS:
        raise fields.error(key, f"an object with at most {MAX_PATTERNS} entries")
    entries = Fields(table, {}, f"{fields.where}: '{key}'")
    for pattern in table:
        if not PATTERN.fullmatch(pattern):
            raise CheckpointError(f"{entries.where} has the key {pattern!r:.60}; give names of modules")
    if low:
        return {pattern: entries.integer(pattern, low, MAX_RANK) for pattern in table}
    return {pattern: entries.number(pattern, low, 1e6) for pattern in table}


def _matched(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """The value of the first pattern that a layer's name ends with, as PEFT looks for it."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise CheckpointError(f"{CONFIG} has the pattern {pattern!r:.60}: {error}; give names of modules") from None
    return default
