"""The tables of ``python -m bench quality``: their arithmetic on known scores, and one whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from bench.family import corpus
from bench.quality import studies, systems
from bench.quality.estimate import DRAWS, Estimate, mean
from bench.quality.evaluate import Scorer
from bench.quality.findings import findings
from bench.quality.run import main
from bench.quality.tables import Column, Row, Table, filled, written
from dlf import zoo

TASKS = Path(__file__).parents[1] / "bench" / "family" / "tasks"


def scores(share: float, count: int = 400, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    found = Estimate.of(scores(0.3), "items")
    low, high = found.interval()
    deviation = np.sqrt(found.value * (1 - found.value) / 400)
    assert found.draws.shape == (DRAWS,)
    assert low == pytest.approx(found.value - 1.96 * deviation, abs=0.004)
    assert high == pytest.approx(found.value + 1.96 * deviation, abs=0.004)


def test_differences_are_of_the_same_items():
    one = scores(0.5)
    better = one.copy()
    better[np.flatnonzero(one == 0)[:20]] = 1  # right wherever `one` is, and on 20 items more
    difference = Estimate.of(better, "items") - Estimate.of(one, "items")
    low, high = difference.interval()
    assert difference.value == pytest.approx(0.05) and 0.025 < low < 0.05 < high < 0.075
    assert (Estimate.of(one, "items") - Estimate.of(one, "items")).interval() == (0, 0)
    apart = Estimate.of(better, "items") - Estimate.of(one, "other items")
    assert np.ptp(apart.interval()) > 2 * np.ptp(difference.interval())


def test_ratios_and_means():
    half, most = Estimate.of(scores(0.5), "a"), Estimate.of(scores(0.8), "a")
    assert (half / most).value == pytest.approx(half.value / most.value)
    together = mean([half, Estimate.of(scores(0.8), "b")])
    assert together.value == pytest.approx((half.value + most.value) / 2)
    assert np.ptp(together.interval()) < np.ptp(half.interval())
    assert not np.isfinite((half / Estimate.of(np.zeros(400), "a")).value)
    assert written(None) == written(half / Estimate.of(np.zeros(400), "a")) == "–"


def test_a_table_has_both_figures_of_the_gap():
    known = {"base": 0.2, "tuned": 0.7, "fused": 0.6}
    right = {key: np.arange(10) < round(10 * share) for key, share in known.items()}
    scorer = Scorer(Path("unused"), known={(key, "t"): one.astype(np.float64) for key, one in right.items()})
    rows = {key: Row(key, {"t": [key]}) for key in [*known, "missing"]}
    column = Column("t", ("t",))
    table = filled(Table("T", [column], list(rows.values()), rows["base"], rows["tuned"], column), scorer)
    assert table.headings == ["t", "of fine-tuned", "of the gap"]
    values = [None if cell is None else round(cell.value, 6) for cell in table.cells[2]]
    assert values == [0.6, round(6 / 7, 6), 0.8]
    assert table.cells[3] == [None, None, None]
    assert "| fused | 60.0 ± " in table.as_markdown() and "| missing | – | – | – |" in table.as_markdown()
    assert table.as_json()["value, low, high"]["missing"] == {}
    # Without an upper bound the gap has no scale.
    assert filled(Table("T", [column], list(rows.values()), rows["base"]), scorer).headings == ["t"]


def test_a_row_of_several_systems_is_their_mean_for_each_item():
    scorer = Scorer(Path("unused"), known={("a", "t"): np.array([0.0, 1.0]), ("b", "t"): np.array([1.0, 1.0])})
    row = Row("both", {"t": ["a", "b"]})
    table = filled(Table("T", [Column("t", ("t",))], [row], row), scorer)
    assert table.cells[0][0] is not None and table.cells[0][0].value == 0.75


def test_every_table_of_the_family_can_be_filled_and_its_claims_computed():
    lineup = systems.family(zoo.FOLDER, Path("somewhere"), {})
    tables = studies.family_tables()
    wanted = studies.wanted(tables, lineup)
    assert {key for key, _, _ in wanted} == set(lineup.systems)
    rng = np.random.default_rng(0)
    scorer = Scorer(Path("unused"))
    for key, _, tasks in wanted:
        for task in tasks:
            scorer.known[key, task] = rng.random(50).round()
    found = [filled(table, scorer) for table in tables]
    assert all(cell is not None for table in found for row in table.cells for cell in row)
    claims = findings(found)
    assert len(claims) == 8 + len(corpus.SEEN)
    assert all(np.isfinite(claim.found.value) for claim in claims)


RECIPE = """\
large: {zoo}/large-base
base: {zoo}/small-base
experts: [{{model: {zoo}/facts-expert}}, {{model: {zoo}/math-expert}}]
engine: {{threads: 1}}
"""


def test_a_recipe_through_tasks_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(zoo=zoo.FOLDER))
    arguments = {
        "recipe": recipe,
        "tasks": "dlf_truths",
        "include_path": TASKS,
        "tuned": str(zoo.path("truths-expert")),
        "family": tmp_path,
        "models": zoo.FOLDER,
        "limit": 2,
        "batch": 4,
        "threads": 1,
        "work": tmp_path / "work",
        "output": tmp_path / "found",
    }
    main(**arguments)
    found = json.loads((tmp_path / "found.json").read_text())
    titles = [table["title"] for table in found["tables"]]
    assert titles == ["facts-expert", "math-expert", "All experts at once"]
    together = found["tables"][2]["value, low, high"]
    assert {"large base", "large, fine-tuned", "facts-expert alone", "`select`", "`centroid`", "`joint`"} <= set(
        together
    )
    assert all(len(row["dlf_truths"]) == 3 for row in together.values())
    kept = sorted((tmp_path / "work").glob("*.json"))
    before = [file.stat().st_mtime_ns for file in kept]
    main(**arguments)  # runs nothing again
    assert [file.stat().st_mtime_ns for file in kept] == before


def test_scores_do_not_depend_on_who_scores(tmp_path: Path):
    """Scores in this process and in two others are equal and are kept under the same names."""
    lineup = systems.family(zoo.FOLDER, None, {"threads": 1, "max_batch": 4})
    wanted = [(key, lineup.systems[key], ["dlf_facts", "dlf_truths"]) for key in ("base", "facts/dynamic")]
    found = []
    for workers in (1, 2):
        scorer = Scorer(tmp_path / f"{workers}", TASKS, 6, workers)
        with Progress(disable=True) as progress:
            scorer.run(wanted, progress)
        found.append({pair: scores.tolist() for pair, scores in scorer.known.items()})
        kept = {file.name for file in (tmp_path / f"{workers}").iterdir()}
        assert len(kept) == 4 and kept == {file.name for file in (tmp_path / "1").iterdir()}
    assert found[0] == found[1] and any(sum(scores) for scores in found[0].values())


def test_what_goes_wrong_is_said(tmp_path: Path):
    scorer = Scorer(tmp_path, tmp_path, 2)
    lineup = systems.family(zoo.FOLDER, None, {"threads": 1})
    with pytest.raises(Exception, match="no_such_task"), Progress(disable=True) as progress:
        scorer.run([("base", lineup.systems["base"], ["no_such_task"])], progress)
    known = Scorer(tmp_path, TASKS)
    assert known.knows("dlf_math") and not known.knows("no_such_task")
    recipe = tmp_path / "same.yaml"
    recipe.write_text(RECIPE.format(zoo=zoo.FOLDER).replace("math-expert", "facts-expert"))
    with pytest.raises(ValueError, match="have the same name"):
        systems.of_recipe(recipe, None, {})
