"""The folder of a batch: a manifest, and a file for each part whose rows are all answered.

A file gets its name when it is complete and on the disk. So whatever was killed, a part is whole or missing, and a
second run writes what is missing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlf.batch.folders import output_folder
from dlf.errors import OptionError
from dlf.support.fields import parse_json

__all__ = ["Results"]

MANIFEST = "manifest.json"
FORMAT = 1
PART = re.compile(r"part-(\d{6})\.(?:jsonl|parquet)")
WORDS = {
    "input": "the prompts have another content",
    "recipe": "the recipe is another",
    "defaults": "the defaults are others",
    "seed": "the seed is another",
    "rows_per_part": "rows_per_part is another",
}


class Results:
    """The folder of a batch.

    Parameters
    ----------
    path
        The folder, or its address.
    columnar
        Whether its parts are in Parquet format.
    """

    def __init__(self, path: str, columnar: bool) -> None:
        self._path = path
        self._folder = output_folder(path)
        self._ending = "parquet" if columnar else "jsonl"

    @contextlib.contextmanager
    def opened(self, manifest: Mapping[str, Any]) -> Iterator[set[int]]:
        """Begin a batch or go on with it; yields the numbers of the parts that are there. No other run may write.

        Raises
        ------
        OptionError
            If the folder belongs to another batch, to another program or to a run that still writes.
        """
        with self._folder.opened() as names:
            if MANIFEST in names:
                self._compare(parse_json(self._folder.read(MANIFEST), Path(self._path, MANIFEST)), manifest)
            elif names:
                raise OptionError(f"{self._path} is not empty and no folder of a batch; choose another", "output")
            else:
                content = json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n"
                self._folder.write(MANIFEST, content.encode())
            yield {int(found[1]) for name in names if (found := PART.fullmatch(name))}

    def has(self, number: int) -> bool:
        """Whether a part is there."""
        return self._folder.has(self._name(number))

    def write(self, number: int, content: bytes) -> None:
        """Write a part; one that is there already is replaced by the same content."""
        self._folder.write(self._name(number), content)

    def _name(self, number: int) -> str:
        return f"part-{number:06d}.{self._ending}"

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if found.get("format") != FORMAT:
            raise OptionError(f"{self._path} was written by another version of dlf; choose another folder", "output")
        others = [text for name, text in WORDS.items() if _decisive(found.get(name)) != _decisive(wanted[name])]
        if others:
            raise OptionError(
                f"{self._path} has the results of another batch: {', '.join(others)}; choose another folder, or "
                "remove it",
                "output",
            )


def _decisive(value: Any) -> Any:
    """A file may have moved as long as its content is the same."""
    return value.get("sha256") if isinstance(value, dict) and "sha256" in value else value
