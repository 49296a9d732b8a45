"""Batches on a Ray cluster of two nodes."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dlf
from dlf import batch, zoo

pytest.importorskip("ray.data", reason="Ray is not installed; make test-cluster installs it")
from nodes import kill, nodes, workers  # noqa: E402

ENGINE = "MapWorker(MapBatches(Worker))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with nodes(1, 1) as found:
        yield found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("recipe") / "math.yaml"
    experts = [{"name": "math", "model": str(zoo.path("math-expert"))}]
    content = {"large": str(zoo.path("large-base")), "base": str(zoo.path("small-base")), "experts": experts}
    found.write_text(json.dumps(content))
    return found


def prompts(path: Path, count: int) -> Path:
    problems = [one for task in zoo.tasks() for one in zoo.problems(task)]
    rows = [{"id": i, "prompt": f"{i}. {problems[i % len(problems)].prompt}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same files."""
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_two_nodes_write_what_one_process_writes(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    path = prompts(tmp_path / "p.jsonl", 60)
    with path.open("a") as file:
        file.write('{\n{"prompt": "a", "temperature": -1}\n')
    options: dict[str, Any] = {"rows_per_part": 8, "defaults": {"max_tokens": 6}, "threads": 1}
    here = batch.run(recipe, path, tmp_path / "here", **options)
    there = batch.run(recipe, path, tmp_path / "there", cluster=batch.Cluster(cluster.address), **options)
    assert there.workers in (1, 2) and here.workers == 1  # one may have done all before the other has started
    assert (there.answered, there.failed) == (here.answered, here.failed) == (62, 2)
    assert there.prompt_tokens == here.prompt_tokens and there.completion_tokens == here.completion_tokens
    assert same(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "part-000003.jsonl").unlink()
    again = batch.run(recipe, path, tmp_path / "there", cluster=batch.Cluster(cluster.address, workers=1), **options)
    assert (again.answered, again.workers) == (8, 1) and same(tmp_path / "here", tmp_path / "there")


def test_a_model_that_workers_cannot_load_is_named(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(dlf.EngineError, match=r"config\.json is missing"):
        place = batch.Cluster(cluster.address)
        batch.run(tmp_path / "broken", prompts(tmp_path / "p.jsonl", 4), tmp_path / "out", cluster=place)


@pytest.mark.slow
def test_workers_that_are_killed_cost_a_retry_only(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    path = prompts(tmp_path / "p.jsonl", 5000)
    options: dict[str, Any] = {"rows_per_part": 100, "defaults": {"max_tokens": 6}, "threads": 1}
    order, killed, over = random.Random(time.time_ns()), [], threading.Event()

    def kill_some() -> None:
        for parts in sorted(order.sample(range(2, 40), 3)):
            while len(list((tmp_path / "there").glob("part-*"))) < parts and not over.wait(0.05):
                pass
            while not (found := workers(cluster, ENGINE)) and not over.wait(0.05):
                pass
            if found:
                kill(found[order.randrange(len(found))])
                killed.append(parts)

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        report = batch.run(recipe, path, tmp_path / "there", cluster=batch.Cluster(cluster.address), **options)
    finally:
        over.set()
        killer.join()
    assert len(killed) == 3 and report.rows == 5000 and report.failed == 0
    batch.run(recipe, path, tmp_path / "here", **options)
    assert same(tmp_path / "here", tmp_path / "there")
    rows = [json.loads(line) for part in sorted((tmp_path / "there").glob("part-*")) for line in part.open()]
    assert [row["id"] for row in rows] == list(range(5000))


def test_engines_that_nodes_have_room_for() -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    def room(cpus: float, gpus: float, *found: dict[str, Any]) -> int:
        return batch.Cluster(cpus=cpus, gpus=gpus).room(found)

    assert room(1, 0, node(CPU=4), node(CPU=2), node(False, CPU=8)) == 6
    assert room(3, 0, node(CPU=4), node(CPU=2)) == 1
    assert room(1, 0.5, node(CPU=8, GPU=2), node(CPU=2)) == 4
    assert room(2, 1, node(CPU=2, GPU=4)) == 1
    assert room(0.1, 0, node(CPU=1)) == 10
    for wrong in ({"workers": 0}, {"cpus": 0}, {"gpus": 1.5}, {"gpus": -1}):
        with pytest.raises(dlf.OptionError, match=next(iter(wrong))):
            batch.Cluster(**wrong)
