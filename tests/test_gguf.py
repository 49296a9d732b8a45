"""GGUF files: the same models as in the folders that they were converted from."""

from __future__ import annotations

import os
import random
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import CORPUS, FAMILIES, make_model, make_qwen_tokenizer, make_tokenizer
from reference import sentencepiece

gguf = pytest.importorskip("gguf")  # a dependency of dlf

from gguf import GGMLQuantizationType, dequantize  # noqa: E402
from gguf_files import NOT_IN_GGUF, random_blocks, write_file, write_gguf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import dlf  # noqa: E402
from dlf import _C  # noqa: E402
from dlf.checkpoints.checkpoint import load_tensors  # noqa: E402
from dlf.checkpoints.gguf.blocks import UNPACK, format_of  # noqa: E402
from dlf.checkpoints.gguf.file import GgufTensor, read_gguf  # noqa: E402
from dlf.checkpoints.gguf.source import Gguf  # noqa: E402
from dlf.checkpoints.gguf.values import FLOATS, KINDS, read_packed, read_values  # noqa: E402
from dlf.checkpoints.hub import label_of, resolve  # noqa: E402
from dlf.checkpoints.source import open_checkpoint, open_source  # noqa: E402
from dlf.cli.inspect import describe, inspect  # noqa: E402
from dlf.errors import CheckpointError  # noqa: E402
from dlf.model import load_model  # noqa: E402
from dlf.text.tokenizer import Tokenizer  # noqa: E402

TEXTS = [*CORPUS, "", " ", "  two\n\n spaces ", "don't I'LL we're 12345 x²½", "日本語 العربية e\u0301 🙂"]
TEXTS += ["<|end|>a<|begin|>"]


def logits(path: Path, tokens: list[int], **options: Any) -> torch.Tensor:
    model = load_model(path, **options)
    return _C.Decoder(model.weights, 2, 64, 1).prefill(tokens, 0, 0).clone()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("gguf") / "model", "smollm")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_gguf(folder.parent / "model.gguf", folder)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_that_of_its_folder(tmp_path: Path, family: str) -> None:
    """Weights are the same, and logits bit-identical where norms and frequencies are."""
    changes = NOT_IN_GGUF.get(family, {})
    folder = make_model(tmp_path / "model", family, **changes)
    file = write_gguf(tmp_path / "model.gguf", folder)
    theirs, ours = open_checkpoint(folder), open_checkpoint(file)
    assert ours.config.parts.keys() == theirs.config.parts.keys()
    for slot, part in ours.config.parts.items():  # whose tensors a folder may spell in another way, and store as one
        other = theirs.config.parts[slot]
        found = part.take(ours.read(part.tensor))
        assert torch.allclose(found, other.take(theirs.read(other.tensor)), atol=1e-7, rtol=0), slot
    tokens = [5, 17, 300, 42, 8, 99, 120, 7] * 4
    found, expected = logits(file, tokens), logits(folder, tokens)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    if family not in ("llama3", "phi3", "gemma2", "gemma3"):  # norms of Gemma are rounded once more
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["granite_moe", "granite_moe_shared", "glm"])
def test_a_folder_has_the_tensors_of_its_family(tmp_path: Path, family: str) -> None:
    """Also those that the file splits: gates and ups of Granite's experts."""
    folder = make_model(tmp_path / "model", family, **NOT_IN_GGUF.get(family, {}))
    made = dlf.convert(write_gguf(tmp_path / "model.gguf", folder), tmp_path / "made")
    expected, found = (load_file(one / "model.safetensors") for one in (folder, made))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    tokens = [5, 17, 300, 42]
    assert torch.equal(logits(made, tokens), logits(folder, tokens))


