"""Reads ``adapter_config.json`` as PEFT writes it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlf.errors import CheckpointError
from dlf.support.fields import MAX_VOCAB_SIZE, Fields, read_json
from dlf.support.module_patterns import first_matches, full_match

__all__ = ["CONFIG", "NOT_PLAIN", "AdapterConfig"]

CONFIG = "adapter_config.json"
MAX_RANK = 1024
MAX_PATTERNS = 4096
# Keys that say how an adapter was trained, not what it computes; fan_in_fan_out follows from the base, as in PEFT.
TRAINING = set(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core "
    "fan_in_fan_out peft_version qalora_group_size revision runtime_config target_modules target_parameters task_type "
    "velora_config".split()
)
COMPUTED = set(
    "alpha_pattern bias init_lora_weights lora_alpha modules_to_save peft_type r rank_pattern trainable_token_indices "
    "use_dora use_rslora".split()
)
# Keys that make an adapter something other than plain LoRA.
OTHERS = set(
    "alora_invocation_tokens arrow_config kasa_config layer_replication lora_bias monteclora_config "
    "use_bdlora use_qalora".split()
)
NEUTRAL_STARTS = ("gaussian", "eva", "mica", "orthogonal")  # these leave the base unchanged
NOT_PLAIN = (
    "dlf adds plain LoRA to the layers of attention, MLP and experts, the embedding and the head; train such an adapter"
)
MAX_TOKENS = 1 << 20  # of trainable_token_indices
LAYER = re.compile(r"model\.layers\.(\d+)\.")


class AdapterConfig:
    """The computation of an adapter.

    Parameters
    ----------
    folder
        The adapter's folder.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If the file is missing or damaged, or describes something other than LoRA or DoRA. Unknown keys are a warning.
    """

    def __init__(self, folder: Path) -> None:
        self._where = str(folder / CONFIG)
        values = {key: value for key, value in read_json(folder / CONFIG).items() if value is not None}
        _refuse_others(values, self._where)
        defaults = {"lora_alpha": 8, "r": 8, "use_rslora": False, "use_dora": False}
        fields = Fields(values, defaults, self._where)
        self._rank = fields.integer("r", 1, MAX_RANK)
        self._alpha = fields.number("lora_alpha", 0, 1e6)
        self._rslora = fields.flag("use_rslora")
        self.dora = fields.flag("use_dora")
        self._ranks = _patterns(fields, "rank_pattern", 1)
        self._alphas = _patterns(fields, "alpha_pattern", 0)
        self._values = values

    def ranks(self, layers: Iterable[str]) -> dict[str, int]:
        """Rank of each layer.

        Raises
        ------
        CheckpointError
            If a pattern cannot be matched.
        """
        found = first_matches(self._ranks, layers, self._rank, f"{self._where}: 'rank_pattern'")
        return {layer: int(rank) for layer, rank in found.items()}

    def scales(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Factor on the update of each layer, from its rank; errors are those of `ranks`."""
        alphas = first_matches(self._alphas, ranks, self._alpha, f"{self._where}: 'alpha_pattern'")
        return {layer: alphas[layer] / (math.sqrt(rank) if self._rslora else rank) for layer, rank in ranks.items()}

    def saved(self, modules: Iterable[str]) -> set[str]:
        """Modules that ``modules_to_save`` names; raises CheckpointError if it has others than these."""
        said, found = self._values.get("modules_to_save") or [], set()
        for name in said if isinstance(said, list) else [said]:
            named = [module for module in modules if name in _ends(module)]
            if not named:
                raise CheckpointError(f"{self._where}: 'modules_to_save' has {name!r:.60}; {NOT_PLAIN}")
            found.update(named)
        return found

    def trained_tokens(self, module: str, is_embedding: bool) -> list[int]:
        """Tokens whose rows of the embedding or the head were trained.

        Raises
        ------
        CheckpointError
            If they are no distinct token ids.
        """
        said = self._values.get("trainable_token_indices")
        if isinstance(said, dict):
            said = next((tokens for name, tokens in said.items() if name in _ends(module)), [])
        elif not is_embedding:  # a list is for the embedding
            said = []
        tokens = [] if said is None else said
        if (
            not isinstance(tokens, list)
            or len(tokens) > MAX_TOKENS
            or any(type(token) is not int or not 0 <= token < MAX_VOCAB_SIZE for token in tokens)
            or len(set(tokens)) != len(tokens)
        ):
            raise CheckpointError(
                f"{self._where}: 'trainable_token_indices' must be distinct token ids, or such a list for each module"
            )
        return tokens

    def targets(self, layers: Iterable[str]) -> list[str]:
        """Layers that the adapter should have an update for, as far as the configuration tells."""
        said = self._values.get("target_modules")
        try:
            chosen = list(layers) if said == "all-linear" else self._named("target_modules", layers)
            excluded = set(self._named("exclude_modules", chosen))
        except CheckpointError:  # without the match a check is left out; no result changes
            return []
        numbers, pattern = (self._values.get(key) for key in ("layers_to_transform", "layers_pattern"))
        if isinstance(said, list) and numbers not in (None, []):
            if pattern not in (None, "", [], "layers", ["layers"]):
                return []
            numbered = {str(one) for one in (numbers if isinstance(numbers, list) else [numbers])}
            chosen = [layer for layer in chosen if (match := LAYER.match(layer)) and match[1] in numbered]
        return [layer for layer in chosen if layer not in excluded]

    def parameters(self, names: Iterable[str]) -> list[str]:
        """Parameters that ``target_parameters`` names."""
        return self._named("target_parameters", names)

    def _named(self, key: str, layers: Iterable[str]) -> list[str]:
        """Layers that a list of name endings, or a regular expression, selects."""
        said = self._values.get(key)
        if isinstance(said, str):
            matches = full_match(said, self._where)
            return [layer for layer in layers if matches(layer)]
        ends = {one for one in said if isinstance(one, str)} if isinstance(said, list) else set()
        return [layer for layer in layers if not ends.isdisjoint(_ends(layer))]


