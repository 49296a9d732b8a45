"""Gather the output files of bench/gpu_acceptance.sh into gpu-acceptance.json and tables, gpu-acceptance.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MISSING = "not measured"
AWAY = 1.1  # largest time of a step while the host is busy, over the usual time, if the device does not wait for it


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if the file is missing or incomplete."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of JSON lines."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the program was stopped while writing
            continue
    return rows


def gather(folder: Path) -> dict[str, Any]:
    machine, checks = folder / "machine.txt", folder / "checks.tsv"
    lines = machine.read_text().splitlines() if machine.exists() else []
    entries = [line.split("\t") for line in checks.read_text().splitlines()] if checks.exists() else []
    found: dict[str, Any] = {
        "machine": {key: value.strip() for key, _, value in (line.partition(":") for line in lines)},
        "checks": [{"name": e[0], "state": e[1], "seconds": int(e[2])} for e in entries if len(e) == 3],
        "solver": read_lines(folder / "solver.jsonl"),
        "linear": read_lines(folder / "linear.jsonl"),
        "steps": [read_json(path) for path in sorted(folder.glob("steps-*.json"))],
        "serving": [read_json(path) for path in sorted(folder.glob("serving-*.json"))],
        "speculate": {
            key: value for key, value in read_json(folder / "speculate.json").items() if key not in ("machine", "rows")
        },
    }
    found["figures"] = figures(found)
    return found


def part(found: dict[str, Any], shape: str, name: str) -> dict[str, Any]:
    """The result of steps.py for a part of a shape; empty if it failed."""
    for row in found["steps"]:
        if (row.get("shape"), row.get("part")) == (shape, name) and not {"error", "skipped"} & row.keys():
            return dict(row)
    return {}


def served(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The result of serving.py for a part; empty if it failed."""
    return next((row for row in found["serving"] if row.get("part") == name and "error" not in row), {})


def one_of(rows: Sequence[dict[str, Any]], key: str, value: object, wanted: str) -> float | None:
    """The value of `wanted` in the row with this value of `key`."""
    return next((row.get(wanted) for row in rows if row.get(key) == value), None)


def solver_us(found: dict[str, Any], vocab: int, experts: int, batch: int, combine: str = "select") -> float | None:
    """Median time for the slowest kind of logits."""
    key = {"what": "solver", "vocab": vocab, "experts": experts, "batch": batch, "combine": combine, "good": True}
    rows = [row for row in found["solver"] if key.items() <= row.items()]
    return max((row["median_us"] for row in rows), default=None)


def sampler_us(found: dict[str, Any], vocab: int, batch: int) -> float | None:
    """Median time with top-p."""
    key = {"what": "sampler", "vocab": vocab, "batch": batch}
    rows = [row for row in found["solver"] if key.items() <= row.items() and "top-p" in row["options"]]
    return max((row["median_us"] for row in rows), default=None)


def claim(found: dict[str, Any], text: str) -> float | None:
    """The figure of bench/speculate.py for one of its claims."""
    return one_of(found["speculate"].get("claims", []), "claim", text, "found")


