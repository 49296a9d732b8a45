"""The programs in examples/: each runs on the shipped models and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Patterns of each program's output; a file without an entry fails.
PRINTED = {
    "async_stream.py": [
        r"a' In' .*b' In' .*a' jars' ",
        r"b: .*= 47 cups\.",
        r"left after the first sentence: In the jars .* stamps\.$",
    ],
    "fuse.py": [r"large model alone: \S", r"fused: .*\n#### 321\n", r"alpha from \d\.\d\d to 2\.00; the answer is 321"],
    "guidance.py": [r"large model alone: I have", r"scale 1\.0: I have", r"scale 1\.5: .* = 321 stamps\."],
    "in_context.py": [r" -> \S.*\n  alpha of the first token", r"moved by 0\.\d\d\d nats, [1-9]\d+ prompt tokens"],
    "lora.py": [r"rank 16: .* = 321 stamps\.", r"mean alpha of math-lora: [12]\.\d\d"],
    "recipe.py": ["experts: math-expert, facts-and-truths", r"facts: Bonmere", r"math: .*\n#### 321"],
    "score.py": [
        r" alone   fused\n",
        r"the fused model prefers: Those who looked know that the luvyx lives in dunes\.",
    ],
    "several_experts.py": [r"math: '.*321', mean alpha: math \d", r"facts expert only: '.* tea\.'"],
    "trace.py": [r"^\d\d tokens drawn in alpha\.png"],
}


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_and_prints_what_it_promises(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert example in PRINTED, "add an entry to PRINTED for this example"
    for pattern in PRINTED[example]:
        assert re.search(pattern, done.stdout), f"{pattern!r} does not match\n{done.stdout}"
    if example == "trace.py":
        assert (tmp_path / "alpha.png").read_bytes().startswith(b"\x89PNG")
