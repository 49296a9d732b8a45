"""Merged checkpoints: the folder, the cache, the engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from models import make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dlf
from dlf.checkpoints import write as checkpoint_writer
from dlf.checkpoints.weight_cache import MERGED, cache_bytes, clear_cache, merged_labels
from dlf.experts import merged
from dlf.merging import merge
from dlf.support import new_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List the folders that are written."""
    folders: list[Path] = []
    write = merge.Merge.write

    def counted(self: merge.Merge, folder: Path, **options: bool) -> None:
        folders.append(folder)
        write(self, folder, **options)

    monkeypatch.setattr(merge.Merge, "write", counted)
    return folders


def recipe(family: dict[str, Path], **options: Any) -> dlf.TaskArithmetic:
    return dlf.TaskArithmetic(family["base"], {family["expert-a"]: 0.7, family["expert-b"]: -0.3}, **options)


def alter(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_transformers_loads_it_and_gets_the_logits_of_added_state_dicts(
    family: dict[str, Path], tmp_path: Path
) -> None:
    folder = recipe(family).save(tmp_path / "new" / "merged")
    base, a, b = (
        AutoModelForCausalLM.from_pretrained(family[one], dtype=torch.float32).eval()
        for one in ("base", "expert-a", "expert-b")
    )
    with torch.no_grad():
        for zero, one, two in zip(base.parameters(), a.parameters(), b.parameters(), strict=True):
            zero += 0.7 * (one - zero) - 0.3 * (two - zero)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = torch.tensor([tokenizer.encode("the sum of 12 and 30")])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-4)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(family["base"]).get_vocab()
    assert everything(folder.parent) == ["merged"]


@pytest.mark.parametrize("width", [None, "int8"])
def test_an_engine_takes_it_in_place_of_an_expert(
    family: dict[str, Path], tmp_path: Path, writes: list[Path], cache: Path, width: str | None
) -> None:
    merged = recipe(family, method="ties", density=0.5)
    saved = dlf.Expert(merged.save(tmp_path / "saved"), base=family["base"])
    found = []
    for expert in (saved, merged, merged):
        with dlf.Engine(family["large"], [expert], weights=width) as engine:
            found.append(engine.generate("the quick", max_new_tokens=12))
            assert engine.experts == [expert.label]
    assert len(writes) == 2  # once by save, once for the cache
    for one in found[1:]:
        assert one.tokens == found[0].tokens
        np.testing.assert_array_equal(one.alpha, found[0].alpha)
    assert [path.is_dir() for path in cache.glob(f"{MERGED}*")] == [True]


