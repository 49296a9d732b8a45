"""Loaded checkpoints and adapters, which several engines may share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from dlf import _C
from dlf.lanes import ModelKey
from dlf.model import Model

__all__ = ["SharedModels"]

Key: TypeAlias = "tuple[ModelKey, bool]"  # a checkpoint in a type, and whether it is for CUDA


class SharedModels:
    """Checkpoints that engines of one process load once.

    Engines that are made with the same `SharedModels` share the weights of each checkpoint and adapter that they use in
    the same type, in memory as on each CUDA device. The last engine that uses one frees it. Adapters are copied to the
    device for each engine.

    Examples
    --------
    >>> models = dlf.SharedModels()
    >>> one = dlf.Engine(large, [math], models=models)
    >>> two = dlf.Engine(large, [towns], models=models)  # reads towns alone
    """

    def __init__(self) -> None:
        self.loading = threading.RLock()  # held while an engine loads, so that two do not load the same model
        self._models: WeakValueDictionary[Key, Model] = WeakValueDictionary()
        self._adapters: WeakValueDictionary[tuple[Key, str], _C.Adapter] = WeakValueDictionary()

    def find(self, key: Key) -> Model | None:
        """Return a model if an engine has it."""
        return self._models.get(key)

    def add(self, key: Key, model: Model) -> Model:
        """Share a model."""
        self._models[key] = model
        return model

    def adapter(self, key: Key, name: str, load: Callable[[], Any]) -> Any:
        """Return the adapter of a model, which `load` reads if no engine has it."""
        found = self._adapters.get((key, name))
        if found is None:
            found = self._adapters[key, name] = load()
        return found
