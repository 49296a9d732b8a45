"""Memory while a checkpoint is loaded or converted: little more than the weights, or a tensor, in every format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import write_gguf
from models import make_model
from reference.published import quantize_checkpoint

# Peaks come from /proc: getrusage counts that of the process which started this one, too.
PEAK = """
import sys
small, large, weights = sys.argv[1], sys.argv[2], sys.argv[3] or None
def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))
def forget():
    open("/proc/self/clear_refs", "w").write("5")
    return memory("VmRSS")
"""
LOAD = (
    PEAK
    + """
from dlf.checkpoints.source import open_checkpoint
from dlf.model import load_model
load_model(small, weights=weights)  # a tiny model, so that libraries are loaded
source = open_checkpoint(large)
tokenizer = source.tokenizer()
before = forget()
model = load_model(large, weights=weights, source=source, tokenizer=tokenizer)
print(memory("VmHWM") - before, model.weights.nbytes)
"""
)
CONVERT = (
    PEAK
    + """
import dlf
dlf.convert(small, "small folder", weights)
before = forget()
dlf.convert(large, "large folder", weights)
print(memory("VmHWM") - before, 0)
"""
)
ROOM = 20 << 20  # of what is read at once, and of what libraries take, which varies by some MB on a busy machine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 33 million weights, half of them in its embedding: 134 MB of floats."""
    sizes = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    folder = tmp_path_factory.mktemp("plain") / "model"
    return make_model(folder, "llama", tie_word_embeddings=True, num_attention_heads=8, **sizes)


def peak(small: Path, large: Path, weights: str, folder: Path, program: str = LOAD) -> tuple[int, int]:
    """Return the most bytes that a program took, and those of the weights that it holds."""
    arguments = [sys.executable, "-c", program, str(small), str(large), weights]
    ran = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    most, held = map(int, ran.stdout.split())
    return most, held


@pytest.mark.parametrize("kind, weights", [("Q8_0", ""), ("Q4_1", ""), ("Q8_0", "bf16"), ("Q8_0", "int8")])
def test_gguf(kind: str, weights: str, plain: Path, folder: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "large.gguf", plain, kind)
    small = write_gguf(tmp_path / "small.gguf", folder, kind)
    most, held = peak(small, file, weights, tmp_path)
    assert most <= 1.15 * held + ROOM


@pytest.mark.parametrize("scheme", ["w8a16-channel", "gptq-4-g32", "gptq-8-channel", "gptq-4-g32-act-order", "awq-g32"])
def test_published(scheme: str, plain: Path, folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(tmp_path / "large", tmp_path / "floats", plain, scheme)
    quantize_checkpoint(tmp_path / "small", tmp_path / "small floats", folder, scheme)
    most, held = peak(tmp_path / "small", tmp_path / "large", "", tmp_path)
    assert most <= 1.15 * held + ROOM


@pytest.mark.parametrize("weights", ["", "bf16", "int8"])
def test_converting(weights: str, plain: Path, folder: Path, tmp_path: Path) -> None:
    """Less than half of the largest tensor, the embedding, in float32."""
    file = write_gguf(tmp_path / "large.gguf", plain, "Q8_0")
    most, _ = peak(write_gguf(tmp_path / "small.gguf", folder, "Q8_0"), file, weights, tmp_path, CONVERT)
    assert most <= 2 * 32000 * 512
