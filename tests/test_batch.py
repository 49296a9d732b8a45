"""Batches in one process: rows, results, and going on after an interruption."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dlf
from dlf import batch
from dlf.batch import lines
from dlf.batch.answers import Answerer
from dlf.batch.prompts import Row, look_through, reader_of
from dlf.cli import app
from dlf.replicas.deploy import Replicas, deploy
from dlf.server import Served, ServerSettings, Service

OPTIONS: dict[str, Any] = {"threads": 1, "max_context": 96}
WORDS = "question what is the sum of lazy dog why plus".split()


@pytest.fixture(scope="module")
def recipe(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    experts = [{"model": str(family[f"expert-{name}"]), "name": name} for name in "ab"]
    content = {"large": str(family["large"]), "base": str(family["base"]), "experts": experts}
    found = tmp_path_factory.mktemp("recipe") / "pair.yaml"
    found.write_text(json.dumps(content | {"sampling": {"max_new_tokens": 6}}))  # JSON is YAML
    return found


@pytest.fixture(scope="module")
def engine(recipe: Path) -> Iterator[dlf.Engine]:
    with dlf.Engine.from_recipe(recipe, **OPTIONS) as made:
        yield made


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(folder.glob("part-*.jsonl")) for line in part.open()]


def some_rows(count: int) -> list[dict[str, Any]]:
    order = random.Random(1)
    return [{"id": i, "prompt": " ".join(order.choices(WORDS, k=order.randint(1, 9)))} for i in range(count)]


def test_rows_are_the_engine_s_whatever_their_company(recipe: Path, engine: dlf.Engine, tmp_path: Path) -> None:
    rows = some_rows(20)
    rows[3] |= {"temperature": 0, "max_tokens": 9, "mine": [1, None]}
    rows[4] |= {"temperature": 0, "experts": ["a"], "logprobs": 2}
    report = batch.run(recipe, write(tmp_path / "all.jsonl", rows), tmp_path / "all", rows_per_part=7, **OPTIONS)
    found = read(tmp_path / "all")
    assert [row["id"] for row in found] == list(range(20)) and not any(row["error"] for row in found)
    assert [len(part.read_text().splitlines()) for part in sorted((tmp_path / "all").glob("part*"))] == [7, 7, 6]
    tokens = sum(len(row["output"]["tokens"]) for row in found)
    assert (report.rows, report.answered, report.failed, report.completion_tokens) == (20, 20, 0, tokens)
    assert report.prompt_tokens == sum(row["output"]["prompt_tokens"] for row in found)
    greedy = engine.generate(rows[3]["prompt"], max_new_tokens=9)
    assert found[3]["output"]["tokens"] == greedy.tokens and found[3]["output"]["text"] == greedy.text
    assert found[3]["mine"] == [1, None]
    alone = engine.generate(rows[4]["prompt"], experts=["a"], max_new_tokens=6)
    assert found[4]["output"]["tokens"] == alone.tokens
    assert found[4]["output"]["logprobs"] == pytest.approx(list(alone.logprobs))
    # The same rows in another order, in other parts and other batches; a seed of a row goes before the batch's.
    others = rows[:]
    random.Random(2).shuffle(others)
    more = {"rows_per_part": 3, "max_batch": 3, **OPTIONS}
    batch.run(recipe, write(tmp_path / "mixed.jsonl", others), tmp_path / "mixed", **more)
    assert {row["id"]: row["output"] for row in read(tmp_path / "mixed")} == {row["id"]: row["output"] for row in found}
    batch.run(
        recipe, write(tmp_path / "b.jsonl", rows[:2] + [rows[2] | {"seed": 5}]), tmp_path / "b", seed=1, **OPTIONS
    )
    again = read(tmp_path / "b")
    assert [row["output"]["tokens"] for row in again[:2]] != [row["output"]["tokens"] for row in found[:2]]
    drawn = engine.generate(rows[2]["prompt"], temperature=1.0, seed=5, max_new_tokens=6)
    assert again[2]["output"]["tokens"] == drawn.tokens


def test_a_row_with_a_mistake_gets_an_error_and_the_others_go_on(recipe: Path, tmp_path: Path) -> None:
    good = {"prompt": "what is"}
    wrong: list[tuple[Any, str]] = [
        ("{", "is no JSON"),
        ("[1]", "must be a JSON object, not list"),
        ('{"prompt": NaN}', "NaN is no number"),
        ("[" * 100_000, "is no JSON"),
        ("9" * 10_000, "is no JSON"),
        ({"id": 1}, "give either prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "give either prompt or messages"),
        ({"prompt": ["a", "b"]}, "a row has one prompt"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "why " * 200}, "but the context holds 96"),
        ({"prompt": "a", "temperature": -1}, "temperature: "),
        ({"prompt": "a", "n": 2}, "a row has one answer"),
        ({"prompt": "a", "stream": True}, "streams nothing"),
        ({"prompt": "a", "experts": ["c"]}, "no expert"),
        ({"prompt": "a", "model": "gpt"}, "the model 'gpt' does not exist; there are: pair, pair/a, pair/b"),
        ({"prompt": "a", "output": "mine"}, "has a column 'output' already"),
        ({"prompt": "a", "continuation": 3}, "continuation must be"),
        ({"prompt": "a", "custom_id": {}}, "custom_id must be"),
        ({"prompt": [10**9]}, "10000000"),
    ]
    path = write(tmp_path / "prompts.jsonl", [good, *(row for row, _ in wrong), good])
    report = batch.run(recipe, path, tmp_path / "out", **OPTIONS)
    first, *found, last = read(tmp_path / "out")
    assert report.failed == len(wrong) == len(found)
    assert first["error"] is None is last["error"] and first["output"]["tokens"] and last["output"]["tokens"]
    for number, (row, (_, text)) in enumerate(zip(found, wrong, strict=True), 2):
        assert row["output"] is None and row["error"].startswith(f"prompts.jsonl:{number}") and text in row["error"], (
            row
        )


def test_rows_in_the_form_of_openai(recipe: Path, engine: dlf.Engine, tmp_path: Path) -> None:
    def row(name: str, url: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": name, "method": "POST", "url": url, "body": body}

    greedy = {"temperature": 0, "model": "pair"}
    talk = [{"role": "user", "content": "why"}]
    rows = [
        row("one", "/v1/completions", prompt=["what is", "the sum"], n=2, max_tokens=3, **greedy),
        row("two", "/v1/chat/completions", messages=talk, max_completion_tokens=4, **greedy),
        row("three", "/v1/embeddings", input="x"),
        {"custom_id": "four", "url": "/v1/completions"},
        "{",
    ]
    batch.run(recipe, write(tmp_path / "p.jsonl", rows), tmp_path / "out", **OPTIONS)
    found = read(tmp_path / "out")
    assert all(one.keys() == {"id", "custom_id", "response", "error"} for one in found)
    assert [one["custom_id"] for one in found] == ["one", "two", "three", "four", None]
    assert [one["response"]["status_code"] for one in found] == [200, 200, 400, 400, 400]
    body = found[0]["response"]["body"]
    assert [one["text"] for one in body["choices"]] == [
        engine.generate(prompt, max_new_tokens=3).text for prompt in ("what is", "the sum") for _ in range(2)
    ]
    message = found[1]["response"]["body"]["choices"][0]["message"]
    assert message["content"] == engine.generate(messages=talk, max_new_tokens=4).text
    assert found[1]["response"]["body"]["usage"]["completion_tokens"] == 4
    assert found[2]["response"]["body"]["error"]["param"] == "url" and "p.jsonl:3: url" in found[2]["error"]["message"]
    assert found[4]["error"]["message"].startswith("p.jsonl:5 is no JSON")


def test_a_caller_in_an_event_loop(recipe: Path, tmp_path: Path) -> None:
    async def notebook() -> batch.BatchReport:
        return batch.run(recipe, write(tmp_path / "p.jsonl", some_rows(3)), tmp_path / "out", **OPTIONS)

    assert asyncio.run(notebook()).answered == 3


def test_continuations_are_scored(recipe: Path, engine: dlf.Engine, tmp_path: Path) -> None:
    rows = [
        {"prompt": "what is", "continuation": " the sum"},
        {"messages": [{"role": "user", "content": "why"}], "continuation": "dog", "experts": ["b"]},
        {"prompt": [5, 6], "continuation": [7], "alpha": [0.5, 0.5], "combine": "static"},
    ]
    batch.run(recipe, write(tmp_path / "p.jsonl", rows), tmp_path / "out", **OPTIONS)
    expected = [
        engine.score("what is", " the sum"),
        engine.score(messages=rows[1]["messages"], continuation="dog", experts=["b"]),
        engine.score([5, 6], [7], alpha=[0.5, 0.5], combine="static"),
    ]
    for row, score in zip(read(tmp_path / "out"), expected, strict=True):
        assert row["output"]["tokens"] == score.tokens and row["output"]["logprobs"] == list(score.logprobs)
        assert row["output"]["logprob"] == score.logprob
        assert row["output"]["is_greedy"] == [bool(one) for one in score.is_greedy]


def test_parquet_in_and_out(recipe: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = some_rows(11)
    columns = {name: [row[name] for row in rows] for name in ("id", "prompt")}
    columns |= {"max_tokens": [None, 0, *[4] * 9], "bytes": [b"\xff"] * 11}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet", row_group_size=7)
    assert [(part.first, part.rows) for part in look_through(tmp_path / "p.parquet", 3).parts] == [
        *((0, 3), (3, 3), (6, 1)),
        *((7, 3), (10, 1)),
    ]
    batch.run(recipe, tmp_path / "p.parquet", tmp_path / "out", rows_per_part=3, **OPTIONS)
    found = pyarrow.concat_tables([parquet.read_table(one) for one in sorted((tmp_path / "out").glob("*.parquet"))])
    assert found.select(list(columns)).to_pydict() == columns
    batch.run(recipe, write(tmp_path / "p.jsonl", [row | {"max_tokens": 4} for row in rows]), tmp_path / "l", **OPTIONS)
    for row, other in zip(found.to_pylist()[2:], read(tmp_path / "l")[2:], strict=True):
        assert {key: value for key, value in row["output"].items() if value is not None} == other["output"]
    assert found["output"][1].as_py() is None and "max_tokens" in found["error"][1].as_py()
    parquet.write_table(found, tmp_path / "again.parquet")
    with pytest.raises(ValueError, match="has a column 'output' already"):
        batch.run(recipe, tmp_path / "again.parquet", tmp_path / "again", **OPTIONS)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="is no file in Parquet format"):
        batch.run(recipe, tmp_path / "no.parquet", tmp_path / "no", **OPTIONS)


def test_parts_of_parquet_are_read_in_any_order(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"n": range(5000)}), tmp_path / "p.parquet", row_group_size=3000)
    reader = reader_of(str(tmp_path / "p.parquet"))
    parts = reader.parts(700)
    order = [*parts, *random.Random(1).sample(parts, len(parts))]
    for part in order:
        rows, table = reader.read(part)
        assert [row.values["n"] for row in rows] == list(range(part.first, part.first + part.rows))
        assert table["n"].to_pylist() == [row.values["n"] for row in rows]


def test_lines_of_any_length_are_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64)
    monkeypatch.setattr(lines, "MAX_PART_BYTES", 150)
    path = tmp_path / "p.jsonl"
    long = json.dumps({"prompt": "x" * 1000})
    path.write_bytes(b"\xef\xbb\xbf" + f'{{"n": 1}}\r\n\n  \n{long}\n{{"n": 2}}\n{{"n": 3}}\n{long}'.encode())
    reader = reader_of(str(path))
    for most in (1, 2, 100):
        parts = reader.parts(most)
        rows = [row for part in parts for row in reader.read(part)[0]]
        assert [row.values.get("n") for row in rows] == [1, None, 2, 3, None]
        assert [row.place for row in rows] == [f"p.jsonl:{number}" for number in (1, 4, 5, 6, 7)]
        assert [row.number for row in rows] == list(range(5))
        assert all("is longer than" in str(row.problem) for row in (rows[1], rows[4]))
    assert len(reader.parts(100)) > 1
    with pytest.raises(ValueError, match="became shorter"):
        part = reader.parts(100)[-1]
        path.write_bytes(b"")
        reader.read(part)


def test_what_is_there_is_kept_and_what_is_missing_is_written(recipe: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "p.jsonl", some_rows(12)), tmp_path / "out"
    batch.run(recipe, path, out, rows_per_part=4, **OPTIONS)
    whole = {one.name: one.read_bytes() for one in out.iterdir()}
    (out / "part-000001.jsonl").unlink()
    (out / f".part-000001.jsonl.{'0' * 16}.tmp").write_text("half")
    report = batch.run(recipe, path, out, rows_per_part=4, threads=1, max_context=96, max_batch=2)
    assert (report.rows, report.answered) == (12, 4)
    assert {one.name: one.read_bytes() for one in out.iterdir()} == whole
    assert batch.run(recipe, path, out, rows_per_part=4, **OPTIONS).answered == 0
    for change, text in (
        ({"rows_per_part": 5}, "rows_per_part is another"),
        ({"seed": 1}, "the seed is another"),
        ({"defaults": {"max_tokens": 3}}, "the defaults are others"),
        ({"alpha_max": 1.0}, "the recipe is another"),
    ):
        with pytest.raises(dlf.OptionError, match=f"another batch: {text}; choose another folder"):
            batch.run(recipe, path, out, **{"rows_per_part": 4, **OPTIONS, **change})
    write(path, some_rows(11))
    with pytest.raises(dlf.OptionError, match="the prompts have another content"):
        batch.run(recipe, path, out, rows_per_part=4, **OPTIONS)
    assert {one.name: one.read_bytes() for one in out.iterdir()} == whole
    with pytest.raises(dlf.OptionError, match="no folder of a batch"):
        batch.run(recipe, path, tmp_path, **OPTIONS)


def test_a_killed_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    rows = [row | {"max_tokens": 60, "ignore_eos": True} for row in some_rows(120)]
    path, out = write(tmp_path / "p.jsonl", rows), tmp_path / "out"
    options = {"rows_per_part": 5, "max_batch": 2, **OPTIONS}
    code = f"from dlf import batch; batch.run({str(recipe)!r}, {str(path)!r}, {str(out)!r}, **{options!r})"
    with subprocess.Popen([sys.executable, "-P", "-c", code]) as process:
        end = time.monotonic() + 60
        while len(list(out.glob("part-*"))) < 3 and time.monotonic() < end:
            time.sleep(0.005)
        with pytest.raises(dlf.OptionError, match="another run writes into"):
            batch.run(recipe, path, out, **options)
        process.send_signal(signal.SIGKILL)
    there = len(list(out.glob("part-*")))
    assert 3 <= there < 24
    report = batch.run(recipe, path, out, **options)
    assert report.answered == 120 - 5 * there
    assert [row["id"] for row in read(out)] == list(range(120))
    batch.run(recipe, path, tmp_path / "whole", **options)
    assert read(tmp_path / "whole") == read(out)


class Broken:
    """An engine whose first requests are broken off."""

    experts: list[str] = []
    max_batch = 2

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def score(self, *_: Any, **__: Any) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise dlf.EngineError("a step failed")
        raise ZeroDivisionError("whatever it is")


def test_a_row_is_tried_again_when_the_engine_failed_for_all() -> None:
    row = Row(0, "p.jsonl:1", {"prompt": "a", "continuation": "b"})

    def answer(engine: Broken) -> Any:
        service = Service({"m": Served("m", engine)})  # type: ignore[arg-type]
        return asyncio.run(Answerer(service, "m", ServerSettings(), {}, 0, openai=False).answer(row))

    assert answer(Broken(2)).values["error"] == "p.jsonl:1: ZeroDivisionError: whatever it is"
    with pytest.raises(dlf.EngineError, match="a step failed"):
        answer(Broken(3))


def test_the_command(recipe: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "p.jsonl", some_rows(3)), tmp_path / "out"
    flags = ["--threads", "1", "--max-context", "96", "--defaults", '{"max_tokens": 2}']
    arguments = ["batch", str(recipe), str(path), "--output", str(out), *flags]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "3 rows answered, 0 of them with an error" in found.output and "generated tokens/s" in found.output
    assert "processor-seconds on 1 worker\n" in found.output
    assert all(len(row["output"]["tokens"]) <= 2 for row in read(out))
    again = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (again["rows"], again["answered"]) == (3, 0)
    for wrong, text in (("[1]", "must be a JSON object"), ("{", "is no JSON"), ('{"max_token": 2}', "max_token")):
        found = CliRunner().invoke(app, [*arguments[:-1], wrong])
        assert found.exit_code == 2 and text in found.output
    (tmp_path / "p.csv").write_text("x")
    for name, text in (("p.csv", "must end with .jsonl"), ("no.jsonl", "there is no file")):
        found = CliRunner().invoke(app, ["batch", str(recipe), str(tmp_path / name), "--output", str(tmp_path / "o")])
        assert found.exit_code == 2 and text in found.output
    empty = write(tmp_path / "empty.jsonl", [" "])
    found = CliRunner().invoke(app, ["batch", str(recipe), str(empty), "--output", str(tmp_path / "o")])
    assert found.exit_code == 2 and "has no rows" in found.output and not (tmp_path / "o").exists()


def test_a_batch_needs_no_further_packages() -> None:
    code = """
import sys
for name in ("fastapi", "prometheus_client", "pyarrow", "ray", "uvicorn", "fsspec"):
    sys.modules[name] = None
import dlf.batch.lines
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_cluster_without_ray_says_what_to_install(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'dlf\[ray\]'"):
        batch.run(recipe, write(tmp_path / "p.jsonl", some_rows(1)), tmp_path / "out", cluster=batch.Cluster())
    with pytest.raises(ImportError, match=r"pip install 'dlf\[ray\]'"):
        deploy({"m": {"large": "x"}}, ServerSettings(), Replicas(), None)
