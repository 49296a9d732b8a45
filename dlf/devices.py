"""The devices that the models of an engine run on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dlf import _C
from dlf.errors import Error, ErrorKind, OptionError, OptionTypeError

__all__ = ["DeviceError", "DeviceMap", "Placement"]

# Devices by name: one of experts and their bases; of the large model one, or several over which it is split.
DeviceMap: TypeAlias = Mapping[str, str | Sequence[str]]
CUDA = re.compile(r"cuda(?::(\d+))?")


class DeviceError(Error, RuntimeError):
    """A device is missing, or this build cannot use it."""

    kind = ErrorKind.DEVICE


@dataclass(frozen=True)
class Placement:
    """The CUDA devices of the large model and of the small ones; none is the CPU.

    Parameters
    ----------
    large : tuple of int
        Indices of the CUDA devices of the large model, which is split over them if they are several. The first one has
        its logits, on which the sequences are fused and sampled.
    experts : int, optional
        Index of the CUDA device of experts and their bases.
    """

    large: tuple[int, ...] = ()
    experts: int | None = None

    @property
    def cuda(self) -> bool:
        """Whether the models run on CUDA devices."""
        return bool(self.large)

    @property
    def split(self) -> list[int]:
        """Further devices of a large model that is split."""
        return list(self.large[1:])

    def devices(self, models: int) -> list[int]:
        """Device of each model, the large one first; empty on the CPU."""
        if not self.large or self.experts is None:
            return []
        return [self.large[0]] + [self.experts] * (models - 1)

    @classmethod
    def of(cls, device: str, device_map: DeviceMap | None = None) -> Placement:
        """Return the placement that `device` and `device_map` ask for.

        Raises
        ------
        ValueError
            If a name is unknown, a device is named twice for one model, or CPU and CUDA are mixed.
        DeviceError
            If the build has no CUDA, or the machine no such device.
        """
        found = cls.named(device, device_map)
        for index in {*found.large, found.experts} - {None}:
            _check_present(index)
        return found

    @classmethod
    def named(cls, device: str, device_map: DeviceMap | None = None) -> Placement:
        """Return the placement asked for, without checking that this machine has the devices.

        Raises
        ------
        ValueError
            If a name is unknown, a device is named twice for one model, or CPU and CUDA are mixed.
        """
        unknown = sorted(set(device_map or ()) - {"large", "experts"})
        if unknown:
            raise OptionError(f"device_map has {unknown[0]!r}; its keys are 'large' and 'experts'", "device_map")
        wanted = {key: _names(key, value) for key, value in (device_map or {}).items()}
        names = {"large": [device], "experts": [device]} | wanted
        if wanted and device == "cpu":  # the default: a key that the map lacks takes the map's device
            others = next(iter(wanted.values()))
            names = {"large": wanted.get("large", others), "experts": wanted.get("experts", others[:1])}
        large, [experts] = ([_index(name) for name in names[key]] for key in ("large", "experts"))
        if len({index is None for index in [*large, experts]}) > 1:
            raise OptionError(
                f"the large model is on {' and '.join(map(repr, names['large']))} and the experts are on "
                f"{names['experts'][0]!r}; put all of them on the CPU or all on CUDA devices",
                "device_map",
            )
        there = [index for index in large if index is not None]
        if len(set(there)) < len(there) or len(large) > max(len(there), 1):
            wanted_twice = ", ".join(names["large"])
            raise OptionError(f"the large model is split over {wanted_twice}: name each once", "device_map")
        return cls(tuple(there), experts)

    def check_dtype(self, dtype: str | None) -> None:
        """Refuse a float type that is not supported on these devices."""
        if dtype == "float16" and not self.cuda:
            raise OptionError("float16 is for CUDA devices; on the CPU use bfloat16 or float32", "dtype")

    def check_batch(self, max_batch: int) -> None:
        """Refuse more sequences at a time than a step on a CUDA device takes."""
        if self.cuda and max_batch > _C.MAX_CUDA_BATCH:
            raise OptionError(f"max_batch is {max_batch}; on CUDA it can be at most {_C.MAX_CUDA_BATCH}", "max_batch")


def _names(key: str, value: str | Sequence[str]) -> list[str]:
    names: list[str] = list(value) if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]
    if not 1 <= len(names) <= _C.MAX_SHARDS or (key == "experts" and len(names) > 1):
        raise OptionError(
            f"device_map names {len(names)} devices for {key!r}; the large model may have up to {_C.MAX_SHARDS}, and "
            "experts share one",
            "device_map",
        )
    return names


def _index(device: str) -> int | None:
    if not isinstance(device, str):
        raise OptionTypeError(f"a device is a string such as 'cpu' or 'cuda:0', not {device!r}", "device")
    if device == "cpu":
        return None
    match = CUDA.fullmatch(device)
    if not match:
        raise OptionError(f"device is {device!r}; it takes 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ...", "device")
    return int(match[1] or 0)


def _check_present(index: int | None) -> None:
    if not _C.cuda_version:
        raise DeviceError(
            "this build of dlf has no CUDA: install a torch with CUDA and nvcc, and build dlf there "
            "(pip install --no-build-isolation .)"
        )
    present = _C.cuda_devices()
    if not present:
        raise DeviceError("no CUDA device is there; see whether nvidia-smi finds one, or use device='cpu'")
    if index not in {device.index for device in present}:
        raise DeviceError(f"there is no cuda:{index}; this machine has cuda:0 to cuda:{len(present) - 1}")
