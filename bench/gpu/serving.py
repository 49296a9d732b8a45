"""Measure serving on a GPU, or with ``--device cpu`` on the processor, on shapes of the paper with random weights.

Parts: ``first`` (time to the first token for prompts of new lengths, and of the same lengths again), ``joining`` (gaps
between the tokens of a running request while one long prompt joins, and seven at once), ``batch`` (tokens a second) and
``quantized`` (the large model alone in int8 and int4, beside the bytes that it reads). Each writes
OUTPUT/serving-PART.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# Last, because the sources of dlf in the repository would hide the installed package.
sys.path.append(str(Path(__file__).parents[2]))

from bench.gpu.shapes import FAMILIES, MODELS, Shape, native_weights  # noqa: E402
from bench.gpu.steps import copy_bandwidth, free_memory, summary  # noqa: E402

CONTEXT = 2048
LENGTHS = 40
SHORTEST, LONGEST = 20, 1900
PROMPT = 64
ROUNDS = 3
PARTS = ("first", "joining", "batch", "quantized")


class Loop:
    """A step loop over random models."""

    def __init__(
        self, weights: Sequence[Any], max_batch: int, vocab: int, context: int = CONTEXT, threads: int | None = None
    ) -> None:
        from dlf import _C

        self.models = len(weights)
        self.vocab = vocab
        self.next = 0
        self.random = random.Random(7)
        self.loop = _C.StepLoop(
            list(weights),
            _C.FusionPlan(list(range(self.models)), [(1, 2)] if self.models == 3 else [], vocab),
            _C.EngineOptions(max_batch, context, threads or 1, devices=[] if threads else [0] * self.models),
        )

    def add(self, length: int, tokens: int) -> int:
        from dlf import _C
        from dlf.sampling import SamplingOptions

        sampling = SamplingOptions(ignore_eos=True, seed=1).build()
        prompt = [self.random.randrange(3, self.vocab) for _ in range(length)]
        self.next += 1
        prompts = [_C.Prompt(prompt)] * self.models
        self.loop.add(_C.Request(self.next, prompts, [0] if self.models == 3 else [], sampling, tokens))
        return self.next

    def step(self) -> set[int]:
        """Run a step, and return the requests that got a token."""
        outputs = self.loop.step()
        for output in outputs:
            if output.failure:
                raise RuntimeError(output.failure.message)
        return {output.request for output in outputs}

    def run(self, steps: int, batch: int) -> list[float]:
        """Seconds of each of `steps` steps in which all `batch` requests decode."""
        while len(self.step()) < batch:
            pass
        for _ in range(5):
            self.step()
        times, before = [], time.perf_counter()
        for _ in range(steps):
            self.step()
            now = time.perf_counter()
            times.append(now - before)
            before = now
        return times

    def first_token(self, length: int) -> float:
        """Milliseconds from adding a prompt to its first token."""
        begin = time.perf_counter()
        request = self.add(length, 2)
        while request not in self.step():
            pass
        elapsed = 1e3 * (time.perf_counter() - begin)
        while not self.loop.idle:
            self.step()
        return elapsed


def first(fused: Callable[[int], Loop]) -> dict[str, Any]:
    loop = fused(1)
    lengths = random.Random(3).sample(range(SHORTEST, LONGEST + 1), LENGTHS)
    rows = []
    for length in lengths:
        unseen = loop.first_token(length)
        rows.append({"tokens": length, "unseen_ms": unseen, "again_ms": loop.first_token(length)})
    ratios = [row["unseen_ms"] / row["again_ms"] for row in rows[1:]]
    return {
        "lengths": rows,
        "very_first_ms": rows[0]["unseen_ms"],
        "unseen_over_again": {"median": statistics.median(ratios), "most": max(ratios)},
    }


def joining(fused: Callable[[int], Loop]) -> dict[str, Any]:
    """Measure the gaps between tokens of a request while prompts of LONGEST tokens join, one alone and seven at once.

    The longest gap with one prompt is the time of a step with a chunk; the gap with seven is compared with it. The
    shortest of several rounds counts, since other load of the machine only adds time.
    """
    loop = fused(8)
    running = loop.add(PROMPT, CONTEXT)
    alone = loop.run(50, 1)
    gaps: dict[int, list[list[float]]] = {1: [], 7: []}
    for prompts in (1, 7) * ROUNDS:
        gaps[prompts].append([])
        waiting, before = {loop.add(LONGEST, 2) for _ in range(prompts)}, time.perf_counter()
        while waiting:
            got = loop.step()
            now = time.perf_counter()
            if running in got:
                gaps[prompts][-1].append(now - before)
                before = now
            waiting -= got
    one, seven = (min(map(max, gaps[prompts])) for prompts in (1, 7))
    return {
        "alone": summary(alone),
        "longest_gap_ms": 1e3 * seven,
        "step_and_chunk_ms": 1e3 * one,
        "over_step_and_chunk": seven / one,
        "gaps": summary([gap for found in gaps[7] for gap in found]),
    }


def batch(fused: Callable[[int], Loop]) -> dict[str, Any]:
    rows = []
    for size in (1, 2, 4, 8, 16, 32, 64):
        free_memory()
        loop = fused(size)
        for _ in range(size):
            loop.add(PROMPT, 200)
        row = summary(loop.run(50, size))
        rows.append({"batch": size, "tokens_s": 1e3 * size / row["median_ms"]} | row)
        del loop
    return {"rows": rows}


def weight_bytes(shape: Shape, precision: str) -> int:
    """Bytes of a model's weights that a token reads."""
    parameters = shape.num_hidden_layers * shape.layer_parameters + shape.vocab_size * shape.hidden_size
    return int(parameters * {"bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32, "int4-g64": 0.5 + 2 / 64}[precision])


def quantized(large: Shape, copy_gb_s: float) -> dict[str, Any]:
    rows = []
    for precision in ("int8", "int4", "int4-g64"):
        free_memory()
        loop = Loop([native_weights(large, 0, precision)], 1, large.vocab_size, 512)
        loop.add(PROMPT, 200)
        row = summary(loop.run(100, 1))
        read = weight_bytes(large, precision)
        share = 1e-6 * read / row["median_ms"] / copy_gb_s
        rows.append({"precision": precision, "read_bytes": read, "copy_share": share} | row)
        del loop
    return {"rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads, with --device cpu")
    parser.add_argument("--shape", default="13b+1.1b", choices=list(FAMILIES), help="the large and the small models")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, separated by commas")
    options = parser.parse_args()
    parts = options.parts.split(",")
    unknown = [one for one in parts if one not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    shapes = [MODELS[model] for model in FAMILIES[options.shape]]
    on_cpu = options.device == "cpu"
    if on_cpu and "quantized" in parts:
        parser.error("the part 'quantized' is for GPUs; python -m bench quantization measures the processor")
    on_gpu = torch.cuda.is_available() and not on_cpu
    name = f"{options.threads} threads" if on_cpu else torch.cuda.get_device_name() if on_gpu else "emulated"
    head = {"shape": options.shape, "device": name}
    copy_gb_s = copy_bandwidth((4 << 30) if on_gpu else (16 << 20))
    free_memory()
    weights: list[Any] = []

    def fused(max_batch: int) -> Loop:
        if not weights:
            weights.extend(native_weights(shape, seed) for seed, shape in enumerate(shapes))
            if on_gpu:
                torch.cuda.synchronize()  # the loop copies them on its own streams
        return Loop(weights, max_batch, shapes[0].vocab_size, threads=options.threads if on_cpu else None)

    options.output.mkdir(parents=True, exist_ok=True)
    good = True
    for part in parts:
        try:
            if part == "quantized":
                weights.clear()
                found = quantized(shapes[0], copy_gb_s)
            else:
                found = {"first": first, "joining": joining, "batch": batch}[part](fused)
        except Exception as error:  # the other parts may succeed
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
            good = False
        row = head | {"part": part, "copy_gb_s": copy_gb_s} | found
        (options.output / f"serving-{part}.json").write_text(json.dumps(row, indent=2) + "\n")
        print(json.dumps(row), flush=True)
        free_memory()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
