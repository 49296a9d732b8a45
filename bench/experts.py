"""``python -m bench experts``: time and memory of a step with one to ten experts of every kind."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file

import dlf
from bench.machine import DEVICE_HELP, describe, file_name, milliseconds, where
from bench.peers.dlf import read_bytes
from bench.peers.memory import Copier, Reader, yardstick
from bench.shapes import SHAPES, VOCAB_SIZE, write_checkpoint
from dlf.checkpoints.config import read_config

RESULTS = Path(__file__).parent / "results"
SHOT_TOKENS = 31


def kinds_of(shots: int) -> dict[str, str]:
    """Descriptions of the kinds of experts."""
    return {
        "full": "fine-tuned checkpoints, one base",
        "lora": "LoRA adapters on the base",
        "in-context": f"{shots} examples each, about {shots * SHOT_TOKENS} tokens",
        "naive": "every lane its own model",
    }


KINDS = tuple(kinds_of(0))


@dataclass
class Series:
    """The cost of one kind of experts, by their number."""

    kind: str
    step_s: dict[int, float] = field(default_factory=dict)
    spread_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    floor_s: dict[int, float] = field(default_factory=dict)
    memory_bytes: dict[int, int] = field(default_factory=dict)
    others_s: dict[str, float] = field(default_factory=dict)


def write_adapter(folder: Path, base: Path, rank: int, seed: int) -> Path:
    """Writes a PEFT folder with random updates of all linear layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    config = read_config(base)
    shapes = config.tensors()
    for module in config.linear_modules():
        out, columns = shapes[f"{module}.weight"]
        layer = f"base_model.model.{module}"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.02
        tensors[f"{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def words(generator: random.Random, count: int) -> str:
    """A text of `count` tokens."""
    return " ".join(f"token{generator.randrange(3, VOCAB_SIZE)}" for _ in range(count))


def make_shots(generator: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` examples."""
    half = SHOT_TOKENS // 2
    return [(words(generator, half), words(generator, SHOT_TOKENS - half)) for _ in range(count)]


def make_experts(kind: str, count: int, folder: Path, base: Path, small: str, rank: int, shots: int) -> list[Any]:
    """Makes `count` experts of a kind, named by their number, and writes the files that they need."""
    experts: list[Any] = []
    for i in range(count):
        place, name = folder / kind / str(i), str(i)
        generator = random.Random(i)
        if kind == "lora":
            experts.append(dlf.Lora(base, write_adapter(place, base, rank, i), name=name))
        elif kind == "in-context":
            experts.append(dlf.InContext(base, make_shots(generator, shots), name=name))
        else:
            tuned = folder / "tuned" / str(i)
            if not tuned.exists():
                write_checkpoint(tuned, small, 100 + i)
            own = base if kind == "full" else Path(shutil.copytree(base, place, copy_function=os.link))
            experts.append(dlf.Expert(tuned, own, name=name))
    return experts


def measure(
    series: Series,
    engine: dlf.Engine,
    counts: Sequence[int],
    rounds: int,
    tokens: int,
    reader: Reader | Copier,
    console: Console,
) -> None:
    """Times steps with each number of the engine's experts, in turns of random order, and computes their floors."""
    prompt = words(random.Random(99), 16)
    requests: dict[Any, list[str]] = {count: [str(i) for i in range(count)] for count in counts}
    if "static" in engine.experts:
        requests["static"] = ["static"]
    times: dict[Any, list[float]] = {key: [] for key in requests}
    bandwidths = []
    read = reader.tokens([])
    options = {"max_new_tokens": tokens + 1, "ignore_eos": True, "speculate": False}
    for turn in track(range(rounds + 1), f"{series.kind:10}", console=console, transient=True):
        keys = list(requests)
        random.Random(turn).shuffle(keys)
        for key in keys:
            found = engine.generate(prompt, experts=requests[key], **options)
            begin = time.perf_counter()
            next(read)
            if turn > 0:  # the first turn reads the examples and touches pages
                bandwidths.append(reader.weight_bytes / (time.perf_counter() - begin))
                times[key].extend(found.timings.token_times[1:])
    ensemble = engine._ensemble
    bandwidth = statistics.median(bandwidths)
    for count in counts:
        lanes = ensemble.lanes.of_experts(range(count))
        used = {ensemble.lanes.lanes[lane].model for lane in lanes}
        adapters = {(lane.model, lane.adapter) for lane in (ensemble.lanes.lanes[i] for i in lanes)}
        extra = sum(ensemble.adapters[model][adapter].nbytes for model, adapter in adapters if adapter is not None)
        folders = [Path(ensemble.lanes.models[model][0]) for model in used]
        caches = sum(
            ensemble.models[ensemble.lanes.lanes[lane].model].config.kv_bytes_per_token(2) * engine.max_context
            for lane in lanes
        )
        series.step_s[count] = statistics.median(times[count])
        series.spread_s[count] = tuple(statistics.quantiles(times[count], n=10)[i] for i in (0, -1))  # type: ignore[assignment]
        series.floor_s[count] = (sum(read_bytes(one, "bf16") for one in folders) + extra) / bandwidth
        series.memory_bytes[count] = sum(ensemble.models[model].weights.nbytes for model in used) + extra + caches
    if "static" in requests:
        series.others_s["static"] = statistics.median(times["static"])


def first_tokens(large: Path, base: Path, shots: int, repeats: int, options: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first token with new examples, and for another question after them."""
    found: dict[str, list[float]] = {"first": [], "second": []}
    for repeat in range(repeats):
        generator = random.Random(1000 + repeat)
        expert = dlf.InContext(base, make_shots(generator, shots))
        with dlf.Engine(large, [expert], **options) as engine:
            for which in found:
                completion = engine.generate(words(generator, 16), max_new_tokens=2, ignore_eos=True)
                found[which].append(completion.timings.time_to_first_token)
    return {which: statistics.median(times) for which, times in found.items()}


def main(
    large: Annotated[str, typer.Option(help=f"Shape of the large model: {', '.join(SHAPES)}.")] = "1.1B",
    small: Annotated[str, typer.Option(help="Shape of the experts and their base.")] = "143M",
    counts: Annotated[list[int], typer.Option(help="Numbers of experts.")] = [1, 2, 5, 8, 10],  # noqa: B006
    kinds: Annotated[list[str], typer.Option(help=f"Kinds of experts: {', '.join(KINDS)}.")] = list(KINDS),  # noqa: B006
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapters.", min=1)] = 16,
    rounds: Annotated[int, typer.Option(help="Turns for each number of experts.", min=2)] = 6,
    tokens: Annotated[int, typer.Option(help="Tokens in a turn.", min=2)] = 8,
    shots: Annotated[int, typer.Option(help="Examples of an in-context expert.", min=1)] = 32,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = os.cpu_count() or 1,
    output: Annotated[Path, typer.Option(help="Folder for the figures as JSON and the plot.")] = RESULTS,
) -> None:
    """Measure step time and memory by the number of experts of each kind, beside a model for every lane."""
    unknown = sorted({*kinds} - {*KINDS} | {one for one in (large, small) if one not in SHAPES})
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is neither a kind ({', '.join(KINDS)}) nor a shape")
    console = Console()
    place = where(device, threads)  # raises
    options = {"device": device, "threads": threads, "max_batch": 1, "max_context": shots * SHOT_TOKENS + 256}
    reader = yardstick(threads, device)
    found = []
    with tempfile.TemporaryDirectory(prefix="dlf-bench-") as scratch:
        folder = Path(scratch)
        with console.status("making models"):
            big = write_checkpoint(folder / "large", large, 1)
            base = write_checkpoint(folder / "base", small, 2)
        for kind in kinds:
            series = Series(kind)
            with console.status(f"{kind}: making and loading models"):
                experts = make_experts(kind, max(counts), folder, base, small, rank, shots)
                if kind == "in-context":  # the first one again, with a given weight
                    experts.append(dlf.InContext(base, experts[0].examples, name="static", alpha=1.0))
                engine = dlf.Engine(big, experts, **options)
            with engine:
                measure(series, engine, counts, rounds, tokens, reader, console)
            found.append(series)
        with console.status("first tokens"):
            first = first_tokens(big, base, shots, 3, options) if "in-context" in kinds else {}
    title = f"{large} + experts of {small}, bf16, batch 1, {place}"
    versions = {"dlf": dlf.__version__, "torch": torch.__version__}
    console.print(_table(title, found))
    for line in summary(found, first):
        console.print(line)
    record = {"title": title, "machine": describe(versions, threads, device), "rank": rank, "kinds": kinds_of(shots)}
    record |= {"series": [vars(series) for series in found], "first_token_s": first}
    output.mkdir(parents=True, exist_ok=True)
    target = output / (file_name("experts", device) + ".json")
    target.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {target}")
    try:
        plot(found, kinds_of(shots), title, target.with_suffix(".png"))
        console.print(f"drawn in {target.with_suffix('.png')}")
    except ImportError:
        console.print("no plot: pip install matplotlib")


def summary(found: Sequence[Series], first: dict[str, float]) -> list[str]:
    """Ratios that show whether lanes cost as much as they should."""
    by_kind = {series.kind: series for series in found}
    lines = []
    full, lora, shots = (by_kind.get(kind) for kind in ("full", "lora", "in-context"))
    if full and 5 in full.step_s:
        lines.append(f"5 full experts: step / floor {full.step_s[5] / full.floor_s[5]:.2f}")
    if lora and {1, 8} <= lora.step_s.keys():
        lines.append(f"LoRA: step with 8 / step with 1 {lora.step_s[8] / lora.step_s[1]:.2f}")
    if shots and 1 in shots.step_s:
        lines.append(f"in-context: step / step with a given weight {shots.step_s[1] / shots.others_s['static']:.2f}")
        if full and 1 in full.step_s:
            lines.append(f"in-context: step / step with a full expert {shots.step_s[1] / full.step_s[1]:.2f}")
    if first:
        ratio = first["second"] / first["first"]
        times = f"{1e3 * first['first']:.0f} and {1e3 * first['second']:.0f} ms"
        lines.append(f"first token with new examples and with the same again: {times}, ratio {ratio:.2f}")
    return lines


def _table(title: str, found: Sequence[Series]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("experts", "number"):
        table.add_column(column, no_wrap=True)
    for column in ("ms a step", "10 to 90 %", "floor", "step / floor", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for series in found:
        for count, seconds in series.step_s.items():
            low, high = series.spread_s[count]
            floor, memory = series.floor_s[count], series.memory_bytes[count]
            table.add_row(
                series.kind if count == min(series.step_s) else "",
                str(count),
                milliseconds(seconds),
                f"{milliseconds(low)} to {milliseconds(high)}",
                milliseconds(floor),
                f"{seconds / floor:.2f}",
                f"{memory / 2**30:.2f} GiB",
            )
        table.add_section()
    return table


def plot(found: Sequence[Series], kinds: dict[str, str], title: str, target: Path) -> None:
    """Writes a PNG; raises ImportError without matplotlib."""
    from matplotlib import use

    use("Agg")
    from matplotlib import pyplot

    colours = {"full": "#1b6ca8", "lora": "#2a9d5c", "in-context": "#d08a1d", "naive": "#8a8a8a"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for series in found:
        counts = list(series.step_s)
        for axes, values in (
            (left, [1e3 * series.step_s[count] for count in counts]),
            (right, [series.memory_bytes[count] / 2**30 for count in counts]),
        ):
            axes.plot(counts, values, marker="o", color=colours[series.kind], label=kinds[series.kind])
    left.set_ylabel("ms a step, median")
    right.set_ylabel("GiB of weights, adapters and KV caches")
    for axes in (left, right):
        axes.set_xlabel("experts")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
