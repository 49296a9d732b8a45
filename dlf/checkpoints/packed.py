"""Weights that a file holds as integers and scales, whatever the file's format is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dlf import _C
from dlf.checkpoints.precision import TILE_PARTS, MatrixFormat
from dlf.errors import CheckpointError

__all__ = ["PackedMatrix"]

SCALES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FLOATS = tuple(SCALES)
INTEGERS = (torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """The weights of a linear layer as the integers and scales of a file.

    A weight is ``(values - zero) * scale + minimum``. A file with scales on two levels has integers for `scale` and
    `minimum`; these are multiplied by `block_scale` and `block_minimum`.

    Parameters
    ----------
    values : torch.Tensor
        int8 or uint8 ``[out, in]``, one integer a byte: −2^(bits−1) to 2^(bits−1) − 1 as int8, 0 to 2^bits − 1
        as uint8.
    scale : torch.Tensor
        ``[out, groups]``: float32, float16 or bfloat16; int8 or uint8 with `block_scale`.
    minimum : torch.Tensor, optional
        As `scale`, of the same type.
    bits : int
        Bits that a value needs, 2 to 8.
    group : int
        Neighbouring inputs that share a scale; 0 is all inputs of an output channel, one group. A last group may be
        shorter.
    zero : torch.Tensor, optional
        Integers ``[out, groups]`` that stand for a weight of zero.
    block : int
        Neighbouring inputs that share a `block_scale`, a multiple of `group`; 0 if scales have one level.
    block_scale, block_minimum : torch.Tensor, optional
        Floats ``[out, in / block]``.

    Raises
    ------
    CheckpointError
        If the shapes or types do not fit together.
    """

    values: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None
    bits: int
    group: int
    zero: torch.Tensor | None = None
    block: int = 0
    block_scale: torch.Tensor | None = None
    block_minimum: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and types."""
        if self.values.dim() != 2 or self.values.dtype not in INTEGERS:
            raise CheckpointError(f"packed values are {_described(self.values)}; they must be int8 or uint8 [out, in]")
        if not 2 <= self.bits <= 8 or self.group < 0 or self.block < 0:
            raise CheckpointError(f"packed values have {self.bits} bits in groups of {self.group}; bits are 2 to 8")
        if self.block and (not self.group or self.block % self.group):
            raise CheckpointError(f"blocks of {self.block} inputs are not made of groups of {self.group}")
        if (self.block > 0) != (self.block_scale is not None):
            raise CheckpointError("blocks need block_scale, and block_scale needs blocks")
        two_level_minimum = self.block > 0 and self.minimum is not None
        if two_level_minimum != (self.block_minimum is not None):
            raise CheckpointError("a minimum with two levels needs both minimum and block_minimum")
        kinds = INTEGERS if self.block else FLOATS
        self._check("scale", self.scale, self.group, kinds)
        self._check("minimum", self.minimum, self.group, (self.scale.dtype,))
        self._check("zero", self.zero, self.group, (*INTEGERS, torch.int16, torch.int32))
        self._check("block_scale", self.block_scale, self.block, FLOATS)
        self._check("block_minimum", self.block_minimum, self.block, FLOATS)

    def _check(self, name: str, tensor: torch.Tensor | None, inputs: int, dtypes: tuple[torch.dtype, ...]) -> None:
        """Check a tensor with one element for each so many inputs."""
        if tensor is None:
            return
        out, columns = self.values.shape
        shape = (out, -(-columns // inputs) if inputs else 1)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise CheckpointError(
                f"packed {name} is {_described(tensor)}; values are {_described(self.values)} in groups of "
                f"{inputs or columns}, so it must be {list(shape)} of {' or '.join(str(one) for one in dtypes)}"
            )

    @classmethod
    def of_tiles(
        cls, tiles: torch.Tensor, scale: torch.Tensor, form: MatrixFormat, shape: tuple[int, int]
    ) -> PackedMatrix:
        """Return the integers of tiles that `_C.quantize` made: 8 or 4 bits without zero points."""
        out, columns = shape
        if form.bits == 8:  # [out / 16, in / 4, 16, 4]
            values = tiles.permute(0, 2, 1, 3).flatten(2)
        else:  # [out / 16, in / 8, 16, 4]: inputs 0 to 3 in the low halves, 4 to 7 in the high ones
            both = torch.stack((tiles & 15, tiles >> 4), dim=3)
            values = both.permute(0, 2, 1, 3, 4).flatten(2).to(torch.int8) - 8
        scales = scale.permute(0, 2, 1).flatten(0, 1) if form.group else scale.reshape(-1, 1)
        groups = -(-columns // form.group) if form.group else 1
        rows = values.flatten(0, 1)[:out, :columns]
        return cls(rows.contiguous(), scales[:out, :groups].contiguous(), None, form.bits, form.group)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out, in)`` of the matrix."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def format(self) -> MatrixFormat | None:
        """Format of the tiles that keep all its numbers; None if none do."""
        floats = self.scale if self.block_scale is None else self.block_scale
        return MatrixFormat.of(
            self.bits,
            self.group,
            SCALES[floats.dtype],
            signed=self.values.dtype == torch.int8,
            minimum=self.minimum is not None,
            zero=self.zero is not None,
            block=self.block,
        )

    def tiles(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of `MatrixFormat.layout`, by name.

        Raises
        ------
        CheckpointError
            If a number is out of its range or not finite, or no tiles keep them.
        """
        try:
            parts = _C.pack(
                self.values,
                self.scale,
                self.minimum,
                self.bits,
                self.group,
                zero=self.zero,
                block=self.block,
                block_scale=self.block_scale,
                block_minimum=self.block_minimum,
                threads=torch.get_num_threads(),
            )
        except ValueError as error:
            raise CheckpointError(f"tensor '{name}': {error}; load it as floats (weights='bf16')") from None
        return {f"{name}{suffix}": parts[part] for suffix, part in TILE_PARTS.items() if part in parts}

    @classmethod
    def join(cls, matrices: Sequence[PackedMatrix]) -> PackedMatrix:
        """Return the matrix that has the rows of all, in order; they are stored alike."""
        if len(matrices) == 1:
            return matrices[0]
        parts = [one._tensors() for one in matrices]
        joined: dict[str, Any] = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
        return replace(matrices[0], **joined)

    def select(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> PackedMatrix:
        """Return the matrix of those outputs that `rows` takes of a tensor with a row for each."""
        chosen: dict[str, Any] = {name: rows(one) for name, one in self._tensors().items()}
        return replace(self, **chosen)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that it has, by name; each has a row for each output."""
        return {name: one for name, one in vars(self).items() if isinstance(one, torch.Tensor)}

    def dequantize(self) -> torch.Tensor:
        """Return the weights, float32 ``[out, in]``."""
        weight = self.values.float()
        if self.zero is not None:
            weight -= self._spread(self.zero, self.group)
        weight *= self._level(self.scale, self.block_scale)
        if self.minimum is not None:
            weight += self._level(self.minimum, self.block_minimum)
        return weight

    def _level(self, fine: torch.Tensor, coarse: torch.Tensor | None) -> torch.Tensor:
        spread = self._spread(fine, self.group)
        return spread if coarse is None else spread * self._spread(coarse, self.block)

    def _spread(self, tensor: torch.Tensor, inputs: int) -> torch.Tensor:
        """Repeat one element for each so many inputs, as float32."""
        columns = self.values.shape[1]
        return tensor.float() if not inputs else tensor.float().repeat_interleave(inputs, dim=1)[:, :columns]


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
