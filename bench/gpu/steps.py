"""Measure one fused step on a GPU, on shapes of the paper with random bfloat16 weights.

Parts: ``dlf`` (fused and the large model alone, each with a graph, without one and without early starts of kernels, and
a device copy in the same process), ``eager`` (the paper's loop in ``transformers``) and ``compiled`` (the same with
static caches and torch.compile). Every part of every shape writes OUTPUT/steps-SHAPE-PART.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Last, because the sources of dlf in the repository would hide the installed package.
sys.path.append(str(Path(__file__).parents[2]))

from bench.gpu.shapes import FAMILIES, MODELS, Shape, device, native_weights, transformers_model  # noqa: E402

PROMPT = 64
MAX_CONTEXT = 1024
MARGIN = 2 << 30  # of device memory, for the libraries' workspaces
PARTS = ("dlf", "eager", "compiled")


class DoesNotFitError(Exception):
    """The shape needs more memory than the device has."""


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and bounds of the middle 80 %, in milliseconds."""
    ordered = sorted(1e3 * one for one in seconds)
    last = len(ordered) - 1
    return {
        "steps": len(ordered),
        "median_ms": statistics.median(ordered),
        "p10_ms": ordered[round(0.1 * last)],
        "p90_ms": ordered[round(0.9 * last)],
    }


def warm_up(steps: int) -> int:
    """Steps before the measured ones: the first runs kernel by kernel, a later one captures the graph."""
    return max(3, min(8, steps))


