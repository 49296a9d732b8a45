"""The README and the guide: their code runs, links have targets, and figures are the measured ones.

The Python blocks of a page run in order, in one namespace. A ``text`` block right after one is its output.
A comment before a block limits where it runs: ``<!-- not run: why -->`` or ``<!-- needs cuda -->``.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import dlf
from dlf.cli import app
from dlf.experts import EXPERTS
from dlf.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
RESULTS = ROOT / "bench" / "results"
PAGES = [README, *GUIDE]
SOURCES = "cpp", "dlf", "bench", "tests"
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN, NEEDS_CUDA = "not run: ", "needs cuda"
MAX_WORDS = 1000  # in the README


@dataclass
class Block:
    """Code block of a page, its line, and its output if the page shows it."""

    page: Path
    line: int
    code: str
    mark: str
    printed: str | None

    def run(self, namespace: dict[str, Any]) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * self.line + self.code, self.page, "exec"), namespace)
        if self.printed is not None:
            assert printed.getvalue() == self.printed, f"line {self.line} of {self.page}"


def blocks(page: Path, language: str) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        if found["language"] == language:
            line = text.count("\n", 0, found.start("code"))
            yield Block(page, line, found["code"], found["mark"] or "", found["printed"])


def run_all(chosen: list[Block]) -> None:
    namespace: dict[str, Any] = {}
    try:
        for block in chosen:
            block.run(namespace)
    finally:
        for value in namespace.values():
            if isinstance(value, dlf.Engine):
                value.close()


def name_of(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(blocks(page, "python"))
    assert any(not block.mark or block.mark == NEEDS_CUDA for block in found), "a page has a block that runs"
    run_all([block for block in found if not block.mark])


@pytest.mark.cuda
def test_the_code_for_a_gpu_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = [block for page in PAGES for block in blocks(page, "python") if block.mark == NEEDS_CUDA]
    assert chosen
    run_all(chosen)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_that_is_not_run_says_why_and_calls_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        if block.mark:
            assert block.mark == NEEDS_CUDA or len(block.mark) > len(NOT_RUN) and block.mark.startswith(NOT_RUN)
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.Call):
                    check_call(node)


def check_call(node: ast.Call) -> None:
    """Check that the target of a call of ``dlf.something`` or ``engine.something`` takes its keywords."""
    way = ast.unparse(node.func).split(".")
    found: Any = {"dlf": dlf, "engine": dlf.Engine}.get(way[0])
    for name in way[1:] if found else ():
        found = getattr(found, name)  # raises
    if found is None or len(way) == 1:
        return
    taken = inspect.signature(found).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        assert {keyword.arg for keyword in node.keywords} <= taken.keys(), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_are_there(page: Path) -> None:
    program = typer.main.get_command(app)
    for block in blocks(page, "sh"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["dlf"]:
                check_command(program, words[1:])


def check_command(program: Any, words: list[str]) -> None:
    command = program
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"no command {words[:1]}"
    if not command.context_settings.get("ignore_unknown_options"):
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, f"{command.name}: {words}"


def test_the_recipe_of_the_guide(tmp_path: Path) -> None:
    """The recipe loads, and makes the experts that its comments name."""
    [recipe] = [block.code for block in blocks(ROOT / "docs" / "guide" / "recipes.md", "yaml")]
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n', "utf-8")
    (tmp_path / "models" / "large").mkdir(parents=True)
    found = load_recipe(tmp_path / "recipe.yaml").engine_arguments()
    assert found["large"] == str(tmp_path / "models" / "large")
    assert {type(expert) for expert in found["experts"]} == set(EXPERTS)
    named = re.findall(r"# dlf\.(\w+)", recipe)
    assert named == [type(expert).__name__ for expert in found["experts"]]


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").rglob("*.md"))], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text("utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], anchor


def test_files_that_the_design_names_are_there() -> None:
    names = set(re.findall(r"(?<![*\w/])[\w/]+\.(?:cc|cu|h|py|sh)\b", (ROOT / "docs" / "design.md").read_text("utf-8")))
    names = {name for name in names if Path(name).stem not in ("x", "x_kernel")}  # x stands for any operation
    there = [f"/{path.relative_to(ROOT).as_posix()}" for place in SOURCES for path in (ROOT / place).rglob("*.*")]
    assert not {name for name in names if not any(path.endswith(f"/{name}") for path in there)}


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) <= MAX_WORDS


def rows_of_the_readme() -> dict[str, list[str]]:
    """Return the cells of each row of the README's tables by the row's first cell, without emphasis."""
    lines = README.read_text("utf-8").replace("**", "").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {first: cells for first, *cells in rows}


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def test_the_quality_of_the_readme_was_measured() -> None:
    tables = {table["title"]: table["value, low, high"] for table in result("quality.json")["tables"]}
    single, weights = tables["Single task"], tables["Weights: given or solved"]
    columns = "math", "facts", "mean of seen", "subjects"
    rows = rows_of_the_readme()
    for row, found in {
        "large base": single["large base"],
        "expert alone": single["expert alone"],
        "α = 0.5, the best fixed": weights["α = 0.5"],
        "dynamic": single["dynamic"],
    }.items():
        assert rows[row] == [f"{100 * found[column][0]:.1f}" for column in columns], row
    best = max((name for name in weights if name != "dynamic"), key=lambda name: weights[name]["mean of seen"][0])
    assert best == "α = 0.5"
    tuned = single["large, fine-tuned"]
    assert "gives {:.1f} and {:.1f}.".format(*(100 * tuned[c][0] for c in columns[2:])) in README.read_text("utf-8")


def test_the_times_of_the_readme_were_measured() -> None:
    rows = rows_of_the_readme()
    measured = {(row["name"], row["weights"]): row["median_s"] for row in result("latency-1.1B-143M.json")["rows"]}
    for row, name in {
        "dlf, fused": "dlf",
        "dlf, large model alone": "dlf-large",
        "llama.cpp, all three, no fusion": "llama.cpp",
        "transformers, the paper's loop": "transformers",
    }.items():
        times = [measured.get((name, weights)) for weights in ("bf16", "int8", "int4")]
        assert rows[row] == ["" if time is None else f"{1000 * time:.0f}" for time in times], row

    drafts = [result(name)["claims"][0]["found"] for name in ("speculate-xeon.json", "speculate-nvidia-h200.json")]
    assert "{:.2f} of a plain one on two Xeon cores and {:.2f} on".format(*drafts) in README.read_text("utf-8")


def test_the_times_of_the_readme_on_a_gpu_were_measured() -> None:
    rows = rows_of_the_readme()
    gpu = result("gpu-nvidia-h200.json")

    def newest(what: str) -> list[float]:
        runs = [step for step in gpu["steps"] if step["what"] == what]
        last = max(step["run"] for step in runs)
        return sorted(step["median_ms"] for step in runs if step["run"] == last)

    low, high = newest("13B + 2 x 1.1B fused")
    loops = {loop["way"]: loop["median_ms"] for loop in gpu["transformers"]}
    assert rows["dlf, 13B alone"] == [f"{newest('13B alone')[0]:.2f}"]
    assert rows["dlf, 13B fused with 2 × 1.1B"] == [f"{low:.2f} to {high:.2f}"]
    assert rows["dlf, 13B fused with 2 × 7B"] == [f"{newest('13B + 2 x 7B fused')[0]:.1f}"]
    assert rows["transformers, the paper's loop, compiled"] == [f"{loops['compiled']:.1f}"]
    assert rows["transformers, the paper's loop, eager"] == [f"{loops['eager']:.0f}"]