def host_waits(row: dict[str, Any]) -> float | None:
    ratio = row.get("fused", {}).get("busy_host_ratio")
    return None if ratio is None else float(ratio > AWAY)


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures and their targets."""
    small, large = part(found, "13b+1.1b", "dlf"), part(found, "13b+7b", "dlf")
    fused = small.get("fused", {})
    eager = part(found, "13b+1.1b", "eager").get("loop", {})
    compiled = part(found, "13b+1.1b", "compiled").get("loop", {})
    step = fused.get("median_ms")
    quantized, batches = served(found, "quantized").get("rows", []), served(found, "batch").get("rows", [])
    first = served(found, "first").get("unseen_over_again", {})
    rows: list[tuple[str, str, float, float | None]] = [
        ("fused step / large alone, 13B + 2 × 1.1B", "≤", 1.12, small.get("fused_over_alone")),
        ("fused step / large alone, 13B + 2 × 7B", "≤", 1.77, large.get("fused_over_alone")),
        ("bandwidth / a device copy: fused, 13B + 2 × 1.1B", "≥", 0.88, fused.get("copy_share")),
        ("bandwidth / a device copy: fused, 13B + 2 × 7B", "≥", 0.90, large.get("fused", {}).get("copy_share")),
        ("bandwidth / a device copy: 13B alone", "≥", 0.88, small.get("alone", {}).get("copy_share")),
        ("transformers, eager paper loop / dlf", "≥", 25, ratio(eager.get("median_ms"), step)),
        ("transformers, static cache and torch.compile / dlf", "≥", 1.8, ratio(compiled.get("median_ms"), step)),
        ("solver, V = 32 000, T = 1, batch 1 (µs)", "≤", 10, solver_us(found, 32_000, 1, 1)),
        ("solver, V = 151 936, T = 4, batch 8 (µs)", "≤", 60, solver_us(found, 151_936, 4, 8)),
        ("joint solver, V = 32 000, T = 4, batch 1 (µs)", "≤", 45, solver_us(found, 32_000, 4, 1, "joint")),
        ("joint solver, V = 32 000, T = 4, batch 64 (µs)", "≤", 300, solver_us(found, 32_000, 4, 64, "joint")),
        ("sampler, top-p, V = 151 936, batch 1 (µs)", "≤", 20, sampler_us(found, 151_936, 1)),
        ("sampler, top-p, V = 151 936, batch 64 (µs)", "≤", 100, sampler_us(found, 151_936, 64)),
        ("13B alone, int8 (ms)", "≤", 3.9, one_of(quantized, "precision", "int8", "median_ms")),
        ("13B alone, int4 (ms)", "≤", 2.5, one_of(quantized, "precision", "int4", "median_ms")),
        ("first token, a new length / again, the slowest of 40", "≤", 1.2, first.get("most")),
        ("fused tokens/s, batch 16", "≥", 1750, one_of(batches, "batch", 16, "tokens_s")),
        ("fused tokens/s, batch 32", "≥", 3500, one_of(batches, "batch", 32, "tokens_s")),
        ("fused tokens/s, batch 64", "≥", 6000, one_of(batches, "batch", 64, "tokens_s")),
        ("speculative / plain fused, greedy", "≤", 0.45, claim(found, "speculative / plain fused, greedy")),
        ("speculative / large alone, greedy", "≤", 0.50, claim(found, "speculative / the large model alone, greedy")),
        ("host waits per token in steady state", "≤", 0, host_waits(small)),
    ]
    return [
        {
            "figure": figure,
            "target": f"{sign} {target:g}",
            "measured": value,
            "reached": None if value is None else (value <= target if sign == "≤" else value >= target),
        }
        for figure, sign, target, value in rows
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def one_line(problem: object) -> str:
    return " ".join(str(problem).split()).replace("|", "/")[:200]


def step_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in found["steps"]:
        name = [str(row.get("shape")), str(row.get("part"))]
        problem = row.get("error") or row.get("skipped")
        if problem:
            rows.append([*name, one_line(problem), "", "", ""])
            continue
        for key in (
            *("fused", "fused, not early", "fused, no graph"),
            *("alone", "alone, not early", "alone, no graph"),
            "loop",
        ):
            times = row.get(key, {})
            if times:
                spread = f"{times['p10_ms']:.3f}–{times['p90_ms']:.3f}"
                shares = [number(times.get("gb_s"), 4), number(times.get("busy_host_ratio"))]
                rows.append([name[0], f"{name[1]}, {key}", f"{times['median_ms']:.3f}", spread, *shares])
    return rows


def serving_parts(found: dict[str, Any]) -> list[str]:
    """Tables of serving.py and of the timer of products."""
    batches, quantized = served(found, "batch").get("rows", []), served(found, "quantized").get("rows", [])
    first, joining = served(found, "first"), served(found, "joining")
    notes = [f"{row['part']}: {one_line(row['error'])}" for row in found["serving"] if "error" in row]
    if first:
        over = first["unseen_over_again"]
        notes.append(
            f"First tokens: a new length takes {over['median']:.3f} of the time of a known one in the median of "
            f"{len(first['lengths'])}, {over['most']:.3f} at most; the very first {first['very_first_ms']:.0f} ms."
        )
    if joining:
        notes.append(
            f"While seven long prompts join, a running request waits at most {joining['longest_gap_ms']:.0f} ms "
            f"for a token, {joining['over_step_and_chunk']:.2f} of a step with one chunk; alone it waits "
            f"{joining['alone']['median_ms']:.2f} ms."
        )
    if "completions_that_differ" in found["speculate"]:
        notes.append(f"Completions that differ with drafts: {found['speculate']['completions_that_differ']}.")
    products: dict[tuple[str, str, int], list[str]] = {}
    for row in found["linear"]:
        times = f"{row['model']} {row['product']} {row['median_us']:.1f}/{row['gb_s']:.0f}"
        products.setdefault((row["weights"], row["way"], row["rows"]), []).append(times)
    return [
        "## Serving",
        "\n".join(f"- {line}" for line in notes) or "- nothing",
        table(
            ["batch", "ms, median", "tokens/s"],
            [[str(row["batch"]), f"{row['median_ms']:.3f}", f"{row['tokens_s']:.0f}"] for row in batches],
        ),
        table(
            ["13B alone", "ms, median", "share of a copy"],
            [[row["precision"], f"{row['median_ms']:.3f}", f"{row['copy_share']:.3f}"] for row in quantized],
        ),
        "## Products (µs/GB/s)",
        table(
            ["weights", "way", "rows", ""],
            [[weights, way, str(count), ", ".join(times)] for (weights, way, count), times in products.items()],
        ),
    ]


def markdown(found: dict[str, Any]) -> str:
    marks = {True: "yes", False: "no", None: ""}
    reached = [
        [f["figure"], f["target"], MISSING if f["measured"] is None else number(f["measured"]), marks[f["reached"]]]
        for f in found["figures"]
    ]
    parts = [
        "# Acceptance run on a GPU",
        "\n".join(f"- {key}: {value}" for key, value in found["machine"].items()) or "- machine: unknown",
        table(["figure", "target", "measured", "reached"], reached),
        "Host waits are 0 by construction: the host queues the next step before it reads the last token. The test "
        "keeps the host busy for 40 % of a step and compares the step's time with the usual one (*busy host*, "
        f"at most {AWAY}); with a wait at every token the ratio would be 1.4.",
        "## Checks",
        table(["step", "", "s"], [[c["name"], c["state"], str(c["seconds"])] for c in found["checks"]]),
        "## One step, batch 1",
        table(["shape", "", "ms, median", "10–90 %", "GB/s", "busy host"], step_rows(found)),
        *(
            f"Device copy beside {row['shape']}: {row['copy_gb_s']:.0f} GB/s read and written; the ratio of bytes, "
            f"fused / alone, is {row['bytes_ratio']:.2f}."
            for row in found["steps"]
            if "copy_gb_s" in row and "bytes_ratio" in row
        ),
        *(
            f"Without early starts of kernels ({row['shape']}), a fused step takes {late['over_usual']:.3f} of the "
            f"usual time; α is {'the same' if late['same_alpha'] else '**different**'}."
            for row in found["steps"]
            if "over_usual" in (late := row.get("fused, not early", {}))
        ),
        *serving_parts(found),
        "## Solver and sampler",
        table(
            ["", "V", "T", "batch", "", "µs, median", "least", "sweeps"],
            [
                [
                    str(row.get("what")),
                    str(row.get("vocab")),
                    str(row.get("experts", "")),
                    str(row.get("batch")),
                    row.get("options") or f"{row.get('combine')}, {row.get('logits')}",
                    f"{row.get('median_us', 0):.2f}",
                    f"{row.get('min_us', 0):.2f}",
                    number(row.get("sweeps")) + ("" if row.get("good", True) else " (a bad model was reported)"),
                ]
                for row in found["solver"]
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the output folder of bench/gpu_acceptance.sh")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        parser.error(f"no folder {folder}")
    found = gather(folder)
    (folder / "gpu-acceptance.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    text = markdown(found)
    (folder / "gpu-acceptance.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
