"""Files of recipes and examples: those that are refused, and those of other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dlf
from dlf.recipe import RecipeError, load_recipe
from dlf.recipe.check import check_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("large: [", "recipe.yaml:1: no valid YAML"),
        ("large: x\nlarge: y\n", "recipe.yaml:2: 'large' is given twice"),
        ("a: &a [x]\nb: *a\n", r"recipe.yaml:2: '\*a' refers to another value"),
        ("large: !!python/object/apply:os.system [echo]\n", "large: input should be a valid string"),
        ("? [a]\n: b\n", "recipe.yaml:1: a key must be a name"),
        ("large: x\non: y\n", "recipe.yaml:2: a key must be a name"),
        ("a: 1\nname: 2024-99-99\n", "recipe.yaml:2: '2024-99-99' is neither text, .*; put it in quotes"),
        ("large: !!binary aGk=\n", "recipe.yaml:1: 'aGk=' is neither text"),
        ("large: x\n<<: {base: y}\n", "recipe.yaml:2: '<<' is neither text"),
        ("large: !!int x\n", "recipe.yaml:1: 'x' is not what its tag says"),
        ("large: !!float ''\n", "recipe.yaml:1: '' is not what its tag says"),
        ("large: x\nbase: " + "9" * 5000, "recipe.yaml:2: '9+...' has more than 64 digits"),
        ("large: 1" + ":1" * 100000, "recipe.yaml:1: .* more than 64 digits"),
        ("large: x\n\nbase: a\0b\n", "recipe.yaml:3: no valid YAML: it holds the character 0x0, which is not text$"),
        ('large: x\nbase: "\\ud83d"\n', r"recipe.yaml:2: '\\ud83d' escapes half a character"),
        ('large: x\n"\\ude00": y\n', r"recipe.yaml:2: '\\ude00' escapes half a character"),
        ("[" * (1 << 20), "32 deep"),
        ("{? " * (1 << 18), "32 deep"),
        ("- " * 40 + "x", "32 deep"),
        ("? " * 40 + "x", "32 deep"),
        ("sampling: {logit_bias: {2305843009213693951: 1}}\n", "recipe.yaml:1: a key must be a name"),
        ("a: " + "[" * 100 + "]" * 100, "32 deep"),
        ("large: [" + "x," * 200_000 + "]", "more than 131072 values; put long lists"),
        ("- large\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("large: " + "x" * (1 << 20), "larger than 1 MiB"),
        ("large: x\n---\nlarge: y\n", "no valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"large: \xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_recipe(tmp_path / "nowhere.yaml")
    path = write(tmp_path, "large: x\nbase: b\nexperts:\n  - examples_file: shots.jsonl\n")
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    with pytest.raises(RecipeError, match=r"recipe.yaml:4: experts\[0\].examples_file: .*shots.jsonl:2 is no"):
        load_recipe(path)
    (tmp_path / "shots.jsonl").write_bytes(b"\n \n")
    with pytest.raises(RecipeError, match="shots.jsonl is empty"):
        load_recipe(path)
    # A line of JSON may hold a Unicode line separator.
    (tmp_path / "shots.jsonl").write_text('{"question": "a\u2028b", "answer": "c"}', "utf-8")
    [expert] = load_recipe(path).experts
    assert isinstance(expert, dlf.InContext) and expert.examples == (("a\u2028b", "c"),)


def test_examples_of_a_windows_editor(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbflarge: x\r\nbase: b\r\nexperts:\r\n  - examples_file: shots.jsonl\r\n")
    line = b'{"question": "a", "answer": "b"}\r\n'
    (tmp_path / "shots.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    [expert] = load_recipe(path).experts
    assert isinstance(expert, dlf.InContext) and expert.examples == (("a", "b"),) * 2
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}', "utf-16")
    with pytest.raises(RecipeError, match=r"shots.jsonl:1 is no UTF-8 text; save the file as UTF-8"):
        load_recipe(path)
    (tmp_path / "shots.jsonl").write_bytes(line * 70_000)
    with pytest.raises(RecipeError, match="more than 65536 examples"):
        load_recipe(path)


def test_characters_that_json_escapes(tmp_path: Path) -> None:
    values = {"large": "x", "template": "\U0001f600 {prompt}\u2028"}
    text = json.dumps(values)
    assert "\\ud83d\\ude00" in text
    assert load_recipe(write(tmp_path, text)).template == values["template"]


@pytest.mark.parametrize("line", ['{"question": 1, "answer": "b"}', '{"question": "a", "answer": "\\ud83d"}'])
def test_examples_that_are_no_text(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "large: x\nbase: b\nexperts:\n  - examples_file: shots.jsonl\n")
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n' + line)
    with pytest.raises(RecipeError, match=r"recipe.yaml:4: experts\[0\].examples_file: .*shots.jsonl:2 is no"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user-at-all/x", "a\\0b"])
def test_paths_that_cannot_be(tmp_path: Path, name: str) -> None:
    found = load_recipe(write(tmp_path, f'large: "{name}"\n'))
    assert found.large == name.replace("\\0", "\0")
    assert len(check_recipe(found).problems) == 1
