"""The command ``python -m bench weights``: rules on development items, and chosen ones on test items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.console import Console

from bench.family import corpus
from bench.family.build import MULTI
from bench.family.problem import Split
from bench.machine import describe
from bench.quality.estimate import Estimate, Floats, mean
from bench.weights.answers import Choices, Generated
from bench.weights.models import Trio
from bench.weights.rules import candidates
from dlf import zoo

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results"
Scores = dict[str, dict[str, Floats]]  # by rule and task
AGAINST = "α = "  # how the names of fixed weights begin


def main(
    rules: Annotated[str, typer.Option(help="Rules, separated by semicolons; all by default.")] = "",
    split: Annotated[str, typer.Option(help="Items: dev or test.")] = "dev",
    multi: Annotated[bool, typer.Option(help="Take the expert of all tasks in place of each task's own.")] = False,
    limit: Annotated[int, typer.Option(help="Most items of each task.")] = corpus.HELD_OUT,
    threads: Annotated[int, typer.Option(help="Threads.")] = 1,
    models: Annotated[Path, typer.Option(help="Folder of the family.")] = zoo.FOLDER,
    output: Annotated[Path, typer.Option(help="JSON file that gets this table beside those it has.")] = RESULTS
    / "weights.json",
) -> None:
    """Score rules for the weight of one expert on the miniature family."""
    if split not in get_args(Split):
        raise typer.BadParameter(f"--split: {split!r} is not dev or test")
    known = candidates()
    chosen = [name.strip() for name in rules.split(";") if name.strip()] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"--rules: no rule is called {unknown[0]!r}; they are: {'; '.join(known)}")
    torch.set_num_threads(threads)
    console = Console()
    scores: Scores = {name: {} for name in chosen}
    for task in corpus.TASKS:
        experts = [MULTI] if multi else [task] if task in corpus.SEEN else corpus.SEEN
        found: dict[str, list[Floats]] = {name: [] for name in chosen}
        for expert in experts:
            one = _answers(models, task, expert, split, limit)
            made = candidates()
            for name in chosen:
                found[name].append(one.scores(made[name]))
                console.print(f"{task}, {expert} expert, {name}: {100 * found[name][-1].mean():.1f}", highlight=False)
        for name in chosen:
            scores[name][task] = np.mean(found[name], axis=0)
    title = f"{split} items, {'the expert of all tasks' if multi else 'own experts'}"
    tables = json.loads(output.read_text()) if output.exists() else {}
    tables[title] = {"limit": limit, "value, low, high": _figures(scores)}
    tables[title]["machine"] = describe({"torch": torch.__version__}, threads)
    output.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "\n".join(f"### {name}\n\n{_markdown(table['value, low, high'])}" for name, table in tables.items())
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    console.print(f"written to {output}")


def _answers(models: Path, task: str, expert: str, split: Any, limit: int) -> Generated | Choices:
    from bench.family.tasks import data

    score = {"math": data.last_number, "facts": data.last_word, "reports": data.rouge2}
    trio, problems = Trio(models, expert), corpus.held_out(task, limit, split)
    return Generated(trio, problems, score[task]) if task in score else Choices(trio, problems)


def _figures(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """The score of each rule and its difference to the best fixed weight of each task, with 95 % intervals."""
    found = {name: {task: Estimate.of(one, task) for task, one in tasks.items()} for name, tasks in scores.items()}
    fixed = [tasks for name, tasks in found.items() if _is_fixed(name)]
    table = {}
    for name, tasks in found.items():
        columns = {**tasks, "mean": mean(list(tasks.values()))}
        if fixed:
            for task, one in tasks.items():
                columns[f"{task} − best α"] = one - max((each[task] for each in fixed), key=lambda e: e.value)
        table[name] = {
            title: [round(number, 5) for number in (one.value, *one.interval())] for title, one in columns.items()
        }
    return table


def _is_fixed(name: str) -> bool:
    return name.startswith(AGAINST) and name.removeprefix(AGAINST).replace(".", "").isdigit()


def _markdown(table: dict[str, dict[str, list[float]]]) -> str:
    titles = [*corpus.TASKS, "mean"]
    lines = [["rule", *titles], ["---", *["---:"] * len(titles)]]
    for name, columns in table.items():
        figures = (columns[title] for title in titles)
        lines.append([name, *(f"{100 * value:.1f} ± {50 * (high - low):.1f}" for value, low, high in figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
