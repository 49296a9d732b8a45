"""Reads updates of experts and routers under the names that transformers has for them since version 5.

There the experts of a layer are two parameters ``[experts, out, in]`` of one module, which PEFT adapts as
``target_parameters``. It saves the updates of all experts in one pair of matrices: that of one parameter under the
name of the module, that of the other under the name of its ``base_layer``. Their shapes tell which is whose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlf.adapters.config import CONFIG, AdapterConfig
from dlf.adapters.updates import LowRank
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.tensor_file import TensorFile
from dlf.errors import CheckpointError

__all__ = ["ExpertStacks", "router_modules"]

KEY = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(base_layer\.)?(lora_[AB])\.weight")
PARAMETERS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}  # and the slots of their rows
FLOATS = ("F32", "F16", "BF16")


def router_modules(config: ModelConfig) -> dict[str, str]:
    """Return the checkpoint's module of each router, by its name in transformers."""
    return {
        f"model.layers.{slot.removesuffix('.router')}.mlp.gate": part.module
        for slot, part in config.parts.items()
        if slot.endswith(".router")
    }


@dataclass(frozen=True)
class ExpertStacks:
    """The tensors of an adapter's file that belong to all experts of a layer.

    Parameters
    ----------
    file
        The open file.
    config
        Configuration of the base.
    keys
        Its tensors by layer, whether they are those of a ``base_layer``, and factor.
    """

    file: TensorFile
    config: ModelConfig
    keys: Mapping[tuple[int, bool], Mapping[str, str]]

    @classmethod
    def of(cls, file: TensorFile, config: ModelConfig, prefix: str) -> ExpertStacks:
        """Find the tensors, whose names begin with `prefix`, of the layers that have experts."""
        keys: dict[tuple[int, bool], dict[str, str]] = {}
        for key in file.layout:
            match = KEY.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
            if match and f"{int(match[1])}.router" in config.parts:
                keys.setdefault((int(match[1]), match[2] is not None), {})[match[3]] = key
        return cls(file, config, keys)

    def read(self, adapter: AdapterConfig) -> dict[str, LowRank]:
        """Read the updates by the modules of single experts.

        Raises
        ------
        CheckpointError
            If a tensor is missing or misshapen, or nothing changes a parameter that the configuration names.
        """
        found: dict[str, LowRank] = {}
        names = set()
        for (layer, _), parts in self.keys.items():
            for part in ("lora_A", "lora_B"):
                if part not in parts:
                    raise CheckpointError(
                        f"{self.file.path} has no {part} of the experts of layer {layer}; fetch the adapter again"
                    )
            parameter = self._parameter(parts)
            name = f"model.layers.{layer}.mlp.experts.{parameter}"
            if name in names:
                raise CheckpointError(f"{self.file.path} changes {name} twice, which dlf does not add up")
            names.add(name)
            found |= self._updates(layer, parameter, name, parts, adapter)
        layers = [slot.removesuffix(".router") for slot in self.config.parts if slot.endswith(".router")]
        every = [f"model.layers.{layer}.mlp.experts.{parameter}" for layer in layers for parameter in PARAMETERS]
        for name in adapter.parameters(every):
            if name not in names:
                raise CheckpointError(
                    f"{self.file.path} has nothing for {name}, which target_parameters names; fetch the adapter again"
                )
        return found

    def _shape(self, parameter: str) -> tuple[int, int]:
        """Outputs and inputs of one expert."""
        spec = self.config.spec
        inner = spec.experts.size
        return (2 * inner, spec.hidden_size) if parameter == "gate_up_proj" else (spec.hidden_size, inner)

    def _parameter(self, parts: Mapping[str, str]) -> str:
        a, b = (self.file.layout[parts[part]].shape for part in ("lora_A", "lora_B"))
        for parameter in PARAMETERS:
            if (*b[:1], *a[1:]) == self._shape(parameter):
                return parameter
        raise CheckpointError(
            f"{self.file.path}: tensors '{parts['lora_A']}' {list(a)} and '{parts['lora_B']}' {list(b)} fit no "
            "parameter of this base's experts; give the base that the adapter was trained on"
        )

    def _updates(
        self, layer: int, parameter: str, name: str, parts: Mapping[str, str], adapter: AdapterConfig
    ) -> dict[str, LowRank]:
        count = self.config.spec.experts.count
        out, columns = self._shape(parameter)
        ranks = adapter.ranks([name])
        rank, scale = ranks[name], adapter.scales(ranks)[name]
        tensors = {}
        for part, wanted in (("lora_A", (count * rank, columns)), ("lora_B", (out, count * rank))):
            key = parts[part]
            one = self.file.layout[key]
            if one.shape != wanted or one.dtype not in FLOATS:
                raise CheckpointError(
                    f"{self.file.path}: tensor '{key}' is {one.dtype} {list(one.shape)}; for this base and {CONFIG} it "
                    f"must be floating-point {list(wanted)}"
                )
            tensors[part] = self.file.read(key, wanted)
        a, b = tensors["lora_A"].view(count, rank, columns), tensors["lora_B"].view(out, rank, count)
        slots = PARAMETERS[parameter]
        rows = b.chunk(len(slots))
        return {
            self.config.parts[f"{layer}.experts.{expert}.{slot}"].module: LowRank(
                a[expert], rows[i][:, :, expert], scale
            )
            for expert in range(count)
            for i, slot in enumerate(slots)
        }
