"""The memory that an engine takes, by part, planned before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File

from dlf import _C
from dlf.arguments import machine_bytes
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.quantized import formats_of, weights_bytes
from dlf.devices import Placement
from dlf.lanes import Lanes
from dlf.options import EngineOptions
from dlf.support.sizes import binary

__all__ = ["Memory", "MemoryPart", "bytes_by_device", "check_memory", "model_bytes", "plan_memory"]

logger = logging.getLogger("dlf")
# Parts of which nothing need be allocated yet.
BOUNDS = ("workspace",)


@dataclass(frozen=True)
class MemoryPart:
    """A part of the memory that an engine takes on one device.

    Attributes
    ----------
    device : str
        ``"cpu"``, ``"cuda:0"``, ...
    model : str or None
        The model whose part it is; None if all models share it.
    name : str
        ``"weights"``, ``"adapters"``, ``"KV cache"`` or ``"prefix cache"``, on CUDA also ``"activations"``,
        ``"logits"``, ``"workspace"`` and ``"fusion and sampling"``.
    bytes : int
        Its size; of the prefix cache and the workspace, at most.
    """

    device: str
    model: str | None
    name: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """The memory that an engine takes, and the memory that was free before.

    A CUDA engine is refused if the sum of a device's parts is more than is free there. On the CPU only KV caches larger
    than the machine are refused: weights may stay in their file, and the prefix cache is allocated as it fills. The KV
    cache of the CPU has room for scoring beside `max_batch` requests; on CUDA, scoring shares theirs. With
    `kv_cache_bytes`, the prefix cache is a part of the KV cache.

    Attributes
    ----------
    parts : tuple of MemoryPart
        They add up to `total`.
    free : mapping
        Bytes of each device that were free when the engine was planned; for the CPU, all bytes of the machine.
    cards : mapping
        Name of the card of each CUDA device that the engine is on.
    """

    parts: tuple[MemoryPart, ...]
    free: Mapping[str, int]
    cards: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    def on(self, device: str) -> int:
        """Bytes of the parts on one device."""
        return sum(part.bytes for part in self.parts if part.device == device)

    def by_part(self, device: str | None = None) -> dict[str, int]:
        """Bytes of each kind of part, of all models together, on one device or on all."""
        found: dict[str, int] = {}
        for part in self.parts:
            if device in (None, part.device):
                found[part.name] = found.get(part.name, 0) + part.bytes
        return found

    def __str__(self) -> str:
        """One line for each device."""
        lines = []
        for device in dict.fromkeys(part.device for part in self.parts):
            name = f" ({self.cards[device]})" if device in self.cards else ""
            free = f" of {binary(self.free[device])}" if device in self.free else ""
            lines.append(f"{device}{name}: {binary(self.on(device))}{free}: {self.listed(device)}")
        return "\n".join(lines)

    def listed(self, device: str) -> str:
        """The parts on a device as a list, with the weights of each model."""
        weights = [part for part in self.parts if part.device == device and part.name == "weights"]
        each = ", ".join(f"{part.model} {binary(part.bytes)}" for part in weights)
        listed = {name: f"{name} {binary(count)}" for name, count in self.by_part(device).items()}
        if len(weights) > 1:
            listed["weights"] += f" ({each})"
        return ", ".join(listed.values())


def model_bytes(
    lanes: Lanes, configs: Sequence[ModelConfig], plan: _C.FusionPlan, options: _C.EngineOptions, cuda: bool
) -> list[tuple[int, int]]:
    """Bytes of each model's weights and of its KV cache, without what it has for the prefix cache alone."""
    blocks = []
    for config, (_, precision) in zip(configs, lanes.keys, strict=True):
        width = 4 if precision.float_dtype(config.dtype, cuda) == "float32" else 2
        blocks.append(config.kv_bytes_per_token(width) * _C.CACHE_BLOCK)
    sizes = _C.cache_sizes(plan, blocks, options)
    return [
        (weights_bytes(config, precision, cuda), block * size.for_requests)
        for config, (_, precision), block, size in zip(configs, lanes.keys, blocks, sizes, strict=True)
    ]


