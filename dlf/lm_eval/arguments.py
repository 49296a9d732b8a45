"""Turns arguments of lm-evaluation-harness' ``hf`` class into an engine's: honoured, ignored or refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from dlf.arguments import DEFAULT_CONTEXT, Path
from dlf.checkpoints.source import open_source
from dlf.engine import Engine
from dlf.experts import checkpoints_of
from dlf.options import EngineOptions
from dlf.text.tokenizer import Tokenizer

__all__ = ["check_tokenizer", "located", "make_engine", "model_length", "translate", "warn_of_default_context"]

logger = logging.getLogger(__name__)

PLACES = "device, device_map or a recipe set where models run"
HUB = "the hub's own variables HF_TOKEN, HF_HOME and HF_HUB_OFFLINE set it"
QUANTIZED = "weights=int8 or weights=int4 quantizes a checkpoint when it is loaded"

# name: (value that needs no warning, why no result depends on it)
IGNORED = {
    "trust_remote_code": (False, "no code of a checkpoint is run"),
    "use_fast_tokenizer": (True, "a tokenizer is read from tokenizer.json"),
    "logits_cache": (True, "a context is read once for all of its continuations"),
    "softmax_dtype": (None, "log-probabilities are summed in double precision"),
    "attn_implementation": (None, "there is only one"),
    "use_cache": (True, "a cache is always used"),
    "low_cpu_mem_usage": (None, "weights are mapped from their files"),
    "parallelize": (False, PLACES),
    "device_map_option": (None, PLACES),
    "max_memory_per_gpu": (None, PLACES),
    "max_cpu_memory": (None, PLACES),
    "offload_folder": ("./offload", PLACES),
    "tp_plan": (None, PLACES),
    "token": (None, HUB),
    "cache_dir": (None, HUB),
    "local_files_only": (False, HUB),
    "force_download": (False, HUB),
}
# name: what to do instead
REFUSED = {
    "peft": "an adapter is an expert: give a recipe with 'large: M', 'base: M' and the expert 'adapter: A, alpha: 1'",
    "delta": "apply it to its base, and give the folder with the result",
    "autogptq": QUANTIZED,
    "gptqmodel": QUANTIZED,
    "gguf_file": "give the file itself, as pretrained=FOLDER/FILE.gguf",
    "load_in_8bit": QUANTIZED,
    "load_in_4bit": QUANTIZED,
    "quantization_config": QUANTIZED,
    "mixed_precision_dtype": "dtype= sets the type that a model runs in",
    "truncation": "contexts are cut on the left, as hf does without it",
}


def translate(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `Engine` from the given ones.

    Raises
    ------
    ValueError
        For an argument of ``hf`` that would change the results and cannot be honoured.
    TypeError
        For an unknown one.
    """
    options = dict(options)
    for name, remedy in REFUSED.items():
        if options.pop(name, None) not in (None, False, ""):
            raise ValueError(f"{name} is an argument of hf that cannot be honoured: {remedy}")
    if options.pop("backend", None) not in (None, "default", "causal"):
        raise ValueError("backend: dlf runs causal language models; leave it out")
    if isinstance(options.get("device_map"), str):  # such as "auto"
        options["device_map_option"] = options.pop("device_map")
    for name, (usual, why) in IGNORED.items():
        if options.pop(name, usual) not in (usual, None, ""):
            logger.warning("%s is ignored: %s", name, why)
    if "torch_dtype" in options:
        options.setdefault("dtype", options.pop("torch_dtype"))
    if "dtype" in options:
        options["dtype"] = str(options["dtype"] or "auto").removeprefix("torch.")
    known = [one.name for one in fields(EngineOptions) if one.name not in ("large", "experts", "base")]
    for name in options:
        if name not in known:
            raise TypeError(f"no argument is called {name!r}; besides those of hf there are: {', '.join(known)}")
    return options


