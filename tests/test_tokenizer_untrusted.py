"""A tokenizer.json is untrusted: any content gives a tokenizer or one of our errors, in bounded time."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from models import make_sentencepiece_tokenizer, make_tokenizer
from tokenizer_mutations import mutate

from dlf import zoo
from dlf.confined.helper import HelperError
from dlf.errors import CheckpointError
from dlf.text import tokenizer_codec
from dlf.text.stream_decoder import StreamDecoder
from dlf.text.tokenizer import Tokenizer
from dlf.text.tokenizer_check import unusual
from dlf.text.tokenizer_codec import ConfinedCodec

SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def document() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((Path(zoo.path("small-base")) / "tokenizer.json").read_text("utf-8"))
    return values


def load(folder: Path, **change: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(document() | change))
    return Tokenizer(folder)


def template(single: list[Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}


CHARSMAP = base64.b64encode(struct.pack("<I", 8) + b"\xff" * 12).decode()
OF_A_PAIR = template([{"Sequence": {"id": "B", "type_id": 0}}])
NAMELESS = template([{"SpecialToken": {"id": "x", "type_id": 0}}])


@pytest.mark.parametrize(
    "change",
    [
        {"model": document()["model"] | {"continuing_subword_prefix": "xxxxxxxxxxxx"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a+)+$"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "("}}},
        {"normalizer": {"type": "Prepend", "prepend": ""}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "x?"}, "content": "a"}},
        {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 40}},
        {"post_processor": OF_A_PAIR},
        {"post_processor": NAMELESS},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "zz"}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["q", 0.0]], "byte_fallback": False}},
        {"decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 1}},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] + [GROWING] * 40}},
    ],
)
def test_what_makes_the_library_panic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    monkeypatch.setattr(tokenizer_codec, "SECONDS", 1)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        tokenizer = load(tmp_path, **change)
        for text in ("a" * 30 + "b", "a", "the quick", "b"):
            tokenizer.encode(text)
        for token_id in range(300):
            tokenizer.decode([token_id], skip_special_tokens=False)


def test_a_confined_tokenizer_is_like_a_plain_one(tmp_path: Path) -> None:
    plain = load(tmp_path)
    # The same split in a form that the check does not know.
    (tmp_path / "confined").mkdir()
    confined = load(
        tmp_path / "confined",
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [SPLIT | {"pattern": {"Regex": "(?:[^0-9]*)?(?:$|[0-9])"}}, document()["pre_tokenizer"]],
        },
    )
    assert isinstance(confined._codec, ConfinedCodec) and not isinstance(plain._codec, ConfinedCodec)
    assert (confined.vocab, confined.vocab_size) == (plain.vocab, plain.vocab_size)
    text = "The quick brown fox adds 12 and 30 é 🙂"
    ids = confined.encode(text)
    assert ids == plain.encode(text)
    assert confined.decode(ids) == plain.decode(ids)
    assert [confined.token(i) for i in (*ids, 10**6)] == [plain.token(i) for i in (*ids, 10**6)]
    assert [confined.is_special(i) for i in range(300)] == [plain.is_special(i) for i in range(300)]
    pieces = [list(map(StreamDecoder(one).push, ids)) for one in (confined, plain)]
    assert pieces[0] == pieces[1]
    with pytest.raises(ValueError, match="surrogate"):
        confined.encode("a\ud800")
    wrong = []

    def encode(part: str) -> None:
        if any(confined.encode(part) != plain.encode(part) for _ in range(30)):
            wrong.append(part)

    threads = [threading.Thread(target=encode, args=(text[: 5 * i],)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_a_text_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "SECONDS", 1)
    tokenizer = load(tmp_path, normalizer={"type": "Sequence", "normalizers": [GROWING] * 24})
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot encode this text: it (takes|needs)"):
        tokenizer.encode("a" * 200)
    assert tokenizer.encode("b") == load(tmp_path).encode("b")


def test_a_key_that_stands_twice_is_not_trusted(tmp_path: Path) -> None:
    text = json.dumps(document())
    (tmp_path / "tokenizer.json").write_text(text.replace('"normalizer"', '"normalizer": null, "normalizer"', 1))
    with contextlib.suppress(CheckpointError):  # the library may refuse it too
        assert isinstance(Tokenizer(tmp_path)._codec, ConfinedCodec)


def test_a_text_has_one_encoding(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, model=document()["model"] | {"dropout": 0.5})
    text = "the quick brown fox jumps"
    assert all(tokenizer.encode(text) == load(tmp_path).encode(text) for _ in range(5))


def test_no_process_is_started_for_a_plain_tokenizer(tmp_path: Path) -> None:
    program = (
        "import dlf; from dlf import zoo; from dlf.text.tokenizer import Tokenizer\n"
        "import sys, subprocess; subprocess.Popen = None\n"
        "Tokenizer(zoo.path('small-base')).encode('a'); assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_helper_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(CheckpointError, match="cannot be started"):
        load(tmp_path, pre_tokenizer={"type": "FixedLength", "length": 5})
    assert issubclass(HelperError, ValueError)


# Regexes of Llama 3, Qwen2, GPT-2, GPT-4o and Mistral, DeepSeek-V3, and others.
LINEAR = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    " {2,}",
    "[0-9][0-9][0-9]",
]
NOT_LINEAR = [
    *["(a+)+$", "a+b", "a*a*a*b", "a{1,9}a{1,9}a{1,9}a{1,9}b", "a{3,}b", ".*x", "[a&&[b]]+", r"(a)\1"],
    *[r"\s*[\r\n]+", r"\s*[\r\n]+| |\s+", "", "a*", "x?", "a|", "a|b*", "^", "(?=a)", "a{0,5}", "(", "a" * 3000],
]


@pytest.mark.parametrize("regex", LINEAR)
def test_regexes_of_well_known_models_are_plain(tmp_path: Path, regex: str) -> None:
    assert unusual(document() | {"pre_tokenizer": SPLIT | {"pattern": {"Regex": regex}}}) is None
    tokenizer = load(tmp_path, pre_tokenizer=SPLIT | {"pattern": {"Regex": regex}})
    assert len(tokenizer.encode(" " * 20_000 + "A" * 20_000 + "\n" * 20_000 + "x1" * 10_000)) >= 1


@pytest.mark.parametrize("regex", NOT_LINEAR)
def test_other_regexes_are_not(regex: str) -> None:
    assert unusual(document() | {"pre_tokenizer": SPLIT | {"pattern": {"Regex": regex}}}) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, GROWING]}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}},
        {"pre_tokenizer": SPLIT | {"pattern": {"String": " "}, "behavior": "MergedWithPrevious"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5]], "byte_fallback": True}},
        {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3},
            },
        },
    ],
)
def test_other_parts_of_well_known_models_are_plain(tmp_path: Path, change: dict[str, Any]) -> None:
    assert unusual(document() | change) is None
    tokenizer = load(tmp_path, **change)
    tokenizer.decode(tokenizer.encode("a naïve  café"))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 7}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 2}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 100}},
        {
            "normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(b"\0" * 4 + b"a" * 99).decode(),
            }
        },
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [document()["pre_tokenizer"]["pretokenizers"][1]] * 7}},
        {"decoder": {"type": "Sequence", "decoders": [GROWING] * 7}},
        {"added_tokens": [{"content": "\n", "lstrip": True}]},
        {"added_tokens": [{"content": f"{i:01000}"} for i in range(1100)]},
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 1000, 0.0]] * 5000}},
    ],
)
def test_what_would_take_much_time_or_memory_is_confined(change: dict[str, Any]) -> None:
    assert unusual(document() | change) is not None


@pytest.mark.parametrize("make", [make_tokenizer, make_sentencepiece_tokenizer])
def test_tokenizers_of_the_tests_are_plain(tmp_path: Path, make: Any) -> None:
    assert unusual(json.loads((make(tmp_path) / "tokenizer.json").read_text())) is None


def test_long_texts_are_refused_before_they_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(tmp_path)
    text = "The quick brown fox " * 100_000
    sizes: list[int] = []
    encode = tokenizer._codec.encode

    def record(text: str, add_special_tokens: bool) -> list[int]:
        sizes.append(len(text))
        return encode(text, add_special_tokens)

    monkeypatch.setattr(tokenizer._codec, "encode", record)
    with pytest.raises(ValueError, match="at least 513 tokens"):
        tokenizer.encode(text, max_tokens=512)
    assert max(sizes) < 10_000
    with pytest.raises(ValueError, match="at least 1 tokens"):
        tokenizer.encode(text, max_tokens=-1)
    for fits in ("The quick brown fox " * 80, " " * 5000 + "a", ""):
        assert tokenizer.encode(fits, max_tokens=512) == encode(fits, True)


def test_spaces_that_a_normalizer_removes_do_not_count(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
    text = " " * 100_000 + "a" + " " * 100_000
    assert tokenizer.encode(text, max_tokens=2) == tokenizer.encode("a")


def fuzz(folder: Path, seeds: range) -> None:
    makers = (make_tokenizer, make_sentencepiece_tokenizer)
    bases = [json.loads((make(folder / make.__name__) / "tokenizer.json").read_text()) for make in makers]
    bases.append(document())
    texts = ["", "a", "a" * 30 + "b", "the quick", "Ein naïver Café 你好 🙂 don't .", "the quick  brown fox 12 " * 200]
    read = 0
    for seed in seeds:
        pick = random.Random(seed)
        (folder / "tokenizer.json").write_bytes(mutate(pick.choice(bases), pick))
        try:
            tokenizer = Tokenizer(folder)
        except CheckpointError:
            continue
        read += 1
        for text in texts:
            try:
                tokenizer.encode(text)
            except ValueError:
                break
        for skip in (True, False):
            ids = [pick.randrange(min(tokenizer.vocab_size + 2, 500)) for _ in range(pick.randrange(25))]
            stream = StreamDecoder(tokenizer, skip)
            try:
                whole = tokenizer.decode(ids, skip)
                assert "".join(map(stream.push, ids)) + stream.flush() == whole, seed
            except ValueError:
                continue
    assert 0 < read < len(seeds)


def test_mutations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "SECONDS", 1)
    fuzz(tmp_path, range(60))


@pytest.mark.slow
def test_mutations_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "SECONDS", 2)
    fuzz(tmp_path, range(1000, 5000))
