"""The demonstration: four ways to answer held-out problems, side by side."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dlf.plot import MATPLOTLIB_HINT, alpha_legend, alpha_line, check_place, plot_alpha
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf import Completion, Engine, Piece
    from dlf.zoo import Problem

__all__ = ["extract_answer", "is_correct", "run_demo", "systems"]

ANSWER = re.compile(r"####[ \t]*([^\n]*)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
FIRST = re.compile(r"\.(?:\s|$)|\n")  # the end of a sentence
DEFAULT_PLOT = Path("dlf-demo.png")
BATCH = 8
CHUNK = 4 * BATCH  # long enough to keep the batch full, short enough for the progress bar to move


@dataclass
class System:
    """One way to answer, and its results."""

    key: str
    title: str
    open: Callable[[], Engine]
    shown: list[Completion] = field(default_factory=list)
    pieces: list[list[Piece]] = field(default_factory=list)
    correct: int = 0
    total: int = 0
    tokens: int = 0
    seconds: float = 0.0
    alphas: list[float] = field(default_factory=list)

    @property
    def single_rate(self) -> float | None:
        """Tokens per second of one sequence alone: the fastest, which a busy machine disturbed least."""
        return max((completion.timings.tokens_per_second for completion in self.shown), default=0.0) or None

    def summary(self) -> dict[str, Any]:
        """Results as JSON values."""
        return {
            "accuracy": self.correct / self.total if self.total else None,
            "correct": self.correct,
            "total": self.total,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds > 0 else None,
            "tokens_per_second_single": self.single_rate,
            "mean_alpha": statistics.fmean(self.alphas) if self.alphas else None,
        }


def extract_answer(text: str) -> str | None:
    """Return what follows the first ``####``, without the full stop and the commas of large numbers, or None."""
    found = ANSWER.search(text)
    return _normalized(found[1]) if found else None


def _normalized(answer: str) -> str:
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", answer.strip())
    return answer.rstrip(".").rstrip()


def is_correct(text: str, answer: str) -> bool:
    """Whether a completion's answer is the given one, which may be written with its ``####`` or without.

    A completion without ``####``, which only fine-tuning teaches, answers with its last number, or, if a word is asked
    for, with the last word of its first sentence.
    """
    expected = extract_answer(answer) if "####" in answer else _normalized(answer)
    found = extract_answer(text)
    if found is None and expected:
        number = NUMBER.fullmatch(expected)
        said = NUMBER.findall(_normalized(text)) if number else FIRST.split(text.strip())[0].split()
        found = said[-1] if said else None
    return found == expected


def systems(task: str, find: Callable[[str], Path], **options: Any) -> list[System]:
    """Ways to answer the problems of a task; `find` returns the folder of a model.

    Options are those of `dlf.Engine`.
    """
    import dlf

    large, base, expert = (str(find(name)) for name in ("large-base", "small-base", f"{task}-expert"))
    pair = dlf.Expert(expert, base=base)

    def opener(model: str, **fusion: Any) -> Callable[[], Engine]:
        return lambda: dlf.Engine(model, max_batch=BATCH, **fusion, **options)

    return [
        System("large", "large alone", opener(large)),
        System("expert", "expert alone", opener(expert)),
        System("static", "α = 1", opener(large, experts=[pair], combine="static", alpha=[1.0])),
        System("dynamic", "dynamic", opener(large, experts=[pair])),
    ]


def run_demo(
    task: str = "math",
    problems: int = 200,
    *,
    show: int = 2,
    max_new_tokens: int = 128,
    options: dict[str, Any] | None = None,
    plot: Path | None = None,
    as_json: bool = False,
) -> None:
    """Answer held-out problems in four ways and print the results.

    Parameters
    ----------
    task : str
        Name of the task, which has problems and an expert.
    problems : int
        Number of problems to score.
    show : int
        Number of the first problems to print side by side.
    max_new_tokens : int
        Most tokens of an answer.
    options : dict, optional
        Options of every `dlf.Engine`.
    plot : path, optional
        File for the alpha trace of the first problem; by default ``dlf-demo.png``, or none with `as_json`.
    as_json : bool
        Print one JSON object instead.
    """
    from dlf import zoo

    chosen = list(zoo.problems(task))[:problems]
    if not chosen:
        raise ValueError(f"there are no problems for the task {task!r}")
    if plot is not None:
        check_place(plot)
    ways = systems(task, zoo.path, **(options or {}))
    console = Console(highlight=False, quiet=as_json)
    with ExitStack() as stack:
        engines = [stack.enter_context(system.open()) for system in ways]
        # The plot and the speed of one sequence need a problem even if none is printed.
        for number, problem in enumerate(chosen[: max(show, 1)]):
            for system, engine in zip(ways, engines, strict=True):
                _answer_one(system, engine, problem, max_new_tokens)
            if number < show:
                _print_problem(console, ways, problem, number)
        _score(ways, engines, chosen, max_new_tokens)
        cards = engines[0].memory.cards
    _print_results(console, ways, task, len(chosen), cards)
    saved = _save_plot(console, ways[-1], plot, wanted=not as_json or plot is not None)
    if as_json:
        typer.echo(json.dumps(_report(ways, chosen[:show], task, saved, cards)))


