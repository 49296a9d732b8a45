"""Random changes of a ``tokenizer.json``: components with random parameters, and damaged values."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

TEXTS = ["", "a", " ", "▁", "##", "Ġ", "</w>", "aa", "\ufffd", "<0x41>", "é", "x" * 40, "\n", "<s>", "e", "th", "q"]
REGEXES = ["x?", "a*", "(a+)+$", r"\s+", r"\p{L}+", "(", "a|", r"(a|b)\1", "^", "(?=a)", r"\d{1,3}", "[a-z]+?x", "."]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
CHARSMAPS = [b"", b"\0\0\0", struct.pack("<I", 8) + b"\xff" * 12, struct.pack("<I", 4) + b"\0" * 4 + b"ab\0"]


def model(values: dict[str, Any], pick: random.Random) -> dict[str, Any]:
    """Return another model with the tokens of this one."""
    vocab = values["model"]["vocab"]
    tokens = [entry[0] for entry in vocab] if isinstance(vocab, list) else list(vocab)
    tokens += pick.sample(TEXTS, 3)
    table = {token: i for i, token in enumerate(tokens)}
    kind = pick.randrange(4)
    if kind == 0:
        merges = [[a, b] for a in tokens[:60] for b in tokens[:60] if a + b in table]
        return {
            "type": "BPE",
            "dropout": pick.choice([None, 0.0, 0.5, 1.0]),
            "unk_token": pick.choice([None, "a", "zzz"]),
            "continuing_subword_prefix": pick.choice([None, "", "##", "aaaaaaaa"]),
            "end_of_word_suffix": pick.choice([None, "", "</w>"]),
            "fuse_unk": pick.random() < 0.5,
            "byte_fallback": pick.random() < 0.5,
            "ignore_merges": pick.random() < 0.5,
            "vocab": table,
            "merges": pick.choice([[], merges]),
        }
    if kind == 1:
        scored = [[token, -float(pick.randrange(20))] for token in table]
        unk = pick.choice([None, 0, 3, 10**6])
        return {"type": "Unigram", "unk_id": unk, "vocab": scored, "byte_fallback": pick.random() < 0.5}
    if kind == 2:
        return {"type": "WordLevel", "vocab": table, "unk_token": pick.choice(["a", "zzz"])}
    return {
        "type": "WordPiece",
        "unk_token": pick.choice(["a", "zzz"]),
        "continuing_subword_prefix": pick.choice(["##", ""]),
        "max_input_chars_per_word": pick.choice([0, 100, 10**9]),
        "vocab": table,
    }


def text(pick: random.Random) -> str:
    return pick.choice(TEXTS)


def pattern(pick: random.Random) -> dict[str, str]:
    return {"String": text(pick)} if pick.random() < 0.5 else {"Regex": pick.choice(REGEXES)}


def flag(pick: random.Random) -> bool:
    return pick.random() < 0.5


def replace(pick: random.Random) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern(pick), "content": text(pick)}


def metaspace(pick: random.Random) -> dict[str, Any]:
    scheme = pick.choice(["always", "first", "never"])
    return {"type": "Metaspace", "replacement": pick.choice("▁aé"), "prepend_scheme": scheme, "split": flag(pick)}


def byte_level(pick: random.Random) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": flag(pick), "trim_offsets": flag(pick), "use_regex": flag(pick)}


def normalizer(pick: random.Random) -> dict[str, Any]:
    return pick.choice(
        [
            lambda: {"type": pick.choice("NFC NFD NFKC NFKD Nmt Lowercase StripAccents ByteLevel".split())},
            lambda: {"type": "Strip", "strip_left": flag(pick), "strip_right": flag(pick)},
            lambda: {"type": "Prepend", "prepend": text(pick)},
            lambda: replace(pick),
            lambda: {
                "type": "BertNormalizer",
                "clean_text": flag(pick),
                "handle_chinese_chars": flag(pick),
                "strip_accents": pick.choice([None, True, False]),
                "lowercase": flag(pick),
            },
            lambda: {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(pick.choice(CHARSMAPS)).decode(),
            },
        ]
    )()


def pre_tokenizer(pick: random.Random) -> dict[str, Any]:
    return pick.choice(
        [
            lambda: {"type": pick.choice(["BertPreTokenizer", "UnicodeScripts", "Whitespace", "WhitespaceSplit"])},
            lambda: byte_level(pick),
            lambda: metaspace(pick),
            lambda: {"type": "CharDelimiterSplit", "delimiter": pick.choice("a é")},
            lambda: {"type": "Digits", "individual_digits": flag(pick)},
            lambda: {"type": "Punctuation", "behavior": pick.choice(BEHAVIORS)},
            lambda: {"type": "FixedLength", "length": pick.choice([0, 1, 5, 10**12])},
            lambda: {
                "type": "Split",
                "pattern": pattern(pick),
                "behavior": pick.choice(BEHAVIORS),
                "invert": flag(pick),
            },
        ]
    )()


def post_processor(pick: random.Random) -> dict[str, Any]:
    pieces = [
        {"Sequence": {"id": pick.choice("AAB"), "type_id": 0}},
        {"SpecialToken": {"id": text(pick), "type_id": 0}},
    ]
    named = text(pick)
    return pick.choice(
        [
            lambda: byte_level(pick),
            lambda: {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", pick.choice([0, 2**31])]},
            lambda: {
                "type": "RobertaProcessing",
                "sep": ["a", 1],
                "cls": ["b", 2],
                "trim_offsets": flag(pick),
                "add_prefix_space": flag(pick),
            },
            lambda: {
                "type": "TemplateProcessing",
                "single": pick.choices(pieces, k=pick.randrange(4)),
                "pair": pick.choices(pieces, k=pick.randrange(4)),
                "special_tokens": {named: {"id": named, "ids": [pick.choice([0, 7, 10**8])], "tokens": [named]}},
            },
        ]
    )()


def decoder(pick: random.Random) -> dict[str, Any]:
    return pick.choice(
        [
            lambda: {"type": pick.choice(["ByteFallback", "Fuse"])},
            lambda: byte_level(pick),
            lambda: metaspace(pick),
            lambda: replace(pick),
            lambda: {"type": "BPEDecoder", "suffix": text(pick)},
            lambda: {"type": "WordPiece", "prefix": text(pick), "cleanup": flag(pick)},
            lambda: {
                "type": "CTC",
                "pad_token": text(pick),
                "word_delimiter_token": text(pick),
                "cleanup": flag(pick),
            },
            lambda: {
                "type": "Strip",
                "content": pick.choice(" ae▁"),
                "start": pick.choice([0, 1, 2]),
                "stop": pick.choice([0, 0, 1]),
            },
        ]
    )()


PARTS = {
    "normalizer": (normalizer, "normalizers"),
    "pre_tokenizer": (pre_tokenizer, "pretokenizers"),
    "post_processor": (post_processor, "processors"),
    "decoder": (decoder, "decoders"),
}


def added_token(pick: random.Random) -> dict[str, Any]:
    token: dict[str, Any] = {key: flag(pick) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return token | {"id": pick.choice([0, 7, 400, 10**6]), "content": text(pick)}


def damage(value: Any, pick: random.Random) -> Any:
    """Change one value somewhere in a document."""
    if isinstance(value, dict) and value:
        key = pick.choice(list(value))
        return {**value, key: damage(value[key], pick)}
    if isinstance(value, list) and value:
        place = pick.randrange(len(value))
        return [*value[:place], damage(value[place], pick), *value[place + 1 :]]
    return pick.choice([None, True, -1, 0, 2**32, 1e308, "", "a", "▁" * 300, [], {}, value])


def mutate(values: dict[str, Any], pick: random.Random) -> bytes:
    """Return a changed copy as the content of a file."""
    values = dict(values)
    for _ in range(pick.randrange(1, 4)):
        what = pick.choice([*PARTS, *PARTS, "model", "added_tokens", "damage", "damage"])
        if what in PARTS:
            make, key = PARTS[what]
            parts = [make(pick) for _ in range(pick.choice([1, 1, 2, 3]))]
            values[what] = parts[0] if len(parts) == 1 else {"type": "Sequence", key: parts}
        elif what == "model" and isinstance(values.get("model"), dict) and values["model"].get("vocab"):
            values["model"] = model(values, pick)
        elif what == "added_tokens":
            old = values.get("added_tokens")
            values["added_tokens"] = [*(old if isinstance(old, list) else []), added_token(pick)]
        else:
            values = damage(values, pick)
    content = bytearray(json.dumps(values, ensure_ascii=pick.random() < 0.5).encode())
    if pick.random() < 0.05:
        content[pick.randrange(len(content))] = pick.randrange(256)
    return bytes(content)
