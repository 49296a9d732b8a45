"""Mutated quantized checkpoints: an error that names the file, or numbers; never another exception."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from reference.published import SCHEMES, quantize_checkpoint

from dlf.checkpoints.source import open_checkpoint
from dlf.errors import CheckpointError

ROUNDS = 25
VALUES: list[Any] = [None, 0, -1, 3, 8, 1 << 40, 1e300, True, "", "x", "re:(", [], [0, 0], ["x"], {}, {"a": 1}]


def places(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in nested objects and lists."""
    items: list[Any] = list(values.items()) if isinstance(values, dict) else []
    items += list(enumerate(values)) if isinstance(values, list) else []
    return [place for key, value in items for place in [(*at, key), *places(value, (*at, key))]]


def mutate_config(folder: Path, draw: random.Random) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *way, last = draw.choice(places(config["quantization_config"]))
    inner = config["quantization_config"]
    for key in way:
        inner = inner[key]
    inner[last] = draw.choice(VALUES)
    path.write_text(json.dumps(config))


def mutate_weights(folder: Path, draw: random.Random) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for _ in range(draw.randint(1, 4)):
        # Mostly the header, where sizes and types are.
        at = draw.randrange(8 + header) if draw.random() < 0.7 else draw.randrange(len(content))
        content[at] = draw.choice([draw.randrange(256), content[at] ^ 1, ord("0"), ord("9")])
    path.write_bytes(content)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if not name.endswith("-v2")])
def test_mutated_checkpoints(tmp_path: Path, scheme: str) -> None:
    source = make_model(tmp_path / "source", "llama", num_hidden_layers=1, intermediate_size=128)
    quantize_checkpoint(tmp_path / "whole", tmp_path / "floats", source, scheme)
    draw, refused = random.Random(scheme), 0
    for number in range(ROUNDS):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "mutated", dirs_exist_ok=True))
        (mutate_config if number % 2 else mutate_weights)(folder, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                opened = open_checkpoint(folder)
                for name in opened.names:
                    opened.read(name)
                    if name in opened.config.packed:
                        list(opened.packed(name))
            except (CheckpointError, FileNotFoundError, MemoryError) as error:
                assert str(tmp_path / "mutated") in str(error)
                refused += 1
    assert refused > ROUNDS // 5
