"""Compare the results of two builds of dlf, to the bit.

``python tests/same_bits.py record FILE`` runs the cases of ``bit_cases.py`` with the importable dlf and writes all
results, floats as hexadecimals; ``python tests/same_bits.py compare A B`` names the cases that differ.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import dlf

# Recorded fields. Timings, and counts that depend on them, are left out; `counts` names more fields for one case.
FIELDS = {
    dlf.Completion: "tokens logprobs alpha f g text finish_reason prompt_tokens experts top_logprobs",
    dlf.Score: "tokens logprobs is_greedy alpha f g experts",
    dlf.Piece: "token logprob alpha text index",
    dlf.fusion.Fusion: "alpha f g target_f target_g logits",
}
MOST_VALUES = 4096  # a larger array is recorded as its hash


def plain(value: Any, counts: str = "") -> Any:
    """Convert a result to values that JSON holds without losing a bit."""
    for kind, fields in FIELDS.items():
        if isinstance(value, kind):
            names = f"{fields} {counts}" if kind is dlf.Completion else fields
            return {name: plain(getattr(value, name)) for name in names.split()}
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size > MOST_VALUES:
            return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(one, counts) for one in value]
    if isinstance(value, dict):
        return [[key, plain(one)] for key, one in value.items()]  # the order of top_logprobs counts
    return value.hex() if isinstance(value, float) else value


class Recorder:
    """Runs cases on one device and keeps their results.

    Parameters
    ----------
    folder
        Folder for the models.
    device, threads
        Device and threads of all engines.
    small
        Whether cases are few and short: an emulated device takes seconds for what a CPU does in milliseconds.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 2, small: bool = False) -> None:
        self.folder = folder
        self.device = device
        self.threads = threads
        self.small = small
        self.most_tokens = 5 if small else 48
        self.cases: dict[str, Any] = {}
        self._prefix = ""
        self._engine: dlf.Engine | None = None

    def few(self, values: Any, count: int = 1) -> list[Any]:
        """Return all values, or the first `count` if cases are few."""
        return list(values)[: count if self.small else None]

    @contextlib.contextmanager
    def engine(self, name: str, *models: Any, **options: Any) -> Iterator[dlf.Engine]:
        """Make an engine whose requests are recorded under `name`; it drafts only if a case says so."""
        chosen = {"device": self.device, "threads": self.threads, "max_batch": 3, "speculate": False}
        chosen |= {"prefix_cache_bytes": 1 << 24} | options
        with dlf.Engine(*models, **chosen) as self._engine:
            self._prefix = name
            yield self._engine

    def generate(self, name: str, *prompt: Any, counts: str = "", **options: Any) -> Any:
        """Record `Engine.generate`, with the fields in `counts` too; by default 16 tokens, past the end of sequence."""
        options = {"max_new_tokens": 16, "ignore_eos": True} | options
        options["max_new_tokens"] = min(options["max_new_tokens"], self.most_tokens)
        found = self._engine.generate(*prompt, **options)
        self.keep(f"{self._prefix}/{name}", found, counts)
        return found

    def together(self, name: str, requests: dict[str, dict[str, Any]]) -> None:
        """Record requests with different options that run in one batch."""
        limits = {"max_new_tokens": min(16, self.most_tokens)}
        streams = {key: self._engine.stream(**(limits | request)) for key, request in requests.items()}
        for key, stream in streams.items():
            self.keep(f"{self._prefix}/{name}/{key}", list(stream))

    def score(self, name: str, *texts: Any, **options: Any) -> None:
        """Record `Engine.score`."""
        self.keep(f"{self._prefix}/{name}", self._engine.score(*texts, **options))

    def fails(self, name: str, call: Callable[[], Any]) -> None:
        """Record the error of a call, which must raise one."""
        try:
            call()
        except (ValueError, ArithmeticError) as error:
            self.keep(name, f"{type(error).__name__}: {error}".replace(str(self.folder), "FOLDER"))
        else:
            raise AssertionError(f"{name} has no error")

    def keep(self, name: str, value: Any, counts: str = "") -> None:
        """Keep the result of the case `name`."""
        if name in self.cases:
            raise AssertionError(f"there are two cases {name}")
        self.cases[name] = plain(value, counts)


def record(device: str = "cpu", threads: int = 2, small: bool = False) -> dict[str, Any]:
    """Run all cases on newly made models and return their results by name."""
    from bit_cases import run_all

    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        recorder = Recorder(Path(folder), device, threads, small)
        with unittest.mock.patch.dict(os.environ, DLF_CACHE=str(Path(folder, "cache"))):  # not weights of other builds
            run_all(recorder)
    return recorder.cases


def first_difference(one: Any, two: Any, path: str = "") -> str | None:
    """Describe the first difference of two results; None if they are equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [*one, *(key for key in two if key not in one)]
        pairs = [(f"{path}.{key}", one.get(key, "missing"), two.get(key, "missing")) for key in keys]
    elif isinstance(one, list) and isinstance(two, list):
        pairs = [(f"{path}[{i}]", left, right) for i, (left, right) in enumerate(zip(one, two, strict=False))]
        pairs.append((f"{path}, its length", len(one), len(two)))
    else:
        return None if one == two and type(one) is type(two) else f"{path.lstrip('.')}: {one!r}, {two!r}"
    found = (first_difference(left, right, where) for where, left, right in pairs)
    return next((difference for difference in found if difference), None)


def compare(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Return a line for each case of the first recording that differs or is missing in the second."""
    lines = []
    for name, expected in one.items():
        if name not in two:
            lines.append(f"{name}: missing in the second")
        elif difference := first_difference(expected, two[name]):
            lines.append(f"{name}: {difference}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Record or compare; the exit status is 1 if two recordings differ."""
    parser = argparse.ArgumentParser(prog="same_bits", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    recording.add_argument("--threads", type=int, default=2)
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    chosen = parser.parse_args(arguments)
    if chosen.command == "record":
        transformers.utils.logging.disable_progress_bar()
        cases = record(chosen.device, chosen.threads, small=chosen.device != "cpu")
        chosen.file.write_text(json.dumps(cases, indent=0))
        print(f"{len(cases)} cases of {Path(dlf.__file__).parent} in {chosen.file}", file=sys.stderr)
        return 0
    one, two = (json.loads(file.read_text()) for file in chosen.files)
    lines = compare(one, two)
    print("\n".join([*lines, f"{len(lines)} of {len(one)} cases differ, {len(two.keys() - one.keys())} are new"]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
