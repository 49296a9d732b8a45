"""The paper's tables, and some more."""

from __future__ import annotations

from collections.abc import Sequence

from bench.family import corpus
from bench.family.build import MULTI
from bench.quality.systems import ALPHAS, DYNAMIC, MODES, SHOTS, Lineup, System
from bench.quality.tables import Column, Row, Table

__all__ = ["family_tables", "recipe_tables", "wanted"]

TASKS = {name: f"dlf_{name}" for name in corpus.TASKS}
SEEN = tuple(TASKS[name] for name in corpus.SEEN)
UNSEEN = TASKS[corpus.UNSEEN]
SEEN_MEAN, ALL_MEAN = Column("mean of seen", SEEN), Column("mean of all", (*SEEN, UNSEEN))


def family_tables() -> list[Table]:
    """The tables of the miniature family."""
    columns = [Column(name, (task,)) for name, task in TASKS.items()]
    base, tuned = _everywhere("large base", "base"), _single("large, fine-tuned", "tuned/{}")
    expert, dynamic = _single("expert alone", "expert/{}"), _single("dynamic", f"{{}}/{DYNAMIC}")
    fixed = {alpha: _single(f"α = {alpha:g}", f"{{}}/{alpha}") for alpha in ALPHAS}
    one_task = {"columns": [*columns, SEEN_MEAN, ALL_MEAN], "base": base, "tuned": tuned, "against": SEEN_MEAN}
    unseen = f"`{corpus.UNSEEN}`, which no expert was trained on, is the mean over the {len(SEEN)} experts."
    multi = _everywhere("large, multi-task fine-tuned", f"tuned/{MULTI}")
    several = {"columns": [*columns, SEEN_MEAN, ALL_MEAN], "base": base, "tuned": multi, "against": ALL_MEAN}
    alone = [_everywhere(f"{name} expert alone", f"expert/{name}") for name in (*corpus.SEEN, MULTI)]
    modes = [_everywhere(f"`{mode}`", f"all/{mode}") for mode in MODES]
    shown = [Column(name, (TASKS[name],)) for name in corpus.SEEN]
    return [
        Table("Single task", rows=[base, tuned, expert, fixed[1.0], dynamic], note=unseen, **one_task),
        Table(
            "Several experts at once",
            rows=[
                base,
                multi,
                *alone,
                _everywhere("α = 1 / T for all", "all/1.0"),
                *modes,
                _everywhere("multi-task expert, α = 1", f"{MULTI}/1.0"),
                _everywhere("multi-task expert, dynamic", f"{MULTI}/{DYNAMIC}"),
            ],
            **several,
        ),
        Table("Weights: given or solved", rows=[*fixed.values(), dynamic], **one_task),
        Table(
            "What is matched",
            rows=[
                _single("`symmetric`", f"{{}}/{DYNAMIC}"),
                _single("`forward`", "{}/forward"),
                _single("`reverse`", "{}/reverse"),
            ],
            **one_task,
        ),
        Table(
            "How the weight is found",
            rows=[_single("exact solver", f"{{}}/{DYNAMIC}"), _single("the paper's grid", "{}/grid")],
            **one_task,
        ),
        Table(
            "Examples in place of fine-tuning",
            rows=[
                base,
                _single(f"large base, {SHOTS} examples", "shots-large/{}"),
                _single(f"small base, {SHOTS} examples", "shots-small/{}"),
                _single("large base, fused with the small one's examples", "shots-fused/{}"),
                _single("both: the large base reads the examples too", "shots-both/{}"),
            ],
            note="The bases have read no text longer than 256 tokens; two reports with their summaries are longer.",
            **{**one_task, "columns": [*shown, SEEN_MEAN]},
        ),
        Table(
            "Experts merged by task arithmetic",
            rows=[
                base,
                _everywhere("merged, alone", "merged/alone"),
                _everywhere("merged, fused", "merged/fused"),
                modes[0],
            ],
            **several,
        ),
    ]


def _everywhere(title: str, system: str) -> Row:
    return Row(title, {task: [system] for task in TASKS.values()})


def _single(title: str, pattern: str) -> Row:
    """A row with each task's own expert; for the task without one, all experts."""
    own = {TASKS[name]: [pattern.format(name)] for name in corpus.SEEN}
    return Row(title, own | {UNSEEN: [pattern.format(name) for name in corpus.SEEN]})


def recipe_tables(lineup: Lineup, tasks: Sequence[str]) -> list[Table]:
    """The tables of a recipe: one for each expert alone, one for all together."""
    average = Column("mean", tuple(tasks))
    columns = [*(Column(task, (task,)) for task in tasks), *([average] if len(tasks) > 1 else [])]

    def row(key: str) -> Row:
        return Row(lineup.systems[key].title, {task: [key] for task in tasks})

    base = row("base")
    tuned = row("tuned/recipe") if "tuned/recipe" in lineup.systems else None
    common = {"columns": columns, "base": base, "tuned": tuned, "against": average}
    first = [base, *([tuned] if tuned else [])]

    def rows(name: str) -> list[Row]:
        own = [f"expert/{name}"] if f"expert/{name}" in lineup.systems else []
        return [row(key) for key in [*own, *(key for key in lineup.systems if key.startswith(f"{name}/"))]]

    tables = [Table(f"{name}", rows=[*first, *rows(name)], **common) for name in lineup.experts]
    if len(lineup.experts) > 1:
        alone = [row(f"expert/{name}") for name in lineup.experts if f"expert/{name}" in lineup.systems]
        tables.append(Table("All experts at once", rows=[*first, *alone, *rows("all")], **common))
    return tables


def wanted(tables: Sequence[Table], lineup: Lineup) -> list[tuple[str, System, list[str]]]:
    """The systems that the tables need, each with its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for table in tables:
        shown = {task for column in table.columns for task in column.tasks}
        for row in table.rows:
            for task, keys in row.systems.items():
                for key in keys if task in shown else ():
                    tasks.setdefault(key, {})[task] = None
    return [(key, system, list(tasks[key])) for key, system in lineup.systems.items() if key in tasks]
