"""Where a checkpoint keeps the tensors of a model: each in one of its own, or several in one that it stores whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dlf import _C

__all__ = ["LinearModule", "Part", "Stored", "fused", "parts", "stored"]

# "norm", "3.q.bias", "3.experts.7.gate": what comes before the name, layer, expert, name, and the end.
SLOT = re.compile(r"((?:(\d+)\.)?(?:experts\.(\d+)\.)?)(\w+)((?:\.bias)?)")


@dataclass(frozen=True)
class Stored:
    """The module of a checkpoint that holds a slot.

    Attributes
    ----------
    module
        Its name, in which ``{layer}`` is the layer's number and ``{expert}`` the expert's.
    slots
        All slots that it holds, in the order of their rows; empty if it holds one.
    interleaved
        Whether its rows are those of the first head of each slot, then those of the second, and so on.
    transposed
        Whether its weight is ``[in, out]``, as in GPT-2.
    paired
        Whether rows that rotate together are neighbours, and not half a head apart.
    stacked
        Whether its weight has a matrix for each expert, one after the other.
    by_head
        Whether its weight, a vector for all heads, has a row for each.
    """

    module: str
    slots: tuple[str, ...] = ()
    interleaved: bool = False
    transposed: bool = False
    paired: bool = False
    stacked: bool = False
    by_head: bool = False


def stored(paired: bool = False, by_head: bool = False, **modules: str) -> dict[str, Stored]:
    """Return modules that hold one slot each, by slot."""
    return {slot: Stored(module, paired=paired, by_head=by_head) for slot, module in modules.items()}


def fused(
    module: str, *slots: str, interleaved: bool = False, transposed: bool = False, stacked: bool = False
) -> dict[str, Stored]:
    """Return one module that holds several slots, by slot."""
    one = Stored(module, slots, interleaved, transposed, stacked=stacked)
    return dict.fromkeys(slots, one)


@dataclass(frozen=True)
class Part:
    """A slot's tensor as a part of a stored one.

    Attributes
    ----------
    module, tensor
        Names of the module and of the stored tensor.
    name
        Name of the part: that of the stored tensor if this is the part as it is.
    stored
        Shape of the stored tensor.
    shape
        Shape of the part, ``[out, in]`` or ``[out]``.
    begin
        Its first row among the stored ones, or among those of each group.
    groups
        Into how many equal stretches the stored rows are cut; the part has as many rows in each of them.
    transposed
        Whether the stored tensor is ``[in, out]``.
    pairs
        In each head so many pairs of rows, which rotate together, are stored as neighbours; 0 if half a head apart.
    heads
        Number of heads, where there are pairs.
    expert
        Which of the stored matrices it is a part of; None if only one is stored.
    """

    module: str
    tensor: str
    name: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    begin: int = 0
    groups: int = 1
    transposed: bool = False
    pairs: int = 0
    heads: int = 1
    expert: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the stored tensor is the part, so that some rows of it are those rows of the part."""
        return self.name == self.tensor and not self.transposed and not self.pairs and self.expert is None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of the stored tensor: a view if its rows are neighbours, else a copy."""
        tensor = tensor if self.expert is None else tensor[self.expert]
        tensor = tensor.t() if self.transposed else tensor
        return self.rows(tensor.reshape(-1, *self.shape[1:])).contiguous()

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part's rows of a tensor that has a row for each output of the module."""
        count = self.shape[0] // self.groups
        columns = tensor.shape[1:]
        if self.groups == 1:
            rows = tensor.narrow(0, self.begin, count)
        else:
            rows = tensor.reshape(self.groups, -1, *columns).narrow(1, self.begin, count).reshape(-1, *columns)
        return self._unpaired(rows) if self.pairs else rows

    def _unpaired(self, rows: torch.Tensor) -> torch.Tensor:
        """Put the first rows of all pairs of a head before the second ones."""
        heads = rows.reshape(self.heads, -1, *rows.shape[1:])
        turning, still = heads[:, : 2 * self.pairs], heads[:, 2 * self.pairs :]
        return torch.cat([turning[:, 0::2], turning[:, 1::2], still], dim=1).reshape(rows.shape)


@dataclass(frozen=True)
class LinearModule:
    """A linear layer of a checkpoint, and the slots that it fills."""

    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Its outputs and inputs."""
        part = next(iter(self.parts.values()))
        out, columns = part.stored[::-1] if part.transposed else part.stored
        return out, columns

    @property
    def transposed(self) -> bool:
        """Whether its weight is stored as ``[in, out]``."""
        return any(part.transposed for part in self.parts.values())


def parts(modules: Mapping[str, Stored], spec: _C.ModelSpec) -> dict[str, Part]:
    """Return the part that fills each slot of a model, in the order of a pass."""
    shapes = _C.tensor_shapes(spec)
    return {slot: _part(modules, shapes, slot, spec) for slot in shapes}


def _part(modules: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], slot: str, spec: _C.ModelSpec) -> Part:
    match = SLOT.fullmatch(slot)
    assert match
    beginning, layer, expert, name, end = match.groups()
    one, shape = modules[name if expert is None else f"expert_{name}"], shapes[slot]
    module = one.module.format(layer=layer, expert=expert)
    tensor = f"{module}{end or '.weight'}"
    transposed = one.transposed and len(shape) == 2
    slots = [other.removeprefix("expert_") for other in one.slots] or [name]
    rows = {other: shapes[f"{beginning}{other}{end}"][0] for other in slots}
    whole = (sum(rows.values()), *shape[1:])
    before = list(rows)[: list(rows).index(name)]
    groups = spec.attention.kv_heads if one.interleaved else 1
    stack = (spec.experts.count,) if one.stacked else ()
    mark = f"{expert}.{name}" if one.stacked else name
    heads = shape[0] // spec.attention.head_dim
    if one.by_head:
        whole = (heads, spec.attention.head_dim)
    as_it_is = not (one.slots or transposed or one.paired or one.stacked or one.by_head)
    return Part(
        module=module,
        tensor=tensor,
        name=tensor if as_it_is else f"{tensor}[{mark}]",
        stored=stack + (whole[::-1] if transposed else whole),
        shape=shape,
        begin=sum(rows[other] for other in before) // groups,
        groups=groups,
        transposed=transposed,
        pairs=max(len(rope.inv_freq) for rope in spec.ropes) if one.paired else 0,
        heads=heads,
        expert=int(expert) if one.stacked and expert else None,
    )
