"""Decides which tokenizers may run in this process and which need a helper process.

``tokenizer.json`` is a program in a small language, and some programs panic, abort, never end or write without end. The
components of well-known models do none of this with sensible parameters, and take time that is linear in the text or
close to it. A file that has only such components is plain; any other runs confined.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from dlf.text.linear_regex import runs_in_linear_time

__all__ = ["unusual"]

MAX_ADDED = 100_000
MAX_ADDED_CHARACTERS = 1 << 20  # together: each is a state of an automaton
MAX_UNIGRAM_CHARACTERS = 4 << 20  # together: each is a node of a tree
MAX_TOKEN = 1024  # characters
MAX_PARTS = 32
MAX_GROWTH = 100  # how many times longer a text may become

Component: TypeAlias = "Mapping[str, Any]"


class _UnusualError(Exception):
    """Says which part of a file is not plain."""


def unusual(document: Mapping[str, Any], added: Sequence[Mapping[str, Any]] = ()) -> str | None:
    """Say what keeps a parsed ``tokenizer.json`` from being plain; None if nothing does.

    Parameters
    ----------
    document
        The parsed file. No object in it has a key twice: another reader might take the other value.
    added
        Tokens that are added to those of the file.
    """
    try:
        _model(document.get("model"))
        _added_tokens(document.get("added_tokens", []))
        _added_tokens(added)
        normalizers = _checked(_parts(document.get("normalizer"), "normalizers"), NORMALIZERS)
        pre_tokenizers = _checked(_parts(document.get("pre_tokenizer"), "pretokenizers"), PRE_TOKENIZERS)
        _need(_growth(normalizers + pre_tokenizers) <= MAX_GROWTH, "normalizers that write too much")
        _checked(_parts(document.get("post_processor"), "processors"), POST_PROCESSORS)
        decoders = _checked(_parts(document.get("decoder"), "decoders"), DECODERS)
        _need(_growth(decoders) <= MAX_GROWTH, "decoders that write too much")
    except _UnusualError as error:
        return str(error)
    return None


# --- Rules: the check of the value of every key of a component ---------------------------------------------------

Rule: TypeAlias = "Callable[[Any], bool]"


def _anything(value: Any) -> bool:
    return True


def _flag(value: Any) -> bool:
    return type(value) is bool


def _flag_or_null(value: Any) -> bool:
    return value is None or type(value) is bool


def _nothing(value: Any) -> bool:
    return value in (None, "")


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TOKEN


def _text_or_null(value: Any) -> bool:
    return value is None or _text(value)


def _character(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1


def _integer(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*values: str) -> Rule:
    return lambda value: value in values


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _text(value[0]) and _integer(0, 1 << 31)(value[1])


def _pattern(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    regex = value.get("Regex")
    return _text(value.get("String")) or (isinstance(regex, str) and runs_in_linear_time(regex))


def _string(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"String"} and _text(value["String"])


BEHAVIOR = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
BYTE_LEVEL: dict[str, Rule] = {"add_prefix_space": _flag, "trim_offsets": _flag, "use_regex": _flag}
METASPACE: dict[str, Rule] = {
    "replacement": _character,
    "prepend_scheme": _one_of("always", "first", "never"),
    "split": _flag,
    "add_prefix_space": _flag,
    "str_rep": _character,
}
NORMALIZERS: dict[str, dict[str, Rule]] = {
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Nmt": {},
    "Lowercase": {},
    "StripAccents": {},
    "ByteLevel": {},
    "Strip": {"strip_left": _flag, "strip_right": _flag},
    "BertNormalizer": {
        "clean_text": _flag,
        "handle_chinese_chars": _flag,
        "strip_accents": _flag_or_null,
        "lowercase": _flag,
    },
    "Prepend": {"prepend": _text},
    "Replace": {"pattern": _pattern, "content": lambda value: value == "" or _text(value)},
    "Precompiled": {"precompiled_charsmap": lambda value: isinstance(value, str) and _longest_entry(value) is not None},
}
PRE_TOKENIZERS: dict[str, dict[str, Rule]] = {
    "BertPreTokenizer": {},
    "ByteLevel": BYTE_LEVEL,
    "CharDelimiterSplit": {"delimiter": _character},
    "Digits": {"individual_digits": _flag},
    "Metaspace": METASPACE,
    "Punctuation": {"behavior": BEHAVIOR},
    "Split": {"pattern": _pattern, "behavior": BEHAVIOR, "invert": _flag},
    "UnicodeScripts": {},
    "Whitespace": {},
    "WhitespaceSplit": {},
}
POST_PROCESSORS: dict[str, dict[str, Rule]] = {
    "BertProcessing": {"sep": _pair, "cls": _pair},
    "ByteLevel": BYTE_LEVEL,
    "RobertaProcessing": {"sep": _pair, "cls": _pair, "trim_offsets": _flag, "add_prefix_space": _flag},
    "TemplateProcessing": {"single": _anything, "pair": _anything, "special_tokens": _anything},
}
DECODERS: dict[str, dict[str, Rule]] = {
    "BPEDecoder": {"suffix": _text},
    "ByteFallback": {},
    "ByteLevel": BYTE_LEVEL,
    "CTC": {"pad_token": _text, "word_delimiter_token": _text, "cleanup": _flag},
    "Fuse": {},
    "Metaspace": METASPACE,
    "Replace": {"pattern": _string, "content": lambda value: value == "" or _text(value)},
    "Strip": {"content": _character, "start": _integer(0, 16), "stop": _integer(0, 16)},
    "WordPiece": {"prefix": _text, "cleanup": _flag},
}
MODELS: dict[str, dict[str, Rule]] = {
    "BPE": {
        "dropout": _anything,  # switched off
        "unk_token": _text_or_null,
        "continuing_subword_prefix": _nothing,
        "end_of_word_suffix": lambda value: value is None or value == "" or _text(value),
        "fuse_unk": _flag,
        "byte_fallback": _flag,
        "ignore_merges": _flag,
        "vocab": _anything,
        "merges": _anything,
    },
    "Unigram": {"unk_id": _anything, "vocab": _anything, "byte_fallback": _flag},
    "WordLevel": {"vocab": _anything, "unk_token": _text},
    "WordPiece": {
        "unk_token": _text,
        "continuing_subword_prefix": _text,
        "max_input_chars_per_word": _integer(1, 200),
        "vocab": _anything,
    },
}


# How many times longer a text may become, if it consists of the worst character.
GROWTH = {
    "NFKC": 18,
    "NFKD": 18,
    "NFD": 4,
    "NFC": 3,
    "Lowercase": 2,
    "BertNormalizer": 4,
    "ByteLevel": 2,
    "Metaspace": 2,
}


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise _UnusualError(what)


def _check(part: Any, known: Mapping[str, Mapping[str, Rule]]) -> None:
    _need(isinstance(part, dict) and isinstance(part.get("type"), str), "a part without a type")
    kind = part["type"]
    _need(kind in known, f"{kind!r:.40}")
    for key, value in part.items():
        _need(key == "type" or (key in known[kind] and known[kind][key](value)), f"{kind!r:.40} with this {key!r:.40}")
    if kind == "TemplateProcessing":
        _template(part)


def _parts(component: Any, key: str) -> list[Any]:
    """Members of a sequence, or the one component."""
    if component is None:
        return []
    if not isinstance(component, dict) or component.get("type") != "Sequence":
        return [component]
    parts = component.get(key)
    _need(set(component) == {"type", key} and isinstance(parts, list) and len(parts) <= MAX_PARTS, "a long sequence")
    assert isinstance(parts, list)
    return parts


def _checked(parts: list[Any], known: Mapping[str, Mapping[str, Rule]]) -> list[Component]:
    for part in parts:
        _check(part, known)
    return parts


def _growth(parts: Sequence[Component]) -> float:
    """How many times longer a text may become."""
    return math.prod(_grown(part) for part in parts)


def _grown(part: Component) -> float:
    kind = part["type"]
    if kind == "Prepend":  # before every text between added tokens
        return float(1 + len(part.get("prepend", "")))
    if kind == "Replace":
        replaced = part.get("pattern", {}).get("String", ".")
        return max(1.0, len(part.get("content", "")) / len(replaced))
    if kind == "Precompiled":
        return _longest_entry(part.get("precompiled_charsmap", "")) or 1
    return GROWTH.get(kind, 1)


def _model(model: Any) -> None:
    _check(model, MODELS)
    vocab = model.get("vocab")
    if model["type"] == "Unigram":
        _need(isinstance(vocab, list), "a Unigram vocabulary")
        for entry in vocab:
            _need(
                isinstance(entry, list)
                and len(entry) == 2
                and _text(entry[0])
                and isinstance(entry[1], (int, float))
                and abs(entry[1]) < 1e9,
                "a Unigram vocabulary with such tokens",
            )
        _need(sum(len(token) for token, _ in vocab) <= MAX_UNIGRAM_CHARACTERS, "a Unigram vocabulary of this size")
    else:
        _need(isinstance(vocab, dict), "a vocabulary")


def _added_tokens(tokens: Any) -> None:
    _need(isinstance(tokens, (list, tuple)) and len(tokens) <= MAX_ADDED, "added tokens")
    for token in tokens:
        _need(isinstance(token, dict) and _text(token.get("content")), "an added token of this length")
        # In a run of such tokens each would scan the whole run.
        strips = token.get("lstrip") or token.get("rstrip")
        _need(not strips or not token["content"].isspace(), "an added token that is a space and strips spaces")
    _need(sum(len(token["content"]) for token in tokens) <= MAX_ADDED_CHARACTERS, "too many added tokens")


def _template(part: Component) -> None:
    """Check that a template names only known tokens and writes the text at most once."""
    single, special = part.get("single"), part.get("special_tokens")
    _need(isinstance(single, list) and len(single) <= MAX_PARTS and isinstance(special, dict), "a template")
    assert isinstance(single, list) and isinstance(special, dict)
    texts = 0
    for piece in single:
        _need(isinstance(piece, dict) and len(piece) == 1, "a template")
        (kind, value), *_ = piece.items()
        _need(isinstance(value, dict), "a template")
        texts += kind == "Sequence"
        if kind == "Sequence":
            _need(value.get("id") == "A", "a template of a pair for a single text")
        else:
            named = special.get(value.get("id")) if isinstance(value.get("id"), str) else None
            _need(isinstance(named, dict), "a template with an unknown token")
            assert isinstance(named, dict)
            ids, tokens = named.get("ids"), named.get("tokens")
            _need(
                isinstance(ids, list) and isinstance(tokens, list) and len(ids) == len(tokens) <= MAX_PARTS,
                "a template with such a token",
            )
    _need(texts <= 1, "a template that repeats the text")


def _longest_entry(charsmap: str) -> int | None:
    """Bytes of the longest string in a precompiled map (a trie, then strings that end with NUL); None if invalid."""
    try:
        content = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        return None
    size = int.from_bytes(content[:4], "little")
    if len(content) < 4 or size % 4 or 4 + size > len(content):
        return None
    return max(map(len, content[4 + size :].split(b"\0")))
