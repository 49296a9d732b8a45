"""Reads LoRA adapters as PEFT saves them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch

from dlf import _C
from dlf.adapters.config import CONFIG, NOT_PLAIN, AdapterConfig
from dlf.adapters.experts import ExpertStacks, router_modules
from dlf.adapters.tables import EMBEDDING, HEAD, Tables
from dlf.adapters.updates import LowRank, TableUpdate
from dlf.checkpoints.checkpoint import check_finite
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.hub import resolve_adapter
from dlf.checkpoints.tensor_file import TensorFile
from dlf.errors import CheckpointError, out_of_memory_is_memory_error

__all__ = ["AdapterFile", "load_adapter"]

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
DTYPES = ("F32", "F16", "BF16")


class AdapterFile:
    """An adapter's configuration, and its tensors, which `read` reads for a base.

    Parameters
    ----------
    name
        Folder or hub id.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If it is no adapter, or computes something other than LoRA.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name)
        self.folder = resolve_adapter(name)
        self.path = self.folder / WEIGHTS
        if not os.path.lexists(self.folder / CONFIG):
            raise FileNotFoundError(
                f"{self.folder} has no {CONFIG}: give the folder of an adapter, as PEFT's save_pretrained writes it"
            )
        if not os.path.isfile(self.path):
            if os.path.isfile(self.folder / "adapter_model.bin"):
                raise CheckpointError(
                    f"{self.folder} has only a pickled adapter, which dlf does not open because it can run code; save "
                    "it as safetensors (PEFT: model.save_pretrained(folder))"
                )
            raise FileNotFoundError(f"{self.path} is missing; fetch the adapter again")
        self._config = AdapterConfig(self.folder)
        self.dora = self._config.dora

    def read(self, config: ModelConfig) -> dict[str, LowRank]:
        """Read the updates by the names of the base's linear layers, in the file's own type.

        Raises
        ------
        CheckpointError
            If the file is damaged, or a tensor fits no layer of this base, is missing or misshapen.
        """
        linears, routers = config.linear_modules(), router_modules(config)
        mixed = config.expert_modules()
        found: dict[str, dict[str, torch.Tensor]] = {}
        with TensorFile(self.path, os.path.getsize(self.path)) as file:
            tables = Tables.of(file, config, PREFIX)
            stacks = ExpertStacks.of(file, config, PREFIX)
            others = {key for of in (tables, stacks) for parts in of.keys.values() for key in parts.values()}
            unread = {key for key in file.layout if config.family.is_other_part(key.removeprefix(PREFIX))}
            spelled = {one: name for name in (*linears, *routers) for one in config.family.all_spellings(name)}
            places = {
                key: self._place(key, spelled, linears, routers) for key in file.layout if key not in others | unread
            }
            # Patterns match the name of a router's weight if target_parameters has it.
            named = {name: name for name, _ in places.values()}
            named |= {name: f"{name}.weight" for name in routers if self._config.parameters([f"{name}.weight"])}
            ranks = self._config.ranks(named.values())
            scales = self._config.scales(ranks)
            scale_of = {}
            for key, (name, part) in places.items():
                layer, rank = routers.get(name, name), ranks[named[name]]
                scale_of[layer] = scales[named[name]]
                out, columns = linears[layer].shape
                wanted = {"lora_A": (rank, columns), "lora_B": (out, rank)}.get(part, (out,))
                one = file.layout[key]
                if one.shape != wanted or one.dtype not in DTYPES:
                    raise CheckpointError(
                        f"{self.path}: tensor '{key}' is {one.dtype} {list(one.shape)}; for this base "
                        f"and {CONFIG} it must be floating-point {list(wanted)}"
                    )
                if part in found.setdefault(layer, {}):
                    raise CheckpointError(f"{self.path} changes {layer} in two ways, which dlf does not add up")
                found[layer][part] = file.read(key, wanted)
            of_experts = stacks.read(self._config)
        if unread:
            warnings.warn(
                f"{self.path} also adapts parts that a text needs not, such as {min(unread)!r:.120}; these stay as "
                "they are",
                RuntimeWarning,
                stacklevel=3,
            )
        if not found and not others:
            raise CheckpointError(f"{self.path} has no tensors; fetch the adapter again")
        if twice := of_experts.keys() & found:
            raise CheckpointError(f"{self.path} changes {min(twice)} in two ways, which dlf does not add up")
        # In transformers 5 experts and routers are no linear layers, so target_modules does not name them.
        of_routers = set(routers.values())
        absent = {one for some in (of_routers, mixed - of_routers) if some.isdisjoint(found) for one in some}
        expected = [layer for layer in linears if layer not in absent]
        weights = {f"{name}.weight": module for name, module in routers.items()}
        for key, layers in (
            ("target_modules", self._config.targets(expected)),
            ("target_parameters", [weights[name] for name in self._config.parameters(weights)]),
        ):
            for layer in layers:
                if layer not in found:
                    raise CheckpointError(
                        f"{self.path} has nothing for {layer}, which {key} names; fetch the adapter again"
                    )
        parts = ("lora_A", "lora_B", "lora_magnitude_vector")[: 3 if self.dora else 2]
        for layer, tensors in found.items():
            missing = [part for part in parts if part not in tensors]
            if missing:
                raise CheckpointError(f"{self.path} has no {missing[0]} of {layer}; fetch the adapter again")
        return of_experts | {
            layer: LowRank(t["lora_A"], t["lora_B"], scale_of[layer], t.get("lora_magnitude_vector"))
            for layer, t in found.items()
        }

    def read_tables(self, config: ModelConfig) -> dict[str, TableUpdate]:
        """Read the updates of the embedding and the head, by slot; errors are those of `read`."""
        with TensorFile(self.path, os.path.getsize(self.path)) as file:
            return Tables.of(file, config, PREFIX).read(config, self._config)

    def check_low_rank(self) -> None:
        """Raise CheckpointError if the adapter cannot run beside its base and must be folded into it."""
        if self.dora:
            raise CheckpointError(
                f"{self.folder} is a DoRA adapter, whose result is no low-rank update; fold it into the base with "
                "dlf.Lora(..., merge=True)"
            )

    def _place(
        self, key: str, spelled: Mapping[str, str], linears: Collection[str], routers: Mapping[str, str]
    ) -> tuple[str, str]:
        """Return the name of a tensor's layer as the base spells it, and which tensor of it that is."""
        match = PART.fullmatch(key.removeprefix(PREFIX))
        layer = spelled.get(match[1]) if match else None
        if not match or not key.startswith(PREFIX) or layer is None or routers.get(layer, layer) not in linears:
            raise CheckpointError(
                f"{self.path}: tensor {key!r:.120} belongs to no linear layer of attention, MLP or experts of this "
                f"base; {NOT_PLAIN}, or give the base that it was trained on"
            )
        if match[2] == "lora_magnitude_vector" and not self.dora:
            raise CheckpointError(f"{self.path}: tensor '{key}' is DoRA's, but {CONFIG} does not say use_dora")
        return layer, match[2]