def test_frequencies_of_a_tensor(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "llama3")
    (ours,) = open_checkpoint(write_gguf(tmp_path / "model.gguf", folder)).config.spec.ropes
    (theirs,) = open_checkpoint(folder).config.spec.ropes
    assert torch.allclose(torch.tensor(ours.inv_freq), torch.tensor(theirs.inv_freq), rtol=1e-6, atol=0)
    assert ours.scaling == theirs.scaling


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind not in FLOATS])
def test_types_have_the_values_of_the_package(tmp_path: Path, kind: str) -> None:
    rows, columns, seen = 37, 512, GGMLQuantizationType[kind]
    blocks = random_blocks(seen, rows, columns)
    (tmp_path / "blocks").write_bytes(b"abc" + blocks.tobytes())  # not aligned
    tensor = GgufTensor(seen, (rows, columns), tmp_path / "blocks", 3, blocks.nbytes)
    expected = torch.from_numpy(dequantize(blocks, seen))
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(read_values(tensor), expected)
    assert torch.equal(read_values(tensor, torch.bfloat16), expected.bfloat16())
    if seen in UNPACK:
        assert torch.equal(read_packed(tensor).dequantize(), expected)


def test_large_tensors_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlf.checkpoints.gguf.values.CHUNK_BYTES", 1000)
    test_types_have_the_values_of_the_package(tmp_path, "Q6_K")
    test_types_have_the_values_of_the_package(tmp_path, "IQ4_NL")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_models(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlf.checkpoints.gguf.values.CHUNK_BYTES", 1000)  # so that matrices come in parts
    folder = make_model(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    file = write_gguf(tmp_path / "model.gguf", folder, kind)
    source, whole = Gguf(file), load_file(folder / "model.safetensors")
    for name, expected in whole.items():
        found = source.read(name)
        assert found.shape == expected.shape == source.layout(name).shape
        coarse = 0.25 if kind.startswith("Q4") else 0.13 if kind.startswith("Q5") else 0.02
        assert (found.float() - expected).abs().max() <= (coarse * expected.abs().max() if expected.dim() > 1 else 0)
        assert torch.equal(torch.cat(list(source.rows(name))), found)
        assert (name in source.config.packed) == (kind[0] == "Q" and expected.dim() > 1)
        if name in source.config.packed:
            matrices = list(source.packed(name))
            assert all(len(one.values) % 16 == 0 for one in matrices[:-1])
            assert torch.equal(torch.cat([one.dequantize() for one in matrices]), found)
    load_tensors(source, torch.bfloat16)
    assert set(describe(str(file))["dtypes"]) == {"F32", kind}
    assert set(source.kinds.values()) == ({f"GGUF {kind}"} if kind[0] == "Q" else set())


def test_float_tensors_are_mapped(file: Path, folder: Path) -> None:
    tensors = load_tensors(Gguf(file), torch.float32, by_row={"model.embed_tokens.weight"})
    maps = Path("/proc/self/maps").read_text().splitlines()

    def mapped(address: int) -> bool:
        for line in maps:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= address < end:
                return line.endswith(str(file))
        return False

    assert mapped(tensors["model.embed_tokens.weight"].data_ptr())
    assert mapped(tensors["model.layers.1.mlp.down_proj.weight"].data_ptr())


def test_split_files(tmp_path: Path, folder: Path, file: Path) -> None:
    first = write_gguf(tmp_path / "model.gguf", folder, split=7)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert first == parts[0] and len(parts) > 3
    tokens = [3, 1, 4, 1, 5]
    expected = logits(file, tokens)
    for part in (parts[0], parts[-1]):
        assert torch.equal(logits(part, tokens), expected)
    assert describe(str(first))["disk_bytes"] == sum(os.path.getsize(part) for part in parts)
    renamed = parts[2].with_name("kept")
    parts[2].rename(renamed)
    with pytest.raises(FileNotFoundError, match=rf"00003-of-0*{len(parts)}.gguf is missing; fetch all"):
        open_checkpoint(first)
    parts[1].with_name(parts[2].name).write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match="says that it is part 1 of"):
        open_checkpoint(first)


def test_engine(tmp_path: Path, folder: Path, file: Path) -> None:
    """A file is a large model, an expert, a base and a drafter, beside folders."""
    prompt = "The quick brown fox"
    expert = make_model(tmp_path / "expert", "smollm", seed=3)
    other = write_gguf(tmp_path / "expert.gguf", expert)

    def tokens(large: Path, expert: Path, base: Path, **options: Any) -> list[int]:
        with dlf.Engine(large, [dlf.Expert(expert, base, name="e")], dtype="float32", **options) as engine:
            found: list[int] = engine.generate(prompt, max_new_tokens=12, temperature=0).tokens
            return found

    expected = tokens(folder, expert, folder)
    assert tokens(file, other, file) == tokens(folder, other, file) == expected
    assert tokens(file, other, file, drafter=other) == expected
    assert label_of("a/b/model.Q4_1.gguf") == "model.Q4_1" and label_of("org/name:q/model.gguf") == "model"


def test_written_as_a_folder(tmp_path: Path, folder: Path, file: Path) -> None:
    """A merge with a file as its base is a folder that transformers reads, with the tokenizer."""
    expert = make_model(tmp_path / "expert", "smollm", seed=3)
    merged = dlf.TaskArithmetic(file, {expert: 0.0}).save(tmp_path / "merged")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    a, b = (transformers.AutoModelForCausalLM.from_pretrained(one)(tokens).logits for one in (merged, folder))
    assert torch.allclose(a, b, atol=1e-5)
    for text in TEXTS:
        assert Tokenizer(merged).encode(text) == Tokenizer(folder).encode(text)
    assert Tokenizer(merged).chat_template == Tokenizer(folder).chat_template


def test_inspect_has_the_bytes_of_each_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    inspect(str(write_gguf(tmp_path / "m.gguf", folder, "Q4_1")))
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 x GGUF Q4_1: floats; 15.31 KiB in the file, 49 KiB in memory" in words
    assert "minimum for 32 inputs; 90.31 KiB in the file, 90.62 KiB in memory" in words


def test_inspect(folder: Path, file: Path) -> None:
    ours, theirs = describe(str(file)), describe(str(folder))
    for key in theirs.keys() - {"path", "disk_bytes"}:
        assert ours[key] == theirs[key], key


# --- Tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_tokenizer, make_qwen_tokenizer])
def test_byte_level_tokenizer(tmp_path: Path, folder: Path, make: Any) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    ours, theirs = open_source(write_gguf(tmp_path / "model.gguf", tmp_path)).tokenizer(), Tokenizer(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert not ours.confined
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    talk = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    assert ours.vocab == theirs.vocab and ours.vocab_size == theirs.vocab_size


def pieces_of(pre: str, text: str) -> list[str]:
    """Split a text as the pre-tokenizer of this name does."""
    import tokenizers

    from dlf.checkpoints.gguf.tokenizer import SPLITS

    steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in SPLITS[pre]]
    return [piece for piece, _ in tokenizers.pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["I", "'ve", " 1234", " x", "=", "1", "\n\n ", " b"]),
        ("smollm", ["I", "'ve", " ", "1", "2", "3", "4", " x", "=", "1", "\n\n ", " b"]),
        ("llama-bpe", ["I", "'ve", " ", "123", "4", " x", "=", "1", "\n\n", " ", " b"]),
        ("qwen2", ["I", "'ve", " ", "1", "2", "3", "4", " x", "=", "1", "\n\n", " ", " b"]),
        ("default", ["I", "'", "ve", " ", "123", "4", " x", "=", "1", "\n\n ", " b"]),
    ],
)
def test_pre_tokenizers(pre: str, expected: list[str]) -> None:
    assert pieces_of(pre, "I've 1234 x=1\n\n  b") == expected