def _ends(layer: str) -> list[str]:
    """Name of a layer, and its rest after each dot."""
    parts = layer.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _refuse_others(values: Mapping[str, Any], where: str) -> None:
    """Refuse settings that make the adapter something other than plain LoRA or DoRA."""
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {values.get('peft_type')!r:.40}, not 'LORA'; {NOT_PLAIN}")
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias is {values['bias']!r:.40}: the adapter has changed biases; {NOT_PLAIN}")
    start = values.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in NEUTRAL_STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights is {start!r:.40}, which changes the base itself; save the adapter as plain "
            "LoRA (PEFT: save_pretrained(folder, path_initial_model_for_weight_conversion=...))"
        )
    said = {key: value for key, value in values.items() if value not in (False, 0, [], {})}
    for key in sorted(said.keys() & OTHERS):
        raise CheckpointError(f"{where}: '{key}' is {values[key]!r:.60}; {NOT_PLAIN}")
    unknown = sorted(said.keys() - TRAINING - COMPUTED - OTHERS)
    if unknown:
        names = ", ".join(f"{key!r:.60}" for key in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        warnings.warn(
            f"{where} has {names}, which dlf does not know and ignores; check that the adapter is still LoRA",
            RuntimeWarning,
            stacklevel=4,
        )


def _patterns(fields: Fields, key: str, low: int) -> dict[str, float]:
    table = fields.table(key)
    if len(table) > MAX_PATTERNS:
        raise fields.error(key, f"an object with at most {MAX_PATTERNS} entries")
    entries = Fields(table, {}, f"{fields.where}: '{key}'")
    if low:
        return {pattern: entries.integer(pattern, low, MAX_RANK) for pattern in table}
    return {pattern: entries.number(pattern, low, 1e6) for pattern in table}
