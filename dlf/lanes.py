"""The models that an engine runs, and the contexts on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dlf import _C
from dlf.arguments import Path
from dlf.checkpoints.precision import Precision
from dlf.experts import WholeExpert
from dlf.experts.context import Context, PromptKey, Read
from dlf.text.layout import Layout

__all__ = ["NO_LANE", "Lane", "Lanes", "ModelKey"]

ModelKey: TypeAlias = "tuple[str, Precision]"
NO_LANE = -1  # of a base: the uniform distribution


@dataclass(frozen=True)
class Lane:
    """A context: the number of its model, the layout of its prompts, and the number of its adapter, if any.

    It reads the request's prompt, or the one of `prompt` in its place.
    """

    model: int
    layout: Layout
    adapter: int | None = None
    prompt: PromptKey | None = None


@dataclass
class Lanes:
    """The lanes of a sequence: number 0 is the large model's; a base that several experts share has one lane.

    Parameters
    ----------
    dtype
        Type of every model.
    models : list of (path, type of weights)
        Unique weights, in order of first use: a base that five experts share is loaded and run once, unless they want
        it in different types.
    keys : list
        Folder or hub id, and type, of each model.
    adapters : list of list of path
        Adapters of the lanes on each model.
    lanes : list of Lane
        A model that reads the same text for several experts has one lane for all of them.
    pairs : list of (int, int)
        Lane of each expert, and of its base; `NO_LANE` for an expert without a base. Each may be the large model's.
    drafter : int, optional
        The lane of a model that is not fused and only drafts.
    """

    dtype: str
    models: list[tuple[Path, str | None]] = field(default_factory=list)
    keys: list[ModelKey] = field(default_factory=list)
    adapters: list[list[str]] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    drafter: int | None = None

    @classmethod
    def of(
        cls,
        large: Path,
        experts: Sequence[WholeExpert],
        dtype: str,
        weights: str | None,
        template: str | None,
        drafter: Path | None = None,
    ) -> Lanes:
        """Return the lanes of a large model, of experts that each name their base, and of a drafter, if any."""
        found = cls(dtype)
        found.lanes.append(Lane(found._model(large, weights), Layout(template)))
        for expert in experts:
            lane, base = (found._lane_of(read, expert.weights, template) for read in expert.reads)
            found.pairs.append((lane, base))
        if drafter is not None:
            found.drafter = len(found.lanes)
            found.lanes.append(Lane(found._model(drafter, weights), Layout(template)))
        return found

    @property
    def of_model(self) -> list[int]:
        """Model of each lane."""
        return [lane.model for lane in self.lanes]

    @property
    def adapter_of(self) -> list[int]:
        """Adapter of each lane, by its number on the model, or -1; empty if no lane has one."""
        if not any(self.adapters):
            return []
        return [-1 if lane.adapter is None else lane.adapter for lane in self.lanes]

    def plan(self, vocab: int, token_maps: Sequence[_C.TokenMap] = ()) -> _C.FusionPlan:
        """Plan for the step loop, with `vocab` token ids of the large model, and a map of each model if any has one."""
        drafter = -1 if self.drafter is None else self.drafter
        return _C.FusionPlan(self.of_model, self.pairs, vocab, self.adapter_of, drafter, list(token_maps))

    def counts(self) -> list[int]:
        """Number of lanes of each model."""
        return [self.of_model.count(model) for model in range(len(self.models))]

    def of_experts(self, experts: Sequence[int], *, drafter: bool = False) -> list[int]:
        """Lanes that a request with these experts needs, in rising order; with `drafter` also the drafter's."""
        needed = {0} | {lane for expert in experts for lane in self.pairs[expert] if lane != NO_LANE}
        return sorted(needed | {self.drafter} if drafter and self.drafter is not None else needed)

    def small(self, lane: int) -> bool:
        """Whether a lane is on other weights than the large model's, and so can draft."""
        return lane != NO_LANE and self.of_model[lane] != 0

    def _model(self, name: Path, weights: str | None) -> int:
        key = _place(name), Precision.of(self.dtype, weights)
        if key not in self.keys:
            self.keys.append(key)
            self.models.append((name, weights))
            self.adapters.append([])
        return self.keys.index(key)

    def _lane_of(self, read: Read, weights: str | None, template: str | None) -> int:
        """Number of the lane of an expert or a base; on the large model's weights it may be a lane of its own."""
        if read is None:
            return NO_LANE
        if not isinstance(read, Context):
            return 0
        model = self._model(self.models[0][0] if read.model is None else read.model, weights)
        layout = Layout(template if read.template is None else read.template, read.examples)
        adapter = None if read.adapter is None else self._adapter(model, read.adapter)
        lane = Lane(model, layout, adapter, read.prompt)
        if lane not in self.lanes[1:]:
            self.lanes.append(lane)
            return len(self.lanes) - 1
        return self.lanes.index(lane, 1)

    def _adapter(self, model: int, name: Path) -> int:
        known = self.adapters[model]
        if _place(name) not in known:
            known.append(_place(name))
        return known.index(_place(name))


def _place(name: Path) -> str:
    """Real path of a folder or file, or a hub id."""
    return os.path.realpath(name) if os.path.exists(name) else os.fspath(name)