def test_an_engine_without_a_cache(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("DLF_CACHE", "off")
    with dlf.Engine(family["large"], [recipe(family)]) as engine:
        assert not everything(tmp_path / "temporary") and not cache.exists()
        off = engine.generate("the quick", max_new_tokens=12)
    monkeypatch.setenv("DLF_CACHE", str(cache))
    with dlf.Engine(family["large"], [recipe(family)]) as engine:
        assert engine.generate("the quick", max_new_tokens=12).tokens == off.tokens
    (tmp_path / "file").touch()
    monkeypatch.setenv("DLF_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match=r"task_arithmetic\(expert-a, expert-b\).*kept in.*DLF_CACHE"):
        dlf.Engine(family["large"], [recipe(family)]).close()
    assert not everything(tmp_path / "temporary")


def kept(expert: dlf.TaskArithmetic) -> Path:
    """Return the folder of a merged expert; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with merged.merged_experts([expert]) as (one,):
            return Path(one.model)


def test_each_recipe_and_each_content_has_its_folder(
    family: dict[str, Path], tmp_path: Path, writes: list[Path], cache: Path
) -> None:
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    experts = {family["expert-a"]: 0.7}
    first = kept(dlf.TaskArithmetic(base, experts))
    assert kept(dlf.TaskArithmetic(family["base"], experts, name="other", weights="int8")) == first
    others = [
        kept(dlf.TaskArithmetic(base, {family["expert-a"]: 0.6})),
        kept(dlf.TaskArithmetic(base, experts, method="ties")),
        kept(dlf.TaskArithmetic(base, experts, dtype="bfloat16")),
        kept(dlf.TaskArithmetic(base, experts, method="dare_ties", density=0.5)),
        kept(dlf.TaskArithmetic(base, experts, method="dare_ties", density=0.5, seed=1)),
    ]
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    others.append(kept(dlf.TaskArithmetic(base, experts)))
    (base / "generation_config.json").write_text('{"eos_token_id": 5}')
    others.append(kept(dlf.TaskArithmetic(base, experts)))
    assert json.loads((others[-1] / "generation_config.json").read_text()) == {"eos_token_id": 5}
    assert len({first, *others}) == 8 == len(writes)
    assert merged_labels(cache)[first] == "task_arithmetic(expert-a)"
    (cache / "merged-mine").mkdir()
    assert cache_bytes(cache) > 7 * (first / "model.safetensors").stat().st_size
    assert clear_cache(cache) > 0
    assert [path.name for path in cache.iterdir() if any(path.iterdir())] == [] and cache_bytes(cache) == 0
    assert (cache / "merged-mine").is_dir() and not first.exists()


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "dlf.json", "missing"])
def test_a_damaged_folder_is_merged_again(family: dict[str, Path], writes: list[Path], damage: str) -> None:
    folder = kept(recipe(family))
    before = {name: one.clone() for name, one in load_file(folder / "model.safetensors").items()}
    if damage == "missing":
        (folder / "config.json").unlink()
    else:
        content = bytearray((folder / damage).read_bytes())
        content[len(content) // 2] ^= 64
        (folder / damage).write_bytes(content)
    with (
        pytest.warns(RuntimeWarning, match="damaged; merging again"),
        merged.merged_experts([recipe(family)]) as (one,),
    ):
        after = load_file(Path(one.model) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert kept(recipe(family)) == folder and len(writes) == 2


PROCESS = """
import os, sys, time
import dlf
from dlf.merging import merge
from dlf.experts.merged import merged_experts
write = merge.Merge._tensors
def slowly(self, names):
    for i, one in enumerate(write(self, names)):
        if i == 3:
            print("half", flush=True)
            sys.stdin.readline()
        yield one
merge.Merge._tensors = slowly
base, expert, output, *words = sys.argv[1:]
if output == "cache":
    with merged_experts([dlf.TaskArithmetic(base, {expert: 0.5})]) as (one,):
        print(one.model)
else:
    from dlf.cli import app
    app(["merge", base, "--expert", expert + ":0.5", "--output", output])
"""


def start(family: dict[str, Path], output: str) -> subprocess.Popen[str]:
    """Start a process that prints "half" when half of a folder is written, and then waits."""
    arguments = [sys.executable, "-c", PROCESS, str(family["base"]), str(family["expert-a"]), output]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    return process


def test_two_processes_at_once(family: dict[str, Path], cache: Path) -> None:
    processes = [start(family, "cache") for _ in range(2)]
    assert len(list(cache.glob(".merged-*"))) == 2
    clear_cache(cache)  # a folder that is being written stays
    for process in processes:
        out, _ = process.communicate("\n", timeout=60)
        assert process.returncode == 0
        assert Path(out.strip()) == kept(dlf.TaskArithmetic(family["base"], {family["expert-a"]: 0.5}))
    assert not list(cache.glob(".merged-*"))


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_no_half_folder(family: dict[str, Path], tmp_path: Path, kind: signal.Signals) -> None:
    place = tmp_path / "there"
    place.mkdir()
    output = place / "merged"
    process = start(family, str(output))
    assert len(everything(place)) == 1 and not output.exists()
    process.send_signal(kind)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[kind]
    # After SIGKILL only the next writer can clean up.
    assert len(everything(place)) == (kind == signal.SIGKILL)
    recipe(family).save(output)
    assert everything(place) == ["merged"]


def test_only_an_empty_folder_is_written_to(family: dict[str, Path], tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    for place, message in ((full, "not empty"), (full / "precious", "is a file"), (family["base"], "not empty")):
        with pytest.raises(FileExistsError, match=message):
            recipe(family).save(place)
    assert everything(full) == ["precious"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert recipe(family).save(tmp_path / "link") == tmp_path / "empty"
    assert (tmp_path / "link" / "config.json").is_file()
    with pytest.raises(FileExistsError, match="not empty"), new_folder.new_folder(tmp_path / "late") as temporary:
        (temporary / "mine").touch()
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").touch()
    assert everything(tmp_path / "late") == ["theirs"]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_an_error_that_names_the_folder(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match=rf"No space left: '{tmp_path / 'merged'}'"):
        recipe(family).save(tmp_path / "merged")
    assert everything(tmp_path) == ["temporary"]


def test_shards_and_types(family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name: one if "norm" in name else one.bfloat16() for name, one in tensors.items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    alter(base, dtype="bfloat16", auto_map={"AutoConfig": "code.Config"})
    expert = dlf.TaskArithmetic(base, {family["expert-a"]: 0.5})
    whole = load_file(expert.save(tmp_path / "whole") / "model.safetensors")
    assert all(one.dtype == (torch.float32 if "norm" in name else torch.bfloat16) for name, one in whole.items())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "MAX_SHARD_BYTES", 60_000)
        folder = expert.save(tmp_path / "shards")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert len(shards) > 3 and set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in whole.values())
    assert all(torch.equal(shards[file][name], whole[name]) for name, file in index["weight_map"].items())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert torch.equal(model.state_dict()["model.norm.weight"].float(), whole["model.norm.weight"].bfloat16().float())
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "auto_map" not in config
    half = dlf.TaskArithmetic(base, {folder: 0.5, family["expert-b"]: 1}, dtype="float16").save(tmp_path / "half")
    assert {one.dtype for one in load_file(half / "model.safetensors").values()} == {torch.float16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"


def test_the_base_takes_part_in_a_mean_where_it_is_named(family: dict[str, Path], tmp_path: Path) -> None:
    base, expert = (load_file(family[one] / "model.safetensors") for one in ("base", "expert-a"))
    mean = dlf.TaskArithmetic(family["base"], {family["base"]: 1, family["expert-a"]: 3}, method="linear")
    found = load_file(mean.save(tmp_path / "mean") / "model.safetensors")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, base[name] / 4 + expert[name] * 3 / 4)


def test_model_card(family: dict[str, Path], tmp_path: Path) -> None:
    expert = recipe(family, method="dare_ties", density={family["expert-a"]: 0.25}, seed=7, scale=0.5)
    card = ModelCard.load(expert.save(tmp_path / "merged") / "README.md")
    assert card.data.library_name == "transformers" and "merge" in card.data.tags and card.data.base_model is None
    assert "# merged" in card.text and "2311.03099" in card.text
    assert "| `expert-a` | 0.7 | 0.25 |\n| `expert-b` | -0.3 | 1 |" in card.text
    assert "normalize: false, lambda: 0.5, seed: 7" in card.text
    assert str(tmp_path) not in card.content and str(family["base"].parent) not in card.content


def test_model_card_links_the_hub() -> None:
    from dlf.merging import Recipe
    from dlf.merging.model_card import model_card

    card = ModelCard(model_card("a|b\n# c", "org/base", ["org/expert"], Recipe.of("slerp", {"org/expert": 0.5})))
    assert card.data.base_model == ["org/base", "org/expert"] and card.data.base_model_relation == "merge"
    assert "[`org/base`](https://huggingface.co/org/base)" in card.text and "# a b # c\n" in card.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 400}, "'vocab_size' is 392 in .*base and 400 in .*changed"),
        ({"num_hidden_layers": 2}, "'num_hidden_layers' is 3 in .* and 2 in"),
        ({"architectures": ["MistralForCausalLM"]}, "'architecture' is LlamaForCausalLM in .* and MistralForCausalLM"),
    ],
)
def test_models_of_other_shapes(family: dict[str, Path], tmp_path: Path, values: dict[str, Any], message: str) -> None:
    changed = Path(shutil.copytree(family["expert-a"], tmp_path / "changed"))
    alter(changed, **values)
    with pytest.raises(dlf.CheckpointError, match=message):
        dlf.TaskArithmetic(family["base"], {changed: 0.5}).save(tmp_path / "merged")
    with pytest.raises(dlf.CheckpointError, match=message):
        dlf.Engine(family["large"], [dlf.TaskArithmetic(family["base"], {changed: 0.5})])
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize("whose", ["base", "expert"])
def test_a_head_that_only_one_model_has_is_merged(tmp_path: Path, whose: str) -> None:
    """The other model's head is its embedding; the merged model has a head of its own."""
    tied = make_model(tmp_path / "tied", "smollm", seed=1)
    own = Path(shutil.copytree(tied, tmp_path / "own"))
    tensors = load_file(tied / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding + 0.3 * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(2))
    save_file(tensors | {"lm_head.weight": head}, own / "model.safetensors", metadata={"format": "pt"})
    base, expert = (own, tied) if whose == "base" else (tied, own)
    folder = dlf.TaskArithmetic(base, {expert: 0.5}).save(tmp_path / "merged")
    merged = load_file(folder / "model.safetensors")
    torch.testing.assert_close(merged["lm_head.weight"], (head + embedding) / 2)
    torch.testing.assert_close(merged["model.embed_tokens.weight"], embedding)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    tokens = [5, 17, 300, 42]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = theirs(torch.tensor([tokens])).logits[0].log_softmax(-1)
    with dlf.Engine(folder, threads=1) as engine:
        found = engine.score(tokens[:1], tokens[1:]).logprobs
    expected = [logprobs[i, token].item() for i, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with dlf.Engine(tied, [dlf.TaskArithmetic(base, {expert: 0.5})], threads=1, weights="int8") as engine:
        assert engine.generate("the quick", max_new_tokens=3).tokens


def test_further_chat_templates_are_taken_along(family: dict[str, Path], tmp_path: Path, writes: list[Path]) -> None:
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    merged = dlf.TaskArithmetic(base, {family["expert-a"]: 0.5})
    assert (merged.save(tmp_path / "merged") / "additional_chat_templates" / "tool_use.jinja").is_file()
    writes.clear()
    for _ in range(2):
        dlf.Engine(family["large"], [merged]).close()
    assert len(writes) == 1  # the second time it is found


def test_a_head_that_is_the_embedding_stays_tied(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", "smollm", seed=1)
    tensors = load_file(tied / "model.safetensors")
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(both, tied / "model.safetensors", metadata={"format": "pt"})
    folder = dlf.TaskArithmetic(tied, {tied: 0.5}).save(tmp_path / "merged")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_other_tokens_and_other_positions(family: dict[str, Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(family["expert-a"], tmp_path / "changed"))
    alter(changed, rms_norm_eps=1e-3)
    expert = dlf.TaskArithmetic(family["base"], {changed: 0.5})
    with pytest.warns(RuntimeWarning, match=r"base and .*changed differ in their rms_norm_eps"):
        expert.save(tmp_path / "warned")
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    alter(changed, rms_norm_eps=json.loads((family["base"] / "config.json").read_text())["rms_norm_eps"])
    with pytest.raises(dlf.TokenizerMismatchError, match="do not share a tokenizer: 2 of"):
        expert.save(tmp_path / "merged")
    (changed / "tokenizer.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (expert.save(tmp_path / "merged") / "tokenizer.json").is_file()


def test_a_tokenizer_that_only_an_expert_has_is_taken(family: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    (base / "tokenizer.json").unlink()
    folder = dlf.TaskArithmetic(base, {family["expert-a"]: 0.5}).save(tmp_path / "merged")
    assert (folder / "tokenizer.json").read_bytes() == (family["expert-a"] / "tokenizer.json").read_bytes()


def test_values_that_are_not_finite(family: dict[str, Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(family["expert-a"], tmp_path / "changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][3] = 60000.0
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*float16 cannot hold; choose smaller weights"):
        dlf.TaskArithmetic(family["base"], {changed: 2}, dtype="float16").save(tmp_path / "merged")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(dlf.CheckpointError, match=r"changed/model\.safetensors: tensor 'model\.norm\.weight'"):
        dlf.TaskArithmetic(family["base"], {changed: 2}).save(tmp_path / "merged")
    assert everything(tmp_path) == ["changed", "temporary"]


def test_arguments(family: dict[str, Path]) -> None:
    base = family["base"]
    with pytest.raises(TypeError, match="experts is a mapping of paths to weights, not list"):
        dlf.TaskArithmetic(base, ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="base is a path or a hub id, not int"):
        dlf.TaskArithmetic(3, {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="experts has the key 3"):
        dlf.TaskArithmetic(base, {3: 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="one path twice"):
        dlf.TaskArithmetic(base, {"a": 1, Path("a"): 2})
    with pytest.raises(ValueError, match="dtype is 'int8'; it takes float32"):
        dlf.TaskArithmetic(base, {"a": 1}, dtype="int8")
    with pytest.raises(TypeError, match="give a list"):
        dlf.Engine(family["large"], recipe(family))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expert 'mine': weights is 'int3'"):
        dlf.Engine(family["large"], [recipe(family, name="mine", weights="int3")])
    with pytest.raises(FileNotFoundError, match="no folder 'missing'"):
        dlf.TaskArithmetic(base, {"missing": 1}).open()
    density = {"a": 0.5}
    one = dlf.TaskArithmetic(base, density, "ties", density=density)
    density["b"] = 3.0
    assert one.experts == one.density == {"a": 0.5}


MEASURE = """
import resource, sys
import dlf
dlf.TaskArithmetic(sys.argv[1], {sys.argv[1]: 0.5, sys.argv[2]: 0.5}, "ties", 0.5).save(sys.argv[4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dlf.TaskArithmetic(sys.argv[3], {sys.argv[3]: 0.5}, "ties", 0.5).save(sys.argv[5])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_holds_single_tensors(family: dict[str, Path], tmp_path: Path) -> None:
    big = make_model(tmp_path / "big", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=10)
    names = [str(path) for path in (family["base"], family["expert-a"], big, tmp_path / "a", tmp_path / "b")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], check=True, capture_output=True, text=True)
    size = (big / "model.safetensors").stat().st_size
    largest = 4 * 512 * 2048
    assert size > 160e6 and int(done.stdout) < 10 * largest < size / 3
