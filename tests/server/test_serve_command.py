"""``dlf serve``."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import BODY, KEY
from typer.testing import CliRunner

import dlf
from dlf.cli import app
from dlf.cli import serve as serve_module
from dlf.cli.serve import names_of, settings_of
from dlf.recipe import load_recipe
from dlf.server import ServerSettings


def test_names_of_recipes() -> None:
    assert names_of(["a/math.yaml", "towns.yml", "org/model", "x/"]) == {
        "math": "a/math.yaml",
        "towns": "towns.yml",
        "model": "org/model",
        "x": "x/",
    }
    with pytest.raises(dlf.OptionError, match="both called math"):
        names_of(["a/math.yaml", "b/math.yaml"])


def write(path: Path, **values: Any) -> str:
    path.write_text(json.dumps({"large": "nowhere/at-all"} | values))  # JSON is YAML
    return str(path)


def serve(*arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and lines of the errors of a command that is to fail before anything is loaded."""
    found = CliRunner(env=variables).invoke(app, ["serve", *arguments])
    return found.exit_code, found.output.splitlines()


def test_each_mistake_is_a_line_before_anything_is_loaded(family: dict[str, Path], tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", serve={"prot": 1, "max_queue": 0})
    two = write(tmp_path / "two.yaml", serve={"timeout": "long"}, engine={"threads": -1})
    code, lines = serve(one, two)
    assert code == 2 and len(lines) == 4 and all(line.startswith("dlf: error: ") for line in lines)
    assert "serve.max_queue: input should be greater than or equal to 1" in lines[0]
    assert "serve.prot: no such key here; did you mean 'port'?" in lines[1]
    assert "engine.threads" in lines[2] and "serve.timeout" in lines[3]
    sound = write(tmp_path / "sound.yaml", large=str(family["large"]), serve={"port": 1})
    missing = write(
        tmp_path / "missing.yaml", base=str(tmp_path / "no"), experts=[{"model": str(tmp_path / "neither")}]
    )
    code, lines = serve(sound, missing)
    assert code == 2 and len(lines) == 3 and all("missing.yaml:1: " in line for line in lines)
    assert "serve.port is 1 in" in serve(sound, write(tmp_path / "other.yaml", serve={"port": 2}))[1][0]
    assert "DLF_SERVE_PROT, which is no option; did you mean DLF_SERVE_PORT?" in serve(sound, DLF_SERVE_PROT="1")[1][0]
    assert "DLF_SERVE_PORT" in serve(sound, DLF_SERVE_PORT="x")[1][0]
    assert serve(sound, "--timeout", "0")[1] == ["dlf: error: timeout is 0.0: give seconds above 0"]
    assert "from 0 to 65535" in serve(sound, "--port", "70000")[1][0]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, lines = serve(sound, "--port", str(taken.getsockname()[1]))
        assert code == 2 and len(lines) == 1 and "Address already in use; choose another host or port" in lines[0]


def test_flags_go_before_the_environment_and_the_recipe(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[ServerSettings, dict[str, Any]]] = []

    async def caught(arguments: Any, settings: ServerSettings, *_: Any) -> None:
        seen.append((settings, arguments["pair"]))

    monkeypatch.setattr(serve_module, "_serve", caught)
    values = {"port": 1, "max_queue": 2, "drain": 3, "timeout": 4.5}
    engine = {"max_batch": 2, "max_context": 64, "threads": 1}
    pair = write(tmp_path / "pair.yaml", large=str(family["large"]), serve=values, engine=engine)
    variables = {"DLF_SERVE_PORT": "1", "DLF_SERVE_MAX_QUEUE": "20", "DLF_SERVE_MAX_BATCH": "3"}
    assert serve(pair, "--port", "0", "--max-context", "99", **variables) == (0, [])
    [(settings, arguments)] = seen
    assert (settings.port, settings.max_queue, settings.drain, settings.timeout) == (0, 20, 3, 4.5)
    assert (arguments["max_batch"], arguments["max_context"], arguments["threads"]) == (3, 99, 1)
    # Where flags or the environment decide, recipes may differ.
    other = write(tmp_path / "other.yaml", large=str(family["large"]), serve=values | {"port": 7})
    assert serve(pair, other, DLF_SERVE_PORT="0") == (0, [])
    assert seen[-1][0].port == 0


def test_a_key_file_lies_beside_its_recipe(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    recipe = load_recipe(write(tmp_path / "pair.yaml", large=str(family["large"]), serve={"api_key_file": "keys"}))
    assert settings_of([recipe], {}) == {"api_key_file": str(tmp_path / "keys")}


def test_the_command_drains(family: dict[str, Path], tmp_path: Path) -> None:
    """A running answer is whole though the server was told to end; a wrong recipe is an error before."""
    recipe = tmp_path / "pair.yaml"
    models = {
        "large": str(family["large"]),
        "base": str(family["base"]),
        "experts": [{"model": str(family["expert-a"])}],
    }
    recipe.write_text(json.dumps(models | {"sampling": {"max_new_tokens": 4, "temperature": 0.0}}))
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    command = [sys.executable, "-P", "-m", "dlf.cli", "serve", str(recipe), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, "--api-key-file", str(keys)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = re.fullmatch(r"dlf: serving pair at (http://127\.0\.0\.1:\d+)/v1\n", process.stderr.readline())
        assert said is not None
        url, headers = said[1], {"Authorization": f"Bearer {KEY}"}
        for _ in range(200):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.ConnectError:
                time.sleep(0.05)
        body = BODY | {"max_tokens": 150, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as found:
            lines = found.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2] == "data: [DONE]"
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    recipe.write_text("larg: x\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "larg" in done.stderr and done.stderr.count("\n") <= 3


def test_several_recipes_in_one_process(family: dict[str, Path], tmp_path: Path) -> None:
    models = {"large": str(family["large"]), "base": str(family["base"])}
    one = {"model": str(family["expert-a"]), "name": "first"}
    two = {"model": str(family["expert-b"]), "name": "second"}
    recipes = [
        write(tmp_path / "math.yaml", **models, experts=[one]),
        write(tmp_path / "towns.yaml", **models, experts=[one, two], sampling={"max_new_tokens": 3}),
    ]
    command = [sys.executable, "-P", "-m", "dlf.cli", "serve", *recipes, str(family["base"]), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split(" at ")[1].strip()
        names = ["math", "math/first", "towns", "towns/first", "towns/second", "base"]
        for _ in range(200):
            try:
                assert [found["id"] for found in httpx.get(f"{url}/models").json()["data"]] == names
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        texts = {}
        for name in names:
            found = httpx.post(f"{url}/completions", json=BODY | {"model": name}, timeout=60).json()
            assert found["model"] == name
            texts[name] = found["choices"][0]["text"]
        assert texts["math"] == texts["math/first"] == texts["towns/first"] != texts["base"]
        wrong = httpx.post(f"{url}/completions", json=BODY | {"model": "math/second"})
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
        assert ", ".join(names) in wrong.json()["error"]["message"]
        shown = re.findall(r'^dlf_requests_total\{.*model="(.*?)"', httpx.get(f"{url[:-3]}/metrics").text, re.MULTILINE)
        assert sorted(shown) == sorted(names)
    finally:
        process.kill()
        process.wait()
