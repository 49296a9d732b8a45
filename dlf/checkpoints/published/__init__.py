"""Quantized checkpoints as others publish them: what ``quantization_config`` says, and the stored tensors it means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from dlf.checkpoints.published import awq, bitsandbytes, compressed_tensors, fp8, gptq
from dlf.checkpoints.published.stored import Scheme, StoredLayer, StoredMatrix
from dlf.support.fields import Fields

__all__ = ["METHODS", "Scheme", "StoredLayer", "StoredMatrix", "read_scheme"]

METHODS: dict[str, Callable[[Fields, Collection[str]], Scheme]] = {
    "gptq": gptq.read,
    "awq": awq.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "bitsandbytes": bitsandbytes.read,
}


def read_scheme(values: Mapping[str, Any], where: str, modules: Collection[str]) -> Scheme:
    """Read a ``quantization_config``.

    Parameters
    ----------
    values
        Its object.
    where
        The file, for errors.
    modules
        Names of the model's linear layers.

    Raises
    ------
    CheckpointError
        If dlf does not support the method or one of its options; the message names it and what is supported.
    """
    fields = Fields(dict(values), {}, f"{where}: 'quantization_config'")
    method = fields.raw("quant_method")
    if method is None and (fields.raw("load_in_8bit") or fields.raw("load_in_4bit")):  # as older files leave it out
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in METHODS:
        raise fields.error("quant_method", f"one of {', '.join(METHODS)}, the ways to quantize that dlf reads")
    return METHODS[method](fields, modules)
