"""The program that compares the bits of two builds runs all its cases and finds differences."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import bit_cases
import pytest
import same_bits


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    """Results of this build, in few tokens."""
    return same_bits.record(small=True)


def test_every_topic_is_recorded(recording: dict[str, Any]) -> None:
    assert len(recording) > 250
    topics = {name.split("/")[0] for name in recording}
    assert topics >= {"solve", "family", "rope", "zoo", "errors", "fusion", "sampling", "ends", "company", "lanes"}
    assert topics >= {"adapters", "merged", "drafts", "recipe", "long"}
    assert json.loads(json.dumps(recording)) == recording  # JSON loses nothing


def test_cases_exercise_what_they_are_named_for(recording: dict[str, Any]) -> None:
    [drafted] = recording["drafts/right/drafter"]
    assert recording["ends/token"][0]["finish_reason"] == recording["ends/text"][0]["finish_reason"] == "stop"
    assert recording["ends/context"]["finish_reason"] == "length"
    assert drafted["passes"] < len(drafted["tokens"])
    again = [recording[f"lanes/joint/prefix {size}/again"] for size in (1 << 24, 0, 1 << 19)]
    assert again[0]["cached_tokens"] > again[2]["cached_tokens"] > again[1]["cached_tokens"] == 0
    assert recording["sampling/all"][0]["tokens"] != recording["sampling/penalties"][0]["tokens"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("alpha", lambda steps: steps[-1].__setitem__(0, math.nextafter(float.fromhex(steps[-1][0]), 9).hex())),
        ("logprobs", lambda steps: steps.__setitem__(2, (-float.fromhex(steps[2])).hex())),
        ("tokens", lambda tokens: tokens.__setitem__(1, tokens[1] + 1)),
        ("top_logprobs", lambda steps: steps[0].reverse()),
        ("text", None),
    ],
)
def test_one_bit_is_found(recording: dict[str, Any], field: str, change: Any, tmp_path: Path, capsys: Any) -> None:
    files = [tmp_path / name for name in ("one", "two")]
    for file in files:
        file.write_text(json.dumps(recording))
    compare = ["compare", *map(str, files)]
    assert same_bits.main(compare) == 0
    changed = copy.deepcopy(recording)
    if change is None:
        del changed["sampling/all"][0][field]
    else:
        change(changed["sampling/all"][0][field])
    files[1].write_text(json.dumps(changed))
    capsys.readouterr()
    assert same_bits.main(compare) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"sampling/all: [0].{field}")


def test_a_missing_case_is_found(recording: dict[str, Any]) -> None:
    fewer = {name: value for name, value in recording.items() if name != "recipe"}
    assert same_bits.compare(recording, fewer) == ["recipe: missing in the second"]
    assert same_bits.compare(fewer, recording) == []  # a newer build may have more cases


def test_a_changed_option_is_found(recording: dict[str, Any], tmp_path: Path) -> None:
    """A slightly different bound of the weights shows in every case with that bound."""
    recorder = same_bits.Recorder(tmp_path, small=True)
    bit_cases.fusion(recorder, bit_cases.make_trio(tmp_path / "trio"), bound=0.49)
    lines = same_bits.compare({name: recording[name] for name in recorder.cases}, recorder.cases)
    assert [line.split(":")[0] for line in lines] == ["fusion/bound/greedy", "fusion/bound/score"]
