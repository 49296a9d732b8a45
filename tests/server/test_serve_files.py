"""The files for running a server name metrics and settings that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
from serving import BODY, KEY, Running

from dlf.server import ServerSettings
from dlf.support.option import options_of

FILES = Path(__file__).parents[2] / "examples" / "serve"
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "server.md"


def test_every_metric_that_is_named_exists_and_the_other_way(server: Running) -> None:
    for more in ({}, {"return_alpha": True, "n": 2, "temperature": 1}):
        assert server.post("/v1/completions", BODY | more).status_code == 200
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    known = set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))
    own = {one for one in known if one.startswith("dlf_") and not one.endswith(("_created", "_sum", "_count"))}
    board = json.loads((FILES / "dashboard.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    named = set(re.findall(r"\b((?:dlf|process)_\w+)", asked))
    assert own and own <= named and named <= known
    table = re.findall(r"`(dlf_\w+)`", GUIDE.read_text().partition("| metric |")[2])
    assert {one.removesuffix("_bucket") for one in named if one.startswith("dlf_")} == set(table)


def test_every_setting_that_is_named_exists() -> None:
    known = {f"DLF_SERVE_{name.upper()}" for name in options_of(ServerSettings)}
    for name in ("dlf.service", "Dockerfile"):
        named = set(re.findall(r"\bDLF_SERVE_\w+", (FILES / name).read_text()))
        assert named and named <= known
    table = GUIDE.read_text().partition("| setting | default | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table.replace("SIGTERM", ""))) >= set(options_of(ServerSettings))


def test_the_unit_waits_for_running_answers() -> None:
    unit = (FILES / "dlf.service").read_text()
    drain, stop = (re.search(rf"{key}=(\d+)", unit) for key in ("DLF_SERVE_DRAIN", "TimeoutStopSec"))
    assert drain is not None and stop is not None and int(stop[1]) > int(drain[1])
