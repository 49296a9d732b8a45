"""Gather what bench/gpu_acceptance.sh left in a folder into gpu-acceptance.json and a table, gpu-acceptance.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MISSING = "not measured"
AWAY = 1.1  # slower than this while the host is busy, a step would have waited for it


def read_json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none, or it broke off."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file of JSON lines."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the program was stopped while it wrote
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
        "steps": [read_json(path) for path in sorted(folder.glob("steps-*.json"))],
    }
    found["figures"] = figures(found)
    return found


def part(found: dict[str, Any], shape: str, name: str) -> dict[str, Any]:
    """What steps.py wrote of a shape; empty where it failed."""
    for row in found["steps"]:
        if (row.get("shape"), row.get("part")) == (shape, name) and not {"error", "skipped"} & row.keys():
            return dict(row)
    return {}


def solver_us(found: dict[str, Any], vocab: int, experts: int, batch: int) -> float | None:
    """The slower of both kinds of logits."""
    key = {"what": "solver", "vocab": vocab, "experts": experts, "batch": batch, "combine": "select", "good": True}
    times = [row["median_us"] for row in found["solver"] if all(row.get(k) == v for k, v in key.items())]
    return max(times, default=None)


def host_waits(row: dict[str, Any]) -> float | None:
    ratio = row.get("fused", {}).get("busy_host_ratio")
    return None if ratio is None else float(ratio > AWAY)


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of what is to be reached."""
    small, large = part(found, "13b+1.1b", "dlf"), part(found, "13b+7b", "dlf")
    fused = small.get("fused", {})
    eager = part(found, "13b+1.1b", "eager").get("loop", {})
    compiled = part(found, "13b+1.1b", "compiled").get("loop", {})
    step = fused.get("median_ms")
    rows: list[tuple[str, str, float | None, Callable[[float], bool] | None]] = [
        ("fused step / large alone, 13B + 2 × 1.1B", "≤ 1.20", small.get("fused_over_alone"), lambda x: x <= 1.20),
        ("fused step / large alone, 13B + 2 × 7B", "≤ 2.10", large.get("fused_over_alone"), lambda x: x <= 2.10),
        ("bandwidth of the fused step / a device copy", "≥ 0.85", fused.get("copy_share"), lambda x: x >= 0.85),
        ("solver, V = 32 000, T = 1, batch 1 (µs)", "≤ 10", solver_us(found, 32_000, 1, 1), lambda x: x <= 10),
        ("solver, V = 151 936, T = 4, batch 8 (µs)", "≤ 60", solver_us(found, 151_936, 4, 8), lambda x: x <= 60),
        ("host waits per token in steady state", "0", host_waits(small), lambda x: x == 0),
        ("transformers, eager paper loop / dlf", "≥ 4", ratio(eager.get("median_ms"), step), lambda x: x >= 4),
        ("transformers, static cache and torch.compile / dlf", "", ratio(compiled.get("median_ms"), step), None),
    ]
    return [
        {
            "figure": figure,
            "target": target,
            "measured": value,
            "reached": None if value is None or reached is None else reached(value),
        }
        for figure, target, value, reached in rows
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


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
        for key in ("fused", "fused, early", "fused, no graph", "alone", "alone, early", "alone, no graph", "loop"):
            times = row.get(key, {})
            if times.get("error"):
                rows.append([name[0], f"{name[1]}, {key}", one_line(times["error"]), "", "", ""])
            elif times:
                spread = f"{times['p10_ms']:.3f}–{times['p90_ms']:.3f}"
                shares = [number(times.get("gb_s"), 4), number(times.get("busy_host_ratio"))]
                rows.append([name[0], f"{name[1]}, {key}", f"{times['median_ms']:.3f}", spread, *shares])
    return rows


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
        "Host waits are 0 by construction: the next step is queued before the host looks at the last one. What is "
        "measured is that a step takes no longer while the host is away for 40 % of it (*busy host*, "
        f"at most {AWAY}); with a wait in every token it would be 1.4.",
        "## Checks",
        table(["step", "", "s"], [[c["name"], c["state"], str(c["seconds"])] for c in found["checks"]]),
        "## One step, batch 1",
        table(["shape", "", "ms, median", "10–90 %", "GB/s", "busy host"], step_rows(found)),
        *(
            f"Device copy beside {row['shape']}: {row['copy_gb_s']:.0f} GB/s read and written; bytes alone give "
            f"{row['bytes_ratio']:.2f} for fused / alone."
            for row in found["steps"]
            if "copy_gb_s" in row and "bytes_ratio" in row
        ),
        *(
            f"Kernels that start early ({row['shape']}): a fused step takes {early['over_usual']:.3f} of the usual "
            f"time; α is {'the same' if early['same_alpha'] else '**another**'}."
            for row in found["steps"]
            if "over_usual" in (early := row.get("fused, early", {}))
        ),
        "## Solver and sampler",
        table(
            ["", "V", "T", "batch", "", "µs, median", "least", "passes"],
            [
                [
                    str(row.get("what")),
                    str(row.get("vocab")),
                    str(row.get("experts", "")),
                    str(row.get("batch")),
                    row.get("options") or f"{row.get('combine')}, {row.get('logits')}",
                    f"{row.get('median_us', 0):.2f}",
                    f"{row.get('min_us', 0):.2f}",
                    number(row.get("passes")) + ("" if row.get("good", True) else " (a bad model was reported)"),
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