def sentence_piece(tmp_path: Path, **changes: Any) -> tuple[Tokenizer, dict[str, float], list[str]]:
    """Return the tokenizer of a vocabulary with scores, its scores, and its tokens."""
    dice = random.Random(0)
    text = " ".join(CORPUS).replace(" ", "▁").replace("\n", "▁")
    words = {text[i : i + dice.randrange(2, 7)] for i in range(0, len(text), 2)}
    parts = {word[:end] for word in words for end in range(2, len(word))} | {word[1:] for word in words}
    letters = set(text) - set("世界🙂")
    normal = sorted(letters) + sorted(part for part in words | parts if len(part) > 1 and set(part) <= letters)
    dice.shuffle(normal)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal, "<user>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(normal), 4]
    scores = {token: -float(rank) for rank, token in enumerate(normal)}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [scores.get(token, -1e4) for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    write_file(tmp_path / "v.gguf", "llama", metadata, {})
    return open_source(tmp_path / "v.gguf").tokenizer(), scores, tokens


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(tmp_path: Path, prefix: bool) -> None:
    tokenizer, scores, tokens = sentence_piece(tmp_path, add_space_prefix=prefix)
    assert not tokenizer.confined
    for text in [*CORPUS, "over the dog", "  the  lazy", "naïver 世界 🙂"]:
        ids = tokenizer.encode(text)
        assert ids[0] == 1
        assert [tokens[i] for i in ids[1:]] == sentencepiece.encode(text, scores, prefix)
        assert tokenizer.decode(ids) == text
    found = [tokens[i] for i in tokenizer.encode("a<user>b<s>")]
    assert found == ["<s>", *(["▁", "a"][not prefix :]), "<user>", *(["▁", "b"][not prefix :]), "<s>"] or prefix
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_tokens_around_a_text(tmp_path: Path) -> None:
    tokenizer, _, _ = sentence_piece(tmp_path, add_bos_token=False, add_eos_token=True)
    assert tokenizer.encode("a")[-1] == 2 and tokenizer.encode("a")[0] != 1


def test_ends_of_a_text(tmp_path: Path, folder: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", folder, tokenizer__ggml__eot_token_id=7)
    assert open_checkpoint(path).config.eos_token_ids == (1, 7)


def test_named_templates(tmp_path: Path, folder: Path) -> None:
    changes = {"tokenizer__chat_templates": ["tool_use"], "tokenizer__chat_template__tool_use": "tools: {{ tools }}"}
    tokenizer = open_checkpoint(write_gguf(tmp_path / "m.gguf", folder, **changes)).tokenizer()
    assert tokenizer.apply_chat_template([], tools=[1]) == "tools: [1]"
    assert tokenizer.chat_template == Tokenizer(folder).chat_template


# --- Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smollm": None, "general__alignment": 33}, "multiples of 33"),
        ({"tokenizer__ggml__model": "bert"}, "the model 'bert'; dlf reads gpt2, llama and t5"),
        ({"tokenizer__ggml__pre": "new"}, "the pre-tokenizer 'new'; dlf reads gpt-2"),
        ({"tokenizer__ggml__tokens": ["a", "a"]}, "2 tokens of which 1 differ"),
        ({"tokenizer__ggml__tokens": None}, "no list of tokenizer.ggml.tokens"),
        ({"llama__block_count": None}, "'num_hidden_layers' must be an integer|no tensor"),
        ({"llama__block_count": 9}, "no tensor 'blk.3.attn_norm.weight': the model is incomplete"),
        ({"llama__embedding_length": 80}, "shape .* but the metadata asks for"),
        ({"llama__attention__head_count": "nine"}, "'num_attention_heads' must be an integer"),
        ({"llama__attention__value_length": 3}, "values of another size"),
        ({"llama__rope__scaling__type": "new", "llama__rope__scaling__factor": 2.0}, "one of the scalings"),
    ],
)
def test_mistakes_in_metadata(tmp_path: Path, folder: Path, changes: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", folder, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_unknown_architecture(tmp_path: Path) -> None:
    write_file(tmp_path / "model.gguf", "mamba", {}, {"token_embd.weight": torch.zeros(4, 4)})
    with pytest.raises(dlf.UnknownArchitectureError, match="'general.architecture' is 'mamba'; dlf runs llama, qwen2"):
        open_checkpoint(tmp_path / "model.gguf")


def test_files_that_are_none(tmp_path: Path, file: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "model.gguf"

    def error(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as raised:
            load_model(path)
        return str(raised.value)

    assert "is no GGUF file" in error(b"PK\3\4 something else")
    assert "ends" in error(b"")
    assert "Git LFS pointer" in error(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "version 1 of GGUF" in error(content[:4] + struct.pack("<I", 1) + content[8:])
    assert "version 50331648" in error(content[:4] + struct.pack(">I", 3) + content[8:])
    assert "ends before tensor" in error(content[: len(content) // 2])
    assert f"has {1 << 60} tensors" in error(content[:8] + struct.pack("<Q", 1 << 60) + content[16:])
    with pytest.raises(FileNotFoundError, match="a file in GGUF format"):
        resolve(Path(__file__))
    with pytest.raises(FileNotFoundError, match="GGUF files: give one of these"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_checkpoint(tmp_path / "none.gguf")


def test_a_kind_that_is_not_read(tmp_path: Path, file: Path) -> None:
    header = read_gguf(file)
    name = "blk.0.ffn_down.weight"
    content = bytearray(file.read_bytes())
    place = content.index(name.encode()) + len(name) + 4 + 16
    assert content[place : place + 4] == struct.pack("<I", 0) and header.tensors[name].kind.name == "F32"
    for number, message in ((24, "has type I8; dlf reads"), (99, "has type 99, which is not known")):
        content[place : place + 4] = struct.pack("<I", number)
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "model.gguf")


def test_a_file_that_shrinks(tmp_path: Path, folder: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", folder, "Q8_0")
    source = Gguf(path)
    assert source.config
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(CheckpointError, match="has become shorter"):
        load_tensors(source, torch.float32)


def test_hub_files(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "a.gguf", folder)
    write_gguf(tmp_path / "q" / "b.gguf" if (tmp_path / "q").mkdir() else tmp_path / "q" / "b.gguf", folder, split=9)
    asked: list[tuple[Any, ...]] = []

    def fetch(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve("org/name:a.gguf") == tmp_path / "a.gguf"
    (part,) = (tmp_path / "q").glob("b-00001-*.gguf")
    assert resolve(f"org/name@v1:q/{part.name}", weights=False) == part
    count = part.name[-10:-5]
    assert asked == [("org/name", None, ["a.gguf"]), ("org/name", "v1", [f"q/b-?????-of-{count}.gguf"])]
    with pytest.raises(FileNotFoundError, match="org/name has no file 'c.gguf'"):
        resolve("org/name:c.gguf")
    for name in ("org/name:../a.gguf", "org/name:/a.gguf", "org/name:a.bin", "name:a.gguf"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            resolve(name)


# --- Untrusted files -----------------------------------------------------------------------------------------------


def mutate(dice: random.Random, content: bytes, header: int) -> bytes:
    """Change bytes, lengths, counts and offsets, most of them in the header."""
    changed = bytearray(content)
    for _ in range(dice.randrange(1, 5)):
        place = dice.randrange(header if dice.random() < 0.9 else len(changed) - 8)
        size = dice.choice([1, 1, 4, 8])
        number = dice.choice([0, 1, 2, 255, 1 << 15, (1 << 31) - 1, 1 << 32, 1 << 63, dice.getrandbits(64)])
        changed[place : place + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if dice.random() < 0.1:
        changed = changed[: dice.randrange(len(changed))]
    if dice.random() < 0.1:
        place = dice.randrange(header)
        changed[place:place] = bytes(dice.randrange(1, 64))
    return bytes(changed)


def fuzz(tmp_path: Path, rounds: int) -> None:
    dice = random.Random(0)
    folder = make_model(tmp_path / "model", "llama3", num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    contents = [write_gguf(tmp_path / f"{kind}.gguf", folder, kind).read_bytes() for kind in ("F32", "Q8_0", "Q4_1")]
    seen: Counter[bool] = Counter()
    path = tmp_path / "fuzzed.gguf"
    for _ in range(rounds):
        content = dice.choice(contents)
        header = content.index(b"token_embd") + 3000
        path.write_bytes(mutate(dice, content, header))
        try:
            load_model(path)
            seen[True] += 1
        except (CheckpointError, FileNotFoundError) as error:
            assert str(error).isprintable() and str(path) in str(error) and ";" in str(error) or ":" in str(error)
            seen[False] += 1
    assert min(seen[True], seen[False]) > 0.05 * rounds


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzz(tmp_path: Path, rounds: int) -> None:
    with warnings.catch_warnings(action="ignore"):
        fuzz(tmp_path, rounds)


def test_integers_of_every_unpacked_type_have_tiles() -> None:
    formats = {kind.name: format_of(kind) for kind in UNPACK}
    assert all(formats.values())
    assert {name: one.bits for name, one in formats.items() if one} == {
        "Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q5_0": 6, "Q5_1": 6, "Q4_K": 4, "Q5_K": 6, "Q6_K": 6,
        "Q2_K": 4, "Q3_K": 4, "IQ4_NL": 8, "IQ4_XS": 8,
    }  # fmt: skip