def load_adapter(name: str | os.PathLike[str], config: ModelConfig, dtype: torch.dtype) -> Any:
    """Load an adapter for a base, in the type of the base's activations.

    Parameters
    ----------
    name
        Folder or hub id.
    config
        Configuration of the base.
    dtype
        Type of the base's embedding.

    Returns
    -------
    _C.Adapter

    Raises
    ------
    FileNotFoundError, CheckpointError
        If it is no adapter for this base, or needs to be merged.
    MemoryError
        If memory runs out.
    """
    with out_of_memory_is_memory_error(f"loading {os.fspath(name)}"):
        file = AdapterFile(name)
        file.check_low_rank()
        tensors: dict[str, torch.Tensor] = {}
        scales: dict[str, float] = {}

        def add(slot: str, tensor: torch.Tensor, name: str) -> None:
            tensors[slot] = tensor.to(dtype, copy=True).contiguous()
            check_finite(tensors[slot], name, file.path)

        modules = config.linear_modules()
        for layer, update in file.read(config).items():
            for slot, rows in modules[layer].parts.items():
                add(f"{slot}.a", update.a, f"{layer}.lora_A")
                add(f"{slot}.b", rows.rows(update.b).t(), f"{layer}.lora_B")
                scales[slot] = update.scale
        for slot, table in file.read_tables(config).items():
            if table.rows is not None and table.tokens is not None and len(table.rows):
                add(f"{slot}.rows", table.rows, f"rows of the {slot}")
                if not torch.equal(table.tokens, torch.arange(config.vocab_size)):
                    tensors[f"{slot}.tokens"] = table.tokens.int()
            if table.low_rank is not None:
                a, b = table.low_rank.a, table.low_rank.b
                add(f"{slot}.a", b if slot == EMBEDDING else a, f"lora_A of the {slot}")
                add(f"{slot}.b", a if slot == EMBEDDING else b.t(), f"lora_B of the {slot}")
                scales[slot] = table.low_rank.scale
        whole = [tensors.get(f"{slot}.rows") for slot in (EMBEDDING, HEAD)]
        if whole[0] is not None and whole[1] is not None and torch.equal(whole[0], whole[1]):
            tensors[f"{HEAD}.rows"] = whole[0]  # PEFT saves a tied matrix twice
        return _C.Adapter(config.spec, tensors, scales)
