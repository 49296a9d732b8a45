"""llama.cpp: the models decode a token one after the other, without the cost of fusion."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.peers import gguf_file

QUANTIZED = {"int8": "q8_0", "int4": "q4_0"}


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Write a GGUF file in bfloat16, and quantize it with llama.cpp if asked to; "file" is one that is there."""
    import llama_cpp

    if weights == "file":
        return folder
    source = scratch / f"{folder.name}-bf16.gguf"
    if not source.exists():
        gguf_file.write(folder, source)
    if weights == "bf16":
        return source
    target = scratch / f"{folder.name}-{QUANTIZED[weights]}.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{QUANTIZED[weights].upper()}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp could not quantize {source.name}")
    return target


class LlamaCpp:
    """One model and its context, through the C interface: `llama_decode` computes the last token's logits only.

    `context` counts the tokens of all `sequences`.
    """

    def __init__(self, path: Path, threads: int, context: int, sequences: int = 1) -> None:
        import llama_cpp

        self.native = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max = sequences
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch_size = options.n_batch

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits [V] after these further tokens, in float32; the next call overwrites them."""
        import numpy as np

        for first in range(0, len(tokens), self.batch_size):
            piece = tokens[first : first + self.batch_size]
            ids = (self.native.llama_token * len(piece))(*piece)
            if self.native.llama_decode(self.context, self.native.llama_batch_get_one(ids, len(piece))):
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.native.llama_get_logits_ith(self.context, -1), (self.vocab_size,))

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self.native.llama_memory_clear(self.native.llama_get_memory(self.context), True)
        token = int(self.logits(prompt).argmax())
        while True:
            yield token
            token = int(self.logits([token]).argmax())

    def decode_batch(self, prompt: Sequence[int], size: int, count: int) -> float:
        """Continue `size` sequences, which begin alike, by `count` tokens each; returns the seconds of that."""
        import numpy as np

        self.native.llama_memory_clear(self.native.llama_get_memory(self.context), True)
        batch = self.native.llama_batch_init(size, 0, 1)
        batch.n_tokens = size
        tokens = [prompt[0]] * size
        start = 0.0
        for position in range(len(prompt) + count):
            start = time.perf_counter() if position == len(prompt) else start
            if position < len(prompt):
                tokens = [prompt[position]] * size
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
                batch.seq_id[i][0] = i
            if self.native.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")
            rows = (self.native.llama_get_logits_ith(self.context, i) for i in range(size))
            tokens = [int(np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()) for row in rows]
        seconds = time.perf_counter() - start
        self.native.llama_batch_free(batch)
        return seconds


class Sum:
    """Several models, one after the other."""

    def __init__(self, paths: Sequence[Path], weights: str, threads: int, context: int) -> None:
        self.models = [LlamaCpp(path, threads, context) for path in paths]
        self.weight_bytes = sum(gguf_file.read_bytes(path) for path in paths)
        self.settings = {
            "file": QUANTIZED.get(weights, weights),
            "quantizer": "llama_model_quantize, defaults",
            "flash attention": "auto",
            "KV cache": "f16",
            "system": self.models[0].native.llama_print_system_info().decode(),
        }

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        return zip(*(model.tokens(prompt) for model in self.models), strict=True)


def load(paths: Sequence[Path], weights: str, threads: int, context: int) -> Sum:
    return Sum(paths, weights, threads, context)
