"""The time of a step of a mixture of experts, beside a dense model that has as many active weights."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.machine import describe, milliseconds
from dlf import _C

RESULTS = Path(__file__).parent / "results" / "mixture.json"
VOCAB_SIZE = 4096
PROMPT = 256
# Layers of OLMoE-1B-7B: 64 experts of 1024, 8 of them for each token.
HIDDEN, HEADS, EXPERTS, CHOSEN, INNER = 2048, 16, 64, 8, 1024


@dataclass(frozen=True)
class Model:
    """A model with random weights; `active` are the bytes of them that a step of one token reads."""

    decoder: _C.Decoder
    active: int
    total: int


def make(mixed: bool, layers: int, bits: int, rows: int, threads: int) -> Model:
    """Make the mixture, or the dense model whose feed-forward is as wide as the chosen experts together."""
    head_dim = HIDDEN // HEADS
    frequencies = (10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)).tolist()
    spec = _C.ModelSpec(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        norm=_C.NormSpec(),
        attention=_C.AttentionSpec(heads=HEADS, kv_heads=HEADS, head_dim=head_dim),
        feed_forward=_C.FeedForwardSpec(size=CHOSEN * INNER),
        ropes=[_C.RopeSpec(inv_freq=frequencies)],
        layers=[_C.LayerSpec(experts=mixed)] * layers,
        experts=_C.ExpertsSpec(count=EXPERTS, chosen=CHOSEN, size=INNER) if mixed else None,
    )
    generator = torch.Generator().manual_seed(0)
    tensors, active = {}, 0.0
    for slot, shape in _C.tensor_shapes(spec).items():
        if len(shape) == 1:
            tensors[slot] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        weight = torch.empty(shape, dtype=torch.bfloat16).normal_(0, shape[-1] ** -0.5, generator=generator)
        found = {slot: weight}
        if bits < 16 and slot != "embedding" and not slot.endswith("router"):
            found = dict(zip((slot, f"{slot}.scale"), _C.quantize(weight, bits, 32, threads), strict=True))
        tensors |= found
        share = 0.0 if slot == "embedding" else CHOSEN / EXPERTS if ".experts." in slot else 1.0
        active += share * sum(tensor.nbytes for tensor in found.values())
    weights = _C.Weights(spec, tensors)
    return Model(_C.Decoder(weights, slots=rows, max_context=1024, threads=threads), int(active), weights.nbytes)


def measure(models: dict[str, Model], rows: int, steps: int) -> dict[str, float]:
    """Median seconds of a step with `rows` random tokens; the models take turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        tokens = torch.randint(VOCAB_SIZE, (rows,), generator=generator).tolist()
        for name, model in models.items():
            begin = time.perf_counter()
            model.decoder.decode(tokens, list(range(rows)), [step] * rows)
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken[steps // 10 :]) for name, taken in times.items()}


def prompt_time(model: Model) -> float:
    """Least seconds, of three times, of reading a prompt."""
    tokens = torch.randint(VOCAB_SIZE, (PROMPT,), generator=torch.Generator().manual_seed(2)).tolist()
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        model.decoder.prefill(tokens, 0, 0)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def main(
    layers: Annotated[int, typer.Option(help="Layers of each model; OLMoE has 16.")] = 4,
    rows: Annotated[list[int], typer.Option(help="Rows of a step.")] = [1, 4, 8],  # noqa: B006 - typer's way
    steps: Annotated[int, typer.Option(help="Steps to measure.")] = 60,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    output: Annotated[Path, typer.Option(help="Where to write the result as JSON.")] = RESULTS,
) -> None:
    """Measure a mixture of experts in the shape of OLMoE beside a dense model with as many active weights."""
    threads = threads or torch.get_num_threads()
    table = Table(title=f"milliseconds, {threads} threads, {layers} layers", title_justify="left")
    for column in ("weights", "rows", "mixture", "dense", "ratio", "active MB", "GB/s of the mixture"):
        table.add_column(column, justify="right")
    results: list[dict[str, Any]] = []
    for bits in track((16, 4), "Weights", transient=True):
        models = {name: make(name == "mixture", layers, bits, max(rows), threads) for name in ("mixture", "dense")}
        name = "bf16" if bits == 16 else f"int{bits}"
        active, total = models["mixture"].active, models["mixture"].total
        timings = {str(count): measure(models, count, steps) for count in rows}
        timings[f"prompt of {PROMPT}"] = {one: prompt_time(model) for one, model in models.items()}
        for what, found in timings.items():
            results.append({"weights": name, "rows": what, "active_bytes": active, "bytes": total, **found})
            speed = f"{active / found['mixture'] / 1e9:.1f}" if what == "1" else ""
            ratio = f"{found['mixture'] / found['dense']:.2f}"
            shown = (milliseconds(found["mixture"]), milliseconds(found["dense"]))
            table.add_row(name, what, *shown, ratio, f"{active / 1e6:.0f}", speed)
        del models
    Console().print(table)
    machine = describe({"torch": torch.__version__}, threads)
    output.write_text(json.dumps({"machine": machine, "layers": layers, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
