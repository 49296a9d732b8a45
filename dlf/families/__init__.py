"""The model families that dlf runs: one file each, which describes as data what its models compute.

A file here with a ``FAMILY`` in it is all that a family needs; this registry finds it.
"""

from __future__ import annotations

import importlib
import pkgutil

from dlf.families.family import Family

__all__ = ["FAMILIES", "Family"]


def _find() -> dict[str, Family]:
    modules = (importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.architecture: family for family in found}


FAMILIES = _find()