def measure(step: Callable[[], object], steps: int, host_work: float = 0.0) -> list[float]:
    """Seconds from one result to the next; the host is busy for `host_work` seconds before each step."""
    for _ in range(warm_up(steps)):
        step()
    times = []
    before = time.perf_counter()
    for _ in range(steps):
        busy_until = time.perf_counter() + host_work
        while time.perf_counter() < busy_until:
            pass
        step()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_fit(shapes: Sequence[Shape], more: int = 0) -> None:
    """Raise `DoesNotFitError` if the models do not fit, with `more` bytes beside them."""
    if not torch.cuda.is_available():
        return
    free_memory()
    free, _ = torch.cuda.mem_get_info()
    needed = sum(shape.weight_bytes + shape.cache_bytes(MAX_CONTEXT) for shape in shapes) + more + MARGIN
    if needed > free:
        raise DoesNotFitError(f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")


def copy_bandwidth(nbytes: int) -> float:
    """GB/s, read and written, of a copy on the device."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=device()).fill_(1)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        if not torch.cuda.is_available():
            begin = time.perf_counter()
            target.copy_(source)
            times.append(time.perf_counter() - begin)
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(4):
            target.copy_(source)
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end) / 4)
    return 2e-9 * nbytes / statistics.median(times[2:])


@contextmanager
def not_early() -> Iterator[None]:
    """Make loops whose kernels wait for the end of the kernel before them."""
    before = os.environ.get("DLF_CUDA_EARLY")
    os.environ["DLF_CUDA_EARLY"] = "0"
    try:
        yield
    finally:
        del os.environ["DLF_CUDA_EARLY"]
        if before is not None:
            os.environ["DLF_CUDA_EARLY"] = before


def time_loop(weights: Sequence[Any], vocab: int, graph: bool, steps: int, check_waits: bool) -> dict[str, Any]:
    """Times of `_C.StepLoop`, fused if there are three models."""
    from dlf import _C
    from dlf.sampling import SamplingOptions

    fused = len(weights) == 3
    free_memory()
    loop = _C.StepLoop(
        list(weights),
        _C.FusionPlan(list(range(len(weights))), [(1, 2)] if fused else [], vocab),
        _C.EngineOptions(1, MAX_CONTEXT, devices=[0] * len(weights), cuda_graph=graph),
    )
    sampling = SamplingOptions(ignore_eos=True, seed=1).build()
    prompt = [3 + i for i in range(PROMPT)]
    last: dict[str, Any] = {}

    def begin() -> None:
        # Enough tokens that the step still in flight at the end is one of this request.
        prompts = [_C.Prompt(prompt)] * len(weights)
        loop.add(_C.Request(0, prompts, [0] if fused else [], sampling, warm_up(steps) + steps + 2))

    def step() -> None:
        outputs = loop.step()
        while not outputs:  # the step only read the prompt
            outputs = loop.step()
        if outputs[0].failure:
            raise RuntimeError(outputs[0].failure.message)
        last["alpha"] = list(outputs[0].alpha)

    begin()
    times = measure(step, steps)
    loop.cancel(0)
    row = summary(times) | {"alpha_of_last_step": last["alpha"]}
    if check_waits:
        # The host is busy for 40 % of every step. The device has the next step queued, so nothing gets slower; if it
        # had to wait for the host at every token, every step would take 40 % longer.
        begin()
        row["busy_host"] = summary(measure(step, steps, 0.4e-3 * row["median_ms"]))
        row["busy_host_ratio"] = row["busy_host"]["median_ms"] / row["median_ms"]
        loop.cancel(0)
    return row


def dlf_part(shapes: Sequence[Shape], steps: int) -> dict[str, Any]:
    check_fit(shapes, more=sum(shape.weight_bytes // shape.num_hidden_layers for shape in shapes) * 2)
    copied = (4 << 30) if torch.cuda.is_available() else (16 << 20)
    row: dict[str, Any] = {"copy_gb_s": copy_bandwidth(copied)}
    free_memory()
    weights = [native_weights(shape, seed) for seed, shape in enumerate(shapes)]
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the loop copies them on its own streams
    vocab = shapes[0].vocab_size
    row["fused"] = time_loop(weights, vocab, True, steps, True)
    row["fused, no graph"] = time_loop(weights, vocab, False, steps, False)
    row["alone"] = time_loop(weights[:1], vocab, True, steps, True)
    row["alone, no graph"] = time_loop(weights[:1], vocab, False, steps, False)
    for name, some in (("fused", weights), ("alone", weights[:1])):
        with not_early():
            late = time_loop(some, vocab, True, steps, False)
        late["same_alpha"] = late["alpha_of_last_step"] == row[name]["alpha_of_last_step"]
        late["over_usual"] = late["median_ms"] / row[name]["median_ms"]
        row[f"{name}, not early"] = late
    context = PROMPT + warm_up(steps) + steps // 2
    for name, some in (("fused", shapes), ("alone", shapes[:1])):
        read = sum(shape.read_bytes(context) for shape in some)
        rate = 1e-6 * read / row[name]["median_ms"]
        row[name] |= {"read_bytes": read, "gb_s": rate, "copy_share": rate / row["copy_gb_s"]}
    row["bytes_ratio"] = row["fused"]["read_bytes"] / row["alone"]["read_bytes"]
    row["fused_over_alone"] = row["fused"]["median_ms"] / row["alone"]["median_ms"]
    return row


def transformers_part(shapes: Sequence[Shape], steps: int, compiled: bool) -> dict[str, Any]:
    import transformers

    from bench.gpu.paper_loop import PaperLoop

    check_fit(shapes)
    models = [transformers_model(shape, seed) for seed, shape in enumerate(shapes)]
    tokens = PaperLoop(models, compiled, MAX_CONTEXT).tokens([3 + i for i in range(PROMPT)])
    begin = time.perf_counter()
    next(tokens), next(tokens)
    first = time.perf_counter() - begin
    times = measure(lambda: next(tokens), steps)
    return {"loop": summary(times) | {"first_two_s": first}, "transformers": transformers.__version__}


def run(name: str, part: str, steps: int, output: Path) -> bool:
    """Measure one part of one shape and write it; return whether it fitted and succeeded."""
    path = output / f"steps-{name}-{part}.json"
    path.unlink(missing_ok=True)  # so that no old result stays if this run is killed
    row: dict[str, Any] = {"shape": name, "part": part, "models": FAMILIES[name], "torch": torch.__version__}
    row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "emulated"
    shapes = [MODELS[model] for model in FAMILIES[name]]
    try:
        found = dlf_part(shapes, steps) if part == "dlf" else transformers_part(shapes, steps, part == "compiled")
        row |= found
    except DoesNotFitError as error:
        row["skipped"] = str(error)
    except Exception as error:  # the other parts may succeed
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
        print(f"{name}, {part}: {row['error']}", file=sys.stderr)
    free_memory()
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row))
    return "skipped" not in row and "error" not in row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--shapes", default="13b+1.1b", help=f"some of {', '.join(FAMILIES)}, separated by commas")
    parser.add_argument("--parts", default="dlf,eager,compiled", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--steps", type=int, default=100, help="steps to measure, at most 800")
    parser.add_argument("--fallback", help="the shape to measure instead of one of --shapes that does not fit")
    options = parser.parse_args()
    shapes, parts = options.shapes.split(","), options.parts.split(",")
    for kind, given, known in (("shape", [*shapes, options.fallback or shapes[0]], FAMILIES), ("part", parts, PARTS)):
        unknown = [one for one in given if one not in known]
        if unknown:
            parser.error(f"no {kind} {unknown[0]!r}; choose from {', '.join(known)}")
    if not 1 <= options.steps <= 800:
        parser.error("--steps must be from 1 to 800")
    if not torch.cuda.is_available() and shapes != ["tiny"]:
        print("no CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    good = True
    for name in shapes:
        for part in parts:
            fine = run(name, part, options.steps, options.output)
            if not fine and options.fallback and "skipped" in read(options.output / f"steps-{name}-{part}.json"):
                fine = run(options.fallback, part, options.steps, options.output)
            good = good and fine
    return 0 if good else 1


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
