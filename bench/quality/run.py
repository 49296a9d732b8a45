"""The command ``python -m bench quality``: its models, tasks and output files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.family.build import WORK as FAMILY
from bench.machine import DEVICE_HELP, card_of, describe, file_name
from bench.quality import studies, systems
from bench.quality.estimate import Floats
from bench.quality.evaluate import Scorer
from bench.quality.findings import Finding, findings
from bench.quality.tables import Filled, filled, written
from dlf import zoo

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results"
TASKS = Path(__file__).parents[1] / "family" / "tasks"
TUNED = RESULTS / "quality-tuned.json"
WORK = Path("build/quality")
WIDE = 130  # columns of a terminal that fit every figure with its interval


def main(
    recipe: Annotated[Path | None, typer.Option(help="Recipe of models, instead of the miniature family.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness, separated by commas; for a recipe.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder of more task files; for a recipe.")] = None,
    tuned: Annotated[
        str | None, typer.Option(help="The fine-tuned large model, as the upper bound; for a recipe.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of the family's bases and experts.")] = zoo.FOLDER,
    family: Annotated[Path, typer.Option(help="Folder of the family's fine-tuned large models, if any.")] = FAMILY,
    limit: Annotated[int | None, typer.Option(help="Most items of each task.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences to decode at once.")] = 32,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of every engine.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that score; with several, engines have one thread. "
            "By default one per core for the family without --threads and on a CPU, else 1."
        ),
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of scores, from which an interrupted run continues.")] = WORK,
    output: Annotated[Path | None, typer.Option(help="Where to write NAME.json, NAME.md and plots.")] = None,
) -> None:
    """Score large models fused with small ones, and fill the paper's tables."""
    options: dict[str, Any] = {"max_batch": batch, "threads": threads or torch.get_num_threads()}
    card = card_of(device)
    if card is not None:  # without it, the names of scores from a CPU stay the same
        options["device"] = device
    small = recipe is None and threads is None and card is None
    workers = workers or (torch.get_num_threads() if small else 1)
    if recipe is None:
        if tasks or tuned or include_path:
            raise typer.BadParameter("--tasks, --tuned and --include-path are for --recipe")
        own = family if (family / "multi-tuned" / "made.json").exists() else None
        kept = _kept(limit) if own is None else {}
        lineup = systems.family(models, own, options)
        tables, scorer = studies.family_tables(), Scorer(work, TASKS, limit, workers, kept)
    else:
        chosen = [task.strip() for task in tasks.split(",") if task.strip()]
        if not chosen:
            raise typer.BadParameter("--recipe needs --tasks, such as --tasks gsm8k,truthfulqa_mc1")
        try:
            lineup = systems.of_recipe(recipe, tuned, options)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
        tables, scorer = studies.recipe_tables(lineup, chosen), Scorer(work, include_path, limit, workers)
        if missing := [task for task in chosen if not scorer.knows(task)]:
            raise typer.BadParameter(f"--tasks: there is no {missing[0]!r}; lm-eval ls tasks lists them")
    console = Console()
    if card is not None:
        console.print(f"on {card.name}", highlight=False)
    bars = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*bars, console=Console(file=sys.stderr), transient=True) as progress:
        scorer.run(studies.wanted(tables, lineup), progress)
    found = [filled(table, scorer) for table in tables]
    for table in found:
        console.print(_shown(table, console.width))
    claims = findings(found) if recipe is None and _whole(found) else []
    if claims:
        console.print(_claims(claims))
    place = output or (RESULTS / file_name("quality", device) if recipe is None and limit is None else None)
    if place is None:
        return
    result: dict[str, Any] = {"limit": limit, "tables": [table.as_json() for table in found]}
    result["findings"] = {one.title: one.as_json() for one in claims}
    text = "\n".join(table.as_markdown() for table in found)
    place.parent.mkdir(parents=True, exist_ok=True)
    if recipe is None:
        from bench.quality import objective, plot

        with console.status("Objective and plots"):
            result["objective"] = objective.compare(models, options["threads"])
            plot.plot_traces(models, Path(f"{place}-alpha.png"), options["threads"])
            plot.plot_tables(found[:2], Path(f"{place}.png"))
        if own is not None and limit is None:
            _keep(scorer)
    result["machine"] = describe({"torch": torch.__version__}, options["threads"], device)
    Path(f"{place}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    Path(f"{place}.md").write_text(text, encoding="utf-8")
    console.print(f"written to {place}.json and {place}.md")


def _kept(limit: int | None) -> dict[tuple[str, str], Floats]:
    """Scores of the fine-tuned large models, whose weights do not ship."""
    known = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    return {
        (key, task): np.array(scores, np.float64)[:limit]
        for key, tasks in known.items()
        for task, scores in tasks.items()
    }


def _keep(scorer: Scorer) -> None:
    known: dict[str, dict[str, list[float]]] = {}
    for (key, task), scores in scorer.known.items():
        if key.startswith("tuned/"):
            known.setdefault(key, {})[task] = [
                round(score, 4) if score % 1 else int(score) for score in scores.tolist()
            ]
    TUNED.write_text(json.dumps(known, separators=(",", ":")) + "\n")


def _whole(tables: list[Filled]) -> bool:
    """Whether every figure could be computed; some need the fine-tuned large models."""
    return all(cell is not None for table in tables[:2] for row in table.cells for cell in row)


def _shown(filled: Filled, width: int) -> Table:
    """The figures in percent, with their intervals if the terminal is wide enough."""
    table = Table(title=filled.table.title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.caption, table.caption_justify = filled.table.note or None, "left"
    wide = width >= WIDE
    table.add_column("")
    for heading in filled.headings:
        narrow = heading.replace(" ", "\n").replace("-", "-\n")
        table.add_column(heading if wide else narrow, justify="right", no_wrap=True)
    for row, cells in zip(filled.table.rows, filled.cells, strict=True):
        figures = map(written, cells)
        table.add_row(row.title.replace("`", ""), *(one if wide else one.partition(" ")[0] for one in figures))
    return table


def _claims(found: list[Finding]) -> Table:
    table = Table(title="The paper's claims here", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("", "found", "95 %", "wanted", ""):
        table.add_column(heading, justify="right" if heading in ("found", "95 %") else "left")
    for one in found:
        low, high = one.found.interval()
        table.add_row(
            one.title.replace("`", ""),
            f"{one.found.value:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{one.kind} {one.bound:g}",
            "[green]yes[/]" if one.holds else "[red]no[/]",
        )
    return table
