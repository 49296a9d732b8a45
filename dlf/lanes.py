"""Which models an engine runs, and which contexts on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from dlf.arguments import Path
from dlf.experts import Expert
from dlf.precision import Precision

__all__ = ["Lanes"]


@dataclass
class Lanes:
    """The lanes of a sequence: the large model's is number 0, a base that several experts share has one.

    Parameters
    ----------
    dtype
        Of every model.
    models : list of (path, type of weights)
        Unique weights, in the order in which they are first needed: a base that five experts share is loaded and run
        once, unless they want it in other types.
    of_model : list of int
        For each lane the model that it runs on.
    pairs : list of (int, int)
        For each expert its lane and its base's.
    """

    dtype: str
    models: list[tuple[Path, str | None]] = field(default_factory=list)
    of_model: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    _keys: list[tuple[str, Precision]] = field(default_factory=list)

    @classmethod
    def of(cls, large: Path, experts: Sequence[Expert], dtype: str, weights: str | None) -> Lanes:
        """Return the lanes of a large model and its experts, each of which has a base."""
        lanes = cls(dtype)
        lanes.of_model.append(lanes._model(large, weights))
        for expert in experts:
            assert expert.base is not None
            lane, base = (lanes._lane(name, expert.weights) for name in (expert.model, expert.base))
            lanes.pairs.append((lane, base))
        return lanes

    def counts(self) -> list[int]:
        """How many lanes each model has."""
        return [self.of_model.count(model) for model in range(len(self.models))]

    def _model(self, name: Path, weights: str | None) -> int:
        folder = os.path.realpath(name) if os.path.isdir(name) else os.fspath(name)
        key = folder, Precision.of(self.dtype, weights)
        if key not in self._keys:
            self._keys.append(key)
            self.models.append((name, weights))
        return self._keys.index(key)

    def _lane(self, name: Path, weights: str | None) -> int:
        """The small models' lane on these weights; one on the large model's is not the large model's own."""
        model = self._model(name, weights)
        if model not in self.of_model[1:]:
            self.of_model.append(model)
            return len(self.of_model) - 1
        return self.of_model.index(model, 1)
