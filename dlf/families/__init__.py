"""The model families that dlf runs: one file each, which describes as data what its models compute.

A file here with a ``FAMILY`` in it is all that a family needs; this registry finds it. A ``WRAPPER`` is an architecture
of several parts, whose text part is of such a family.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from dlf.families.family import Family, Wrapper

__all__ = ["FAMILIES", "WRAPPERS", "Family", "Wrapper"]


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)]


def _families() -> dict[str, Family]:
    found = [module.FAMILY for module in _modules() if hasattr(module, "FAMILY")]
    return {family.architecture: family for family in found}


def _wrappers() -> dict[str, Wrapper]:
    found = [module.WRAPPER for module in _modules() if hasattr(module, "WRAPPER")]
    return {wrapper.architecture: wrapper for wrapper in found}


FAMILIES = _families()
WRAPPERS = _wrappers()
