"""Files of a checkpoint or an adapter, mutated as JSON and as bytes, are read or raise a documented error."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model, write_adapter
from safetensors.torch import load_file, save_file

from dlf.adapters.adapter import load_adapter
from dlf.checkpoints.config import read_config
from dlf.model import load_model

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**70,
    1e308,
    float("nan"),
    "",
    "\ud800",
    "\x1b[31m",
    "../x",
    "x" * 5000,
    [],
    [None],
    {},
    {"x": {}},
    {"type": "su"},
    {"rope_type": "dynamic", "factor": 3},
    {"(a+)+b|(?=c)": 3},
    {r".*\.1\..*": 3},
    "all-linear",
    ["LlamaModel"],
]
KEYS = (
    "rope_scaling dtype tie_word_embeddings head_dim eos_token_id rank_pattern alpha_pattern exclude_modules bias "
    "layers_to_transform target_modules use_dora weight_map x"
).split()


def mutate(dice: random.Random, values: Any) -> Any:
    """Change, remove or add one value somewhere."""
    while isinstance(values, (dict, list)) and values:
        key = dice.choice(list(values)) if isinstance(values, dict) else dice.randrange(len(values))
        if isinstance(values[key], (dict, list)) and values[key] and dice.random() < 0.6:
            values = values[key]
            continue
        if isinstance(values, dict) and dice.random() < 0.3:
            key = dice.choice(KEYS)
        values[key] = copy.deepcopy(dice.choice(JUNK))
        return


def scramble(dice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.randrange(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed if dice.random() < 0.8 else changed[: dice.randrange(len(changed))])


def fuzz(tmp_path: Path, rounds: int) -> None:
    dice = random.Random(0)
    model = make_model(tmp_path / "model", "llama3", num_hidden_layers=2)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in set(weight_map.values()):
        save_file({name: tensors[name] for name, file in weight_map.items() if file == part}, model / part)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    adapter = write_adapter(tmp_path / "adapter", model, seed=1)
    config = read_config(model)
    seen: Counter[tuple[str, bool]] = Counter()
    work = tmp_path / "work"
    for _ in range(rounds):
        source = dice.choice([model, adapter])
        kind = dice.choice(sorted(path.name for path in source.iterdir() if not path.name.startswith("tokenizer")))
        shutil.copytree(source, work)
        content = (work / kind).read_bytes()
        if kind.endswith(".json") and dice.random() < 0.8:
            values = json.loads(content)
            for _ in range(dice.randrange(1, 4)):
                mutate(dice, values)
            (work / kind).write_text(json.dumps(values))
        else:
            (work / kind).write_bytes(scramble(dice, content[:3000]) + content[3000:])
        read = False
        try:
            if source == adapter:
                load_adapter(work, config, torch.float32)
            else:
                load_model(work)
            read = True
        except (ValueError, FileNotFoundError) as error:
            assert str(error).isprintable()
        seen[kind, read] += 1
        shutil.rmtree(work)
    for kind in {kind for kind, _ in seen}:
        assert seen[kind, False], f"no mutation of {kind} raised an error"
    assert sum(count for (_, read), count in seen.items() if read) > 0.05 * rounds


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzz(tmp_path: Path, rounds: int) -> None:
    with warnings.catch_warnings(action="ignore"):
        fuzz(tmp_path, rounds)
