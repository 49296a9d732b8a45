"""Encoding, streamed decoding, chat templates, and comparison of tokenizers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CORPUS, QWEN, R1, VOCAB_SIZE, make_qwen_tokenizer, make_sentencepiece_tokenizer, make_tokenizer

from dlf.errors import CheckpointError, TokenizerMismatchError
from dlf.text.same_tokenizer import AddedDifference, check_same_tokenizer
from dlf.text.stream_decoder import StreamDecoder
from dlf.text.tokenizer import Tokenizer

MAKERS: dict[str, Callable[[Path], Path]] = {"bytes": make_tokenizer, "sentencepiece": make_sentencepiece_tokenizer}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(MAKERS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("text", [*CORPUS, "", " ", "  two  spaces ", "\n\n", "🙂🙂", "\ufffd", "日本語のテキスト"])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_token_id is not None
    assert tokenizer.eos_token_id == tokenizer.bos_token_id + 1
    ids = [tokenizer.bos_token_id, *tokenizer.encode("the"), tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("<|end|>")
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_what_is_no_text_and_no_id(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError, match="bytes"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]
    for token_id in (-1, 2**40):
        with pytest.raises(ValueError, match="token id"):
            tokenizer.decode([token_id])


def test_vocab_size_counts_added_tokens(tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    assert Tokenizer(tmp_path).vocab_size == VOCAB_SIZE
    values = json.loads(path.read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["added_tokens"].append(token | {"id": VOCAB_SIZE, "content": "<pad>"})
    path.write_text(json.dumps(values))
    assert Tokenizer(tmp_path).vocab_size == VOCAB_SIZE + 1


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("text", [*CORPUS, " a", "   a", "é", "👩‍👩‍👧‍👦 family", "\ufffd x \ufffd", "日本語"])
def test_stream_gives_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_stream_does_not_hold_back_plain_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_tokenizer(tmp_path))
    ids = tokenizer.encode(CORPUS[0])
    assert stream(tokenizer, ids) == [*(tokenizer.decode([token_id]) for token_id in ids), ""]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=60))
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_stream_equals_decode_for_any_bytes(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any bytes, valid UTF-8 or not, one token each; lead bytes of long characters are frequent."""
    byte = st.one_of(st.integers(0, 255), st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE4, 0xBD, 0xC3, 0xFF, 0x20]))
    table = byte_tokens(tokenizer)
    ids = [table[value] for value in data.draw(st.lists(byte, max_size=60))]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def byte_tokens(tokenizer: Tokenizer) -> list[int]:
    if "<0x00>" in tokenizer.vocab:
        return [tokenizer.vocab[f"<0x{value:02X}>"] for value in range(256)]
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [tokenizer.vocab[character] for _, character in sorted(bytes_to_unicode().items())]


@pytest.mark.parametrize("bad", [False, True], ids=["text", "invalid bytes"])
def test_stream_cost_does_not_grow(tmp_path: Path, bad: bool) -> None:
    tokenizer = Tokenizer(make_tokenizer(tmp_path))
    ids = ([byte_tokens(tokenizer)[0xFF]] if bad else tokenizer.encode(CORPUS[0])) * 400
    decoder = StreamDecoder(tokenizer)
    longest = 0
    for token_id in ids:
        decoder.push(token_id)
        longest = max(longest, len(decoder._window))
    assert longest <= StreamDecoder._PATIENCE + 1
    start = time.perf_counter()
    stream(tokenizer, ids)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("generate", [True, False])
def test_chat_template_equals_transformers(tmp_path: Path, generate: bool) -> None:
    make_tokenizer(tmp_path)
    template = (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'skip' %}{% continue %}{% endif %}\n"
        "<{{ m.role }}>{{ m | tojson }}{% generation %}{{ m.content | trim }}{% endgeneration %}\n{% endfor %}\n"
        "{% if tools is not none %}{{ tools }}{% endif %}{{ strftime_now('%Y') }}{{ thinking }}"
        "{% if add_generation_prompt %}<assistant>{% endif %}{{ eos_token }}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": " <b>é & ü</b> "}, {"role": "skip", "content": "x"}]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, thinking=True)
    assert Tokenizer(tmp_path).apply_chat_template(messages, generate, thinking=True) == expected


def write_config(folder: Path, **values: object) -> Tokenizer:
    make_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return Tokenizer(folder)


def test_named_chat_templates(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert write_config(tmp_path, chat_template=templates).apply_chat_template([]) == "yes"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('system first') }}", "system first"),
        ("{% if %}", "refuses"),
        ("{{ messages[3].content.x }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses"),
    ],
)
def test_failing_chat_templates(tmp_path: Path, template: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_config(tmp_path, chat_template=template).apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]", b'{"model": {"type": "BPE"}}', b"[" * 100_000])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(content)
    if file == "tokenizer_config.json" and content.startswith(b"{"):
        Tokenizer(tmp_path)
    else:
        with pytest.raises(CheckpointError, match=file):
            Tokenizer(tmp_path)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a Git LFS pointer.*git lfs pull"):
        Tokenizer(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*AutoTokenizer"):
        Tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="too long"):
        Tokenizer(tmp_path / ("a" * 5000))


def edit_vocab(folder: Path, edit: Callable[[dict[str, int]], None]) -> Tokenizer:
    """Make a tokenizer without merges and with an edited vocabulary."""
    path = make_tokenizer(folder) / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["merges"] = []
    edit(values["model"]["vocab"])
    path.write_text(json.dumps(values))
    return Tokenizer(folder)


def test_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_tokenizer(tmp_path / "a"))
    check_same_tokenizer(tokenizer, Tokenizer(make_tokenizer(tmp_path / "b")), "a", "b")
    longer = edit_vocab(tmp_path / "c", lambda vocab: vocab.update({"new": VOCAB_SIZE, "newer": VOCAB_SIZE + 9}))
    check_same_tokenizer(tokenizer, longer, "a", "c")
    check_same_tokenizer(longer, tokenizer, "c", "a")