def _answer_one(system: System, engine: Engine, problem: Problem, max_new_tokens: int) -> None:
    pieces: list[Piece] = []
    completion = engine.generate(problem.prompt, callback=pieces.append, progress=False, max_new_tokens=max_new_tokens)
    system.shown.append(completion)
    system.pieces.append(pieces)


def _score(systems: Sequence[System], engines: Sequence[Engine], problems: Sequence[Problem], limit: int) -> None:
    """Answer all problems in batches and count the correct ones."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(problems) * len(systems))
        for system, engine in zip(systems, engines, strict=True):
            progress.update(bar, description=f"{system.title:12}")
            for first in range(0, len(problems), CHUNK):
                chunk = problems[first : first + CHUNK]
                begin = time.perf_counter()
                prompts = [problem.prompt for problem in chunk]
                completions = engine.generate(prompts, progress=False, max_new_tokens=limit)
                system.seconds += time.perf_counter() - begin
                for problem, completion in zip(chunk, completions, strict=True):
                    system.correct += is_correct(completion.text, problem.answer)
                    system.total += 1
                    system.tokens += len(completion.tokens)
                    if completion.alpha.size:
                        system.alphas.extend(completion.alpha.sum(axis=-1).tolist())
                progress.advance(bar, len(chunk))


def _print_problem(console: Console, systems: Sequence[System], problem: Problem, number: int) -> None:
    heading = Text(f"Problem {number + 1}", style="bold").append("  expected answer: ").append(str(problem.answer))
    console.print(heading)
    console.print(Panel(Text(printable(problem.prompt.strip(), lines=True)), border_style="dim"))
    columns = 4 if console.width >= 110 else 2 if console.width >= 56 else 1
    grid = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    panels = [_answer_panel(system, problem, number) for system in systems]
    for first in range(0, len(panels), columns):
        grid.add_row(*panels[first : first + columns])
    console.print(grid)
    dynamic = systems[-1]
    title = Text("dynamic: α at each token")
    body = Group(alpha_line(dynamic.pieces[number], console.width - 4), Text(), alpha_legend())
    console.print(Panel(body, title=title, title_align="left", border_style="dim"))
    console.print()


def _answer_panel(system: System, problem: Problem, number: int) -> Panel:
    text = system.shown[number].text
    right = is_correct(text, problem.answer)
    colour = "green" if right else "red"
    title = Text(f"{system.title} {'✓' if right else '✗'}", style=f"bold {colour}")
    return Panel(
        Text(printable(text.strip(), lines=True) or "(nothing)"), title=title, title_align="left", border_style=colour
    )


def _print_results(
    console: Console, systems: Sequence[System], task: str, count: int, cards: Mapping[str, str]
) -> None:
    where = "".join(f", {name}" for name in cards.values())
    title = Text(f"{task}: {count} held-out problem{'s' * (count != 1)}{where}")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "correct", "mean α", f"tokens/s, batch of {BATCH}", "tokens/s, one sequence"):
        table.add_column(heading, justify="right")
    best = max(system.correct for system in systems)
    for system in systems:
        found = system.summary()
        table.add_row(
            system.title,
            f"{found['accuracy']:.1%}",
            f"{system.correct}/{system.total}",
            "-" if found["mean_alpha"] is None else f"{found['mean_alpha']:.2f}",
            *(_rate(found[key]) for key in ("tokens_per_second", "tokens_per_second_single")),
            style="bold" if system.correct == best else None,
        )
    console.print(table)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _save_plot(console: Console, dynamic: System, path: Path | None, wanted: bool) -> Path | None:
    """Save the trace of the first problem; without matplotlib print how to get it, or raise if a path was given."""
    if not wanted:
        return None
    target = path or DEFAULT_PLOT
    texts = [piece.text for piece in dynamic.pieces[0]]
    try:
        plot_alpha(dynamic.shown[0], target, texts, title="dynamic fusion: α at each token of problem 1")
    except ImportError:
        if path is not None:
            raise
        console.print(MATPLOTLIB_HINT, markup=False)
        return None
    console.print(printable(f"α trace of problem 1 saved to {target}"), markup=False, soft_wrap=True)
    return target


def _report(
    systems: Sequence[System], shown: Sequence[Problem], task: str, plot: Path | None, cards: Mapping[str, str]
) -> dict[str, Any]:
    examples = []
    for number, problem in enumerate(shown):
        dynamic = systems[-1]
        outputs = {
            system.key: {
                "text": system.shown[number].text,
                "correct": is_correct(system.shown[number].text, problem.answer),
            }
            for system in systems
        }
        examples.append(
            {
                "prompt": problem.prompt,
                "answer": problem.answer,
                "outputs": outputs,
                "tokens": [piece.text for piece in dynamic.pieces[number]],
                "alpha": np.asarray(dynamic.shown[number].alpha, dtype=np.float64).tolist(),
            }
        )
    return {
        "task": task,
        "cards": dict(cards),
        "problems": systems[0].total,
        "systems": {system.key: system.summary() for system in systems},
        "examples": examples,
        "plot": None if plot is None else str(plot),
    }
