"""The stored tensors of one linear layer of a quantized checkpoint, and the form that their bits have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TensorLayout
from dlf.errors import CheckpointError

__all__ = [
    "FLOATS",
    "Integers",
    "Scheme",
    "StoredLayer",
    "StoredMatrix",
    "Tensors",
    "pack_words",
    "packed",
    "unpack_words",
]

FLOATS = ("F16", "BF16", "F32")
Tensors = Mapping[str, torch.Tensor]  # by their last name, such as qweight


@dataclass(frozen=True)
class Integers:
    """What the headers say of a matrix of integers.

    Parameters
    ----------
    bits, group
        As in `PackedMatrix`.
    scale
        Type of the scales, as safetensors calls it.
    symmetric
        Whether integers are centred, and so have no zero points.
    order
        Last name of the tensor with the group of each input; None if neighbours make groups.
    """

    bits: int
    group: int
    scale: str
    symmetric: bool
    order: str | None = None


@dataclass(frozen=True)
class StoredMatrix:
    """A quantized matrix, of which only the headers were read.

    Parameters
    ----------
    names
        Name in the file of each stored tensor, by its last name.
    kind
        The form of its numbers, for people.
    unpack
        Makes the matrix of the stored tensors: packed where that keeps its numbers, else float32 ``[out, in]``.
    integers
        The integers that `unpack` packs; None if it makes floats.
    """

    names: Mapping[str, str]
    kind: str
    unpack: Callable[[Tensors], PackedMatrix | torch.Tensor]
    integers: Integers | None = None

    def packs(self, take: Callable[[str], torch.Tensor]) -> Integers | None:
        """Integers that `read` packs; None if it makes floats, as it does of groups whose inputs are no neighbours."""
        found = self.integers
        if found is None or found.order is None:
            return found
        return found if neighbours(take(self.names[found.order]), found.group) else None

    def read(self, take: Callable[[str], torch.Tensor], where: str) -> PackedMatrix | torch.Tensor:
        """Read the tensors with `take`, which gets a name in the file; `where` begins errors.

        Raises
        ------
        CheckpointError
            If they contradict each other, or `take` fails.
        """
        tensors = {part: take(name) for part, name in self.names.items()}
        try:
            return self.unpack(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {next(iter(self.names.values()))!r}: {error}") from error


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's matrices are quantized.

    Parameters
    ----------
    name
        Its name, for people.
    matrix
        Finds the stored matrix of a layer; None if the file has its plain weight.
    companions
        Last names of tensors that belong to a quantized layer and are not read.
    """

    name: str
    matrix: Callable[[StoredLayer], StoredMatrix | None]
    companions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StoredLayer:
    """A linear layer, and the tensors that the headers of the checkpoint's files list.

    Parameters
    ----------
    where
        File or folder, for errors.
    module
        Name of the layer.
    shape
        Its ``(out, in)``.
    layout
        Type and shape of every tensor of the checkpoint.
    """

    where: str
    module: str
    shape: tuple[int, int]
    layout: Mapping[str, TensorLayout]
    names: dict[str, str] = field(default_factory=dict)

    def get(self, part: str) -> TensorLayout | None:
        """Type and shape of a tensor of this layer; None if the files have none of this name."""
        return self.layout.get(f"{self.module}.{part}")

    def need(self, part: str, dtypes: Sequence[str], *shapes: Sequence[int]) -> TensorLayout:
        """Take a tensor, which must have one of these types and shapes.

        Raises
        ------
        CheckpointError
            If it is missing or another.
        """
        found = self.get(part)
        if found is None:
            raise self.error(f"has no tensor '{self.module}.{part}'; fetch the checkpoint again")
        if found.dtype not in dtypes or tuple(found.shape) not in {tuple(shape) for shape in shapes}:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(
                f"has '{self.module}.{part}' as {found.dtype} {list(found.shape)}, but its quantization_config and the "
                f"shape of the layer, {list(self.shape)}, ask for {' or '.join(dtypes)} {wanted}; fetch the checkpoint "
                "again"
            )
        self.names[part] = f"{self.module}.{part}"
        return found

    def found(
        self,
        kind: str,
        unpack: Callable[[Tensors], PackedMatrix | torch.Tensor],
        integers: Integers | None = None,
    ) -> StoredMatrix:
        """The matrix of the tensors that were taken."""
        return StoredMatrix(self.names, kind, unpack, integers)

    def error(self, problem: str) -> CheckpointError:
        """Return an error that begins with the file."""
        return CheckpointError(f"{self.where} {problem}")

    def groups(self, group: int) -> int:
        """Number of groups of an output channel; a group of 0 is the whole channel."""
        return -(-self.shape[1] // group) if group else 1


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Split 32-bit words into values of 4 or 8 bits, the lowest first: ``[rows, words]`` to uint8 ``[rows, count]``."""
    values = words.contiguous().view(torch.uint8)
    if bits == 4:
        values = torch.stack((values & 15, values >> 4), dim=-1).flatten(-2)
    return values[:, :count].contiguous()


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Join unsigned values of 4 or 8 bits, uint8 ``[rows, columns]``, into words as `unpack_words` splits them."""
    per = 32 // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % per))
    if bits == 4:
        values = values[:, 0::2] | (values[:, 1::2] << 4)
    return values.contiguous().view(torch.int32)


def neighbours(order: torch.Tensor, group: int) -> bool:
    """Whether the inputs of each group lie side by side; an `order` with −1 was never set."""
    columns = len(order)
    ascending = torch.arange(columns) // (group or columns)
    return torch.equal(order.long(), ascending) or bool((order == -1).all())


def packed(
    values: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    integers: Integers,
    order: torch.Tensor | None = None,
) -> PackedMatrix | torch.Tensor:
    """Pack unsigned values ``[out, in]`` with scales and zeros ``[out, groups]``; symmetric ones become signed.

    Parameters
    ----------
    values, scale, zero
        Without a `zero`, half of the range of values stands for 0.
    integers
        What the headers said.
    order
        Group of each input. If groups are no neighbours, the result is float32.

    Raises
    ------
    CheckpointError
        If `order` names a group that does not exist.
    """
    bits, group, middle = integers.bits, integers.group, 1 << (integers.bits - 1)
    if order is not None and not neighbours(order, group):
        if bool(((order < 0) | (order >= scale.shape[1])).any()):
            raise CheckpointError(
                f"inputs are in other groups than the {scale.shape[1]} that have scales; fetch it again"
            )
        each = order.long()
        zeros = middle if zero is None else zero.float()[:, each]
        return (values.float() - zeros) * scale.float()[:, each]
    if zero is None or (integers.symmetric and bool((zero == middle).all())):
        signed = (values ^ 128).view(torch.int8) if bits == 8 else values.to(torch.int8) - middle
        return PackedMatrix(signed, scale.contiguous(), None, bits, group)
    return PackedMatrix(values, scale.contiguous(), None, bits, group, zero=zero.contiguous())