def test_a_token_that_no_model_has_may_differ(tmp_path: Path) -> None:
    one = edit_vocab(tmp_path / "a", lambda vocab: vocab.update({"<pad>": VOCAB_SIZE}))
    other = edit_vocab(tmp_path / "b", lambda vocab: vocab.update({"[PAD]": VOCAB_SIZE}))
    with pytest.raises(TokenizerMismatchError):
        check_same_tokenizer(one, other, "a", "b")
    with pytest.raises(TokenizerMismatchError):
        check_same_tokenizer(one, other, "a", "b", VOCAB_SIZE + 1)
    check_same_tokenizer(one, other, "a", "b", VOCAB_SIZE)


def test_different_tokenizers(tmp_path: Path) -> None:
    def swap(vocab: dict[str, int]) -> None:
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    def rename(vocab: dict[str, int]) -> None:
        vocab["new"] = vocab.pop("a")

    def move(vocab: dict[str, int]) -> None:
        vocab["a"] = VOCAB_SIZE + 1

    original = Tokenizer(make_tokenizer(tmp_path / "original"))
    for edit, count in ((swap, 2), (rename, 1), (move, 1)):
        other = edit_vocab(tmp_path / edit.__name__, edit)
        for pair in ((original, other, "large", "small"), (other, original, "small", "large")):
            with pytest.raises(TokenizerMismatchError, match=f"{count} of .*large|{count} of .*small") as caught:
                check_same_tokenizer(*pair)
            assert "'a' in" in str(caught.value)
            assert "small" in str(caught.value)
            assert "large" in str(caught.value)
    with pytest.raises(TokenizerMismatchError, match="family"):
        check_same_tokenizer(original, Tokenizer(make_sentencepiece_tokenizer(tmp_path / "s")), "large", "small")


def test_renamed_added_tokens(tmp_path: Path) -> None:
    qwen, r1 = Tokenizer(make_qwen_tokenizer(tmp_path / "q")), Tokenizer(make_qwen_tokenizer(tmp_path / "r", r1=True))
    first = VOCAB_SIZE - len(QWEN)
    expected = [AddedDifference(first + i, QWEN[i], R1[i]) for i in range(4)]
    assert check_same_tokenizer(qwen, r1, "a", "b") == expected
    assert check_same_tokenizer(qwen, r1, "a", "b", first + 2) == expected[:2]


def test_missing_moved_and_replaced_added_tokens(tmp_path: Path) -> None:
    qwen = Tokenizer(make_qwen_tokenizer(tmp_path / "q"))

    def edited(name: str, edit: Callable[[dict[str, Any]], None]) -> Tokenizer:
        path = make_qwen_tokenizer(tmp_path / name) / "tokenizer.json"
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))
        return Tokenizer(path.parent)

    shorter = edited("shorter", lambda values: values["added_tokens"].pop())
    last = VOCAB_SIZE - 1
    assert check_same_tokenizer(qwen, shorter, "a", "b") == [AddedDifference(last, QWEN[4], None)]
    assert check_same_tokenizer(shorter, qwen, "b", "a") == [AddedDifference(last, None, QWEN[4])]

    def swap(values: dict[str, Any]) -> None:
        one, other = values["added_tokens"][:2]
        one["content"], other["content"] = other["content"], one["content"]

    def as_ordinary(values: dict[str, Any]) -> None:
        values["model"]["vocab"]["zzz"] = values["added_tokens"].pop()["id"]

    for other in (edited("swapped", swap), edited("ordinary", as_ordinary)):
        for pair in ((qwen, other), (other, qwen)):
            with pytest.raises(TokenizerMismatchError, match="tokens differ"):
                check_same_tokenizer(*pair, "a", "b")


def fuzz(folder: Path, rounds: int) -> None:
    """Mutate tokenizer.json; every outcome is a tokenizer or one of our errors."""
    random = np.random.default_rng(0)
    path = make_sentencepiece_tokenizer(folder) / "tokenizer.json"
    original = path.read_bytes()
    read = 0
    for _ in range(rounds):
        content = bytearray(original)
        for _ in range(random.integers(1, 4)):
            content[random.integers(len(content))] = random.integers(256)
        path.write_bytes(content)
        try:
            tokenizer = Tokenizer(folder)
        except CheckpointError:
            continue
        tokenizer.decode(tokenizer.encode("the text"))
        read += 1
    assert 0 < read < rounds


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzz(tmp_path: Path, rounds: int) -> None:
    fuzz(tmp_path, rounds)
