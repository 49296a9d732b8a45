"""The page at ``/``."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from serving import Running

from dlf.server import ServerSettings


def test_the_page_asks_this_server_alone(server: Running) -> None:
    found = httpx.get(server.url)
    assert found.status_code == 200 and "default-src 'none'" in found.headers["Content-Security-Policy"]
    assert not re.findall(r"https?://", found.text)
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", found.text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in found.headers["Content-Security-Policy"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_page_runs_in_a_browser(family: dict[str, Path], tmp_path: Path) -> None:
    """Its script lists models and experts, which a wrong policy would prevent."""
    with Running(family, ServerSettings()) as found:
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000",
        ]
        done = subprocess.run(
            [*command, "--dump-dom", found.url], capture_output=True, text=True, timeout=120, check=True
        )
    assert '<option value="pair">pair</option>' in done.stdout and 'id="expert b"' in done.stdout
    assert 'class="turn error"' not in done.stdout