def bytes_by_device(
    configs: Sequence[ModelConfig], sizes: Sequence[tuple[int, int]], placement: Placement
) -> dict[str, tuple[int, int]]:
    """Bytes of weights and of KV cache on each CUDA device, from those of each model, the large one first.

    Raises
    ------
    ValueError
        If the large model cannot be split over its devices; the message names the number that does not fit.
    """
    found: dict[str, tuple[int, int]] = {}
    devices = [placement.large, *((device,) for device in placement.devices(len(configs))[1:])]
    for config, size, places in zip(configs, sizes, devices, strict=True):
        for device, part in zip(places, _C.shard_sizes(config.spec, len(places), *size), strict=True):
            weights, cache = found.get(f"cuda:{device}", (0, 0))
            found[f"cuda:{device}"] = weights + part[0], cache + part[1]
    return found


def plan_memory(
    options: EngineOptions,
    lanes: Lanes,
    configs: Sequence[ModelConfig],
    adapters: Sequence[int],
    max_context: int,
    plan: _C.FusionPlan,
    given_up: Memory | None = None,
) -> Memory:
    """Plan the memory for the models of `lanes`.

    Parameters
    ----------
    configs, adapters
        Config of each model, and bytes of its adapters.
    plan
        Their plan for the step loop.
    given_up
        Memory of the engine that this one replaces, which is freed first.
    """
    names = _names(lanes)
    cuda = options.placement.cuda
    native = options.native(max_context, len(configs))
    sizes = model_bytes(lanes, configs, plan, native, cuda)
    if not cuda:
        parts = []
        for model, (weights, cache), adapter in zip(names, sizes, adapters, strict=True):
            own = {"weights": weights, "adapters": adapter, "KV cache": cache}
            parts += [MemoryPart("cpu", model, name, size) for name, size in own.items() if size]
        if options.prefix_cache_bytes and not options.kv_cache_bytes:
            parts.append(MemoryPart("cpu", None, "prefix cache", options.prefix_cache_bytes))
        have = machine_bytes()
        return Memory(tuple(parts), {} if have is None else {"cpu": have})
    models = [
        _C.ModelSize(
            config.spec,
            precision.float_dtype(config.dtype, cuda),
            bool(formats_of(config, precision)),
            weights,
            adapter,
        )
        for config, (_, precision), (weights, _), adapter in zip(configs, lanes.keys, sizes, adapters, strict=True)
    ]
    found = _C.cuda_memory(models, plan, native)
    used = {one.device for one in found}
    devices = {f"cuda:{device.index}": device for device in _C.cuda_devices() if device.index in used}
    return Memory(
        tuple(
            MemoryPart(f"cuda:{one.device}", names[one.model] if one.model >= 0 else None, one.name, one.bytes)
            for one in found
        ),
        {name: device.free_bytes + _taken(given_up, name) for name, device in devices.items()},
        {name: device.name for name, device in devices.items()},
    )


def check_memory(memory: Memory, max_batch: int, max_context: int) -> None:
    """Log the memory that an engine will take, and refuse an engine that does not fit.

    Raises
    ------
    MemoryError
        If it does not fit; the message says by part how many bytes are needed, and how many are free.
    """
    logger.info("%s", memory)
    for device in dict.fromkeys(part.device for part in memory.parts):
        parts, free = memory.by_part(device), memory.free.get(device)
        if free is None:
            continue
        if device == "cpu":
            if parts["KV cache"] > free:
                raise MemoryError(
                    f"the KV cache for max_batch={max_batch} and max_context={max_context} takes "
                    f"{parts['KV cache'] / 2**30:.1f} GiB beside {parts['weights'] / 2**30:.1f} GiB of weights; "
                    f"this machine has {free / 2**30:.1f} GiB; set kv_cache_bytes, or lower max_batch or "
                    "max_context"
                )
        elif memory.on(device) > free:
            raise MemoryError(
                f"with max_batch={max_batch} and max_context={max_context} the engine takes "
                f"{memory.on(device) / 2**30:.1f} GiB of {device} ({memory.cards[device]}), which has "
                f"{free / 2**30:.1f} GiB free: {memory.listed(device)}; set kv_cache_bytes, or lower max_batch, "
                "max_context or prefix_cache_bytes, load smaller weights (weights='int8' or 'int4'), give the experts "
                "a device of their own, or split the large model over several (device_map)"
            )


def _taken(memory: Memory | None, device: str) -> int:
    """Bytes that are surely allocated on a device."""
    parts = memory.by_part(device) if memory else {}
    return sum(count for name, count in parts.items() if name not in BOUNDS)


def _names(lanes: Lanes) -> list[str]:
    """Name of each model in messages: its folder's name if no other model has it, else its path."""
    full = [str(name) for name, _ in lanes.models]
    short = [File(name).name for name in full]
    return [one if short.count(one) == 1 else whole for one, whole in zip(short, full, strict=True)]
