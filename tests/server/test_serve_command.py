"""``dlf serve``."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from serving import BODY, KEY

import dlf
from dlf.cli.serve import names_of


def test_names_of_recipes() -> None:
    assert names_of(["a/math.yaml", "towns.yml", "org/model", "x/"]) == {
        "math": "a/math.yaml",
        "towns": "towns.yml",
        "model": "org/model",
        "x": "x/",
    }
    with pytest.raises(dlf.OptionError, match="both called math"):
        names_of(["a/math.yaml", "b/math.yaml"])


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "dlf.cli", "serve", str(recipe), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen([*command, "--api-key-file", str(keys)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and f"http://127.0.0.1:{port}/v1" in process.stderr.readline()
        url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
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