def located(pretrained: Path, revision: Any, subfolder: str | None) -> str:
    """Name of a model with what ``hf`` takes separately: a folder within it, and its revision on the hub."""
    name = os.fspath(pretrained)
    here = os.path.exists(os.path.expanduser(name))
    if subfolder:
        if not here:
            raise ValueError(f"subfolder={subfolder!r} needs a local model: fetch it from the hub, and give its folder")
        name = os.path.join(name, subfolder)
    # A folder has one revision, and main is the hub's default.
    return name if here or revision in (None, "", "main") else f"{name}@{revision}"


def check_tokenizer(tokenizer: Any, own: Tokenizer) -> None:
    """Refuse a tokenizer that is not the model's own.

    Raises
    ------
    ValueError
        If it encodes differently, or has another beginning or end of a text, or another chat template.
    """
    if not isinstance(tokenizer, (str, os.PathLike)):
        raise ValueError("tokenizer: give a folder or hub id; one that is loaded already cannot be used")
    other = open_source(tokenizer, weights=False).tokenizer()
    for part in ("fingerprint", "bos_token_id", "eos_token_id", "chat_template"):
        if getattr(other, part) != getattr(own, part):
            raise ValueError(
                f"tokenizer={str(tokenizer)!r} is not that of pretrained (another {part}): put its files into the "
                "model's folder"
            )


def model_length(arguments: dict[str, Any]) -> int:
    """Most tokens that ``hf`` would read, or fewer if an expert was made for fewer.

    Parameters
    ----------
    arguments
        Arguments of `Engine`.
    """
    configs = [open_source(name, weights=False).declared for name in _checkpoints(arguments)]
    # Beyond its short context a model has other frequencies for all of a text, and hf chooses for each text anew.
    short = [config.short_context for config in configs if config.short_context is not None]
    length = min(config.max_position_embeddings for config in configs)
    if short and min(short) < length:
        logger.warning(
            "texts are cut to %d tokens, within which the model's rotary embedding is that of short texts; give "
            "max_length, up to %d, for longer ones",
            min(short),
            length,
        )
        return min(short)
    return length


def _checkpoints(arguments: dict[str, Any]) -> Iterator[Path]:
    yield arguments["large"]
    for name in ("base", "drafter"):
        if arguments.get(name) is not None:
            yield arguments[name]
    for expert in arguments["experts"]:
        for places in checkpoints_of(expert).values():
            yield from places


def warn_of_default_context(engine: Engine) -> None:
    """Warn if the default context, which only saves memory, cuts the texts of an evaluation."""
    ensemble = engine._ensemble
    if ensemble.options.max_context is None and ensemble.max_context < ensemble.trained_context:
        logger.warning(
            "texts are cut to %d tokens, an engine's default; make it with max_context=%d for all tokens that the "
            "model can read",
            ensemble.max_context,
            ensemble.trained_context,
        )


def make_engine(arguments: dict[str, Any], length: int) -> Engine:
    """Make an engine with a context of `length`.

    If memory does not allow that, fewer sequences decode side by side, which changes no result. If that is not enough,
    the context is made shorter, which changes results, down to the engine's default.

    Raises
    ------
    MemoryError
        If memory does not allow even that.
    """
    batch = full = arguments.get("max_batch", EngineOptions.max_batch)
    context = length
    while True:
        try:
            engine = Engine(**arguments | {"max_batch": batch, "max_context": context})
            break
        except MemoryError:
            if batch > 1:
                batch //= 2
            elif context > DEFAULT_CONTEXT:
                context = max(context // 2, DEFAULT_CONTEXT)
            else:
                raise
    if batch < full:
        logger.warning("batch_size is %d, not %d: memory does not hold more sequences of %d", batch, full, context)
    if context < length:
        logger.warning(
            "memory holds %d of the %d tokens that the model reads: longer texts are cut, and their results differ "
            "from those of hf",
            context,
            length,
        )
    return engine
