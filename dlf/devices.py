"""The devices that the models of an engine run on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlf import _C
from dlf.errors import Error, ErrorKind, OptionError, OptionTypeError

__all__ = ["DeviceError", "Placement"]

CUDA = re.compile(r"cuda(?::(\d+))?")


class DeviceError(Error, RuntimeError):
    """A device is missing, or this build cannot use it."""

    kind = ErrorKind.DEVICE


@dataclass(frozen=True)
class Placement:
    """The CUDA devices of the large model and of the small ones; None is the CPU.

    Parameters
    ----------
    large, experts : int, optional
        Indices of CUDA devices; experts and their bases share one.
    """

    large: int | None = None
    experts: int | None = None

    @property
    def cuda(self) -> bool:
        """Whether the models run on CUDA devices."""
        return self.large is not None

    def devices(self, models: int) -> list[int]:
        """Device of each model, the large one first; empty on the CPU."""
        if self.large is None or self.experts is None:
            return []
        return [self.large] + [self.experts] * (models - 1)

    @classmethod
    def of(cls, device: str, device_map: Mapping[str, str] | None = None) -> Placement:
        """Return the placement that `device` and `device_map` ask for.

        Raises
        ------
        ValueError
            If a name is unknown, or the two mix CPU and CUDA.
        DeviceError
            If the build has no CUDA, or the machine no such device.
        """
        found = cls.named(device, device_map)
        for index in {found.large, found.experts} - {None}:
            _check_present(index)
        return found

    @classmethod
    def named(cls, device: str, device_map: Mapping[str, str] | None = None) -> Placement:
        """Return the placement asked for, without checking that this machine has the devices.

        Raises
        ------
        ValueError
            If a name is unknown, or the two mix CPU and CUDA.
        """
        unknown = sorted(set(device_map or ()) - {"large", "experts"})
        if unknown:
            raise OptionError(f"device_map has {unknown[0]!r}; its keys are 'large' and 'experts'", "device_map")
        names = {"large": device, "experts": device} | dict(device_map or {})
        if device_map and device == "cpu":  # the default: a key that the map lacks takes the map's device
            names = {key: device_map.get(key, next(iter(device_map.values()))) for key in names}
        large, experts = (_index(names[key]) for key in ("large", "experts"))
        if (large is None) != (experts is None):
            raise OptionError(
                f"the large model is on {names['large']!r} and the experts are on {names['experts']!r}; put all of "
                "them on the CPU or all on CUDA devices",
                "device_map",
            )
        return cls(large, experts)

    def check_dtype(self, dtype: str | None) -> None:
        """Refuse a float type that is not supported on these devices."""
        if dtype == "float16" and not self.cuda:
            raise OptionError("float16 is for CUDA devices; on the CPU use bfloat16 or float32", "dtype")

    def check_batch(self, max_batch: int) -> None:
        """Refuse more sequences at a time than a step on a CUDA device takes."""
        if self.cuda and max_batch > _C.MAX_CUDA_BATCH:
            raise OptionError(f"max_batch is {max_batch}; on CUDA it can be at most {_C.MAX_CUDA_BATCH}", "max_batch")


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
