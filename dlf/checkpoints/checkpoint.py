"""Reads a checkpoint's tensors as one floating-point type."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from dlf.checkpoints.huge_pages import Place, leave
from dlf.checkpoints.precision import SAFETENSORS_DTYPES, TensorLayout
from dlf.checkpoints.source import Source
from dlf.errors import CheckpointError
from dlf.families.parts import Part
from dlf.support.terminal import printable

__all__ = ["check_finite", "is_finite", "load_tensors", "read_tensors"]

PROGRESS_PARAMETERS = 1 << 29  # a GiB of bfloat16


def load_tensors(
    source: Source,
    dtype: torch.dtype,
    names: Collection[str] | None = None,
    place: Place = leave,
    by_row: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors as `dtype`.

    A tensor that has this dtype in the file, and that `place` leaves there, is a view of the mapped file: it costs no
    memory of its own and is shared by all processes that load it, and the file must not be changed while it is in use.
    Others are converted one by one.

    Parameters
    ----------
    source
        The checkpoint.
    dtype
        ``torch.float32``, ``torch.float16`` or ``torch.bfloat16``.
    names
        Which of `ModelConfig.parts` to read, by their names; all of them if not given.
    place
        Decides where each of them stays.
    by_row
        Parts of which only single rows will be read. Checking them reads them whole; then they are mapped anew, so
        that memory holds only the rows that are used.

    Returns
    -------
    dict
        The parts asked for, by name; if these are all and the embedding is tied, the head is the same tensor.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    CheckpointError
        If a file is damaged, or a tensor is missing, misshapen, not floating-point or not finite in `dtype`.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    config, tensors = source.config, dict[str, torch.Tensor]()

    def viewed(part: Part) -> bool:
        return place.leaves(part.name) and source.layout(part.tensor).dtype == SAFETENSORS_DTYPES[dtype]

    for path, part, rows in read_tensors(source, names, f"Loading {source.path.name}", viewed, dtype):
        layout = TensorLayout(SAFETENSORS_DTYPES[dtype], part.shape)
        pieces = ({part.name: one.to(dtype)} for one in rows)
        tensors |= place.gather(pieces, {part.name: layout})
        check_finite(tensors[part.name], part.name, path)
        if part.name in by_row:
            tensors[part.name] = part.take(source.release(part.tensor, tensors[part.name]))
    if config.tie_word_embeddings and names is None:
        tensors[config.head] = tensors[config.embedding]
    return tensors


def read_tensors(
    source: Source,
    names: Collection[str] | None,
    task: str,
    viewed: Callable[[Part], bool] = lambda part: False,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Path, Part, Iterator[torch.Tensor]]]:
    """Yield the file, the part and the values of each tensor; these come as `Source.rows` yields them.

    `viewed` says which parts the caller keeps as views of the file, `dtype` is as in `Source.rows`. Large checkpoints
    get a progress bar that says `task`. Errors are those of `load_tensors`.
    """
    wanted: dict[str, dict[str, Part]] = {}  # by stored tensor, then by name
    for part in source.config.parts.values():
        if names is None or part.name in names:
            wanted.setdefault(part.tensor, {})[part.name] = part
    total = sum(math.prod(part.shape) for parts in wanted.values() for part in parts.values())
    hidden = total < PROGRESS_PARAMETERS or not sys.stderr.isatty()
    try:
        with tqdm(total=total, desc=printable(task), unit="param", unit_scale=True, disable=hidden) as progress:
            for name in source.names:
                if name not in wanted:
                    continue
                path, parts = source.path_of(name), list(wanted[name].values())
                if len(parts) == 1 and parts[0].whole:
                    yield path, parts[0], source.rows(name, viewed(parts[0]), dtype)
                else:
                    pieces = list(source.rows(name, True, dtype))
                    whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                    del pieces
                    for part in parts:
                        yield path, part, iter([part.take(whole)])
                    del whole
                progress.update(sum(math.prod(part.shape) for part in parts))
    finally:
        source.close()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor holds neither a NaN nor an infinity.

    The extremes are finite exactly if all values are: ``aminmax`` passes a NaN on. Finding them takes one
    multi-threaded pass and no temporary, unlike ``torch.isfinite``.
    """
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise CheckpointError if a floating-point tensor holds a NaN or an infinity."""
    if not is_finite(tensor):
        raise CheckpointError(
            f"{path}: tensor '{name}' has values that are not finite in {tensor.dtype}; "
            "load it as bfloat16 or float32, or fetch it again"
        )
