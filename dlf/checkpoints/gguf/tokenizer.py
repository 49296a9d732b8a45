"""Writes the vocabulary of a GGUF file as a ``tokenizer.json``, which encodes as llama.cpp does.

Source: ``src/llama-vocab.cpp`` of llama.cpp, the reference for token ids. Of its vocabularies this has those of the
families that dlf runs: byte-level BPE, and SentencePiece with scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from dlf.checkpoints.gguf.file import GgufFile
from dlf.errors import CheckpointError
from dlf.support.fields import MAX_VOCAB_SIZE
from dlf.text.chat_template import ChatTemplate
from dlf.text.special_tokens import ExtraTokens
from dlf.text.tokenizer_parts import TokenizerParts

__all__ = ["tokenizer_parts"]

Component: TypeAlias = "dict[str, Any]"

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
SPACE = "▁"
MAX_PIECE = 256  # characters; in SentencePiece vocabularies all pieces of a token are looked up
MAX_CHARACTERS = 16 << 20  # of all tokens

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LEAD = r"[^\r\n\p{L}\p{N}]?"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}|{REST}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*|\p{{N}}|{TEKKEN_REST}"
GPT4O = rf"{LEAD}{UPPER}*{LOWER}+{CONTRACTIONS}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|{TEKKEN_REST}"
# Expressions that split a text one after the other, by the name of the pre-tokenizer.
SPLITS: dict[str, list[str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "exaone4", "trillion", "granite-docling"), [GPT2]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), [r"\p{N}", GPT2]),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "pixtral", "lfm2"), [LLAMA3]),
    **dict.fromkeys(("chatglm-bpe", "glm4"), [LLAMA3]),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), [QWEN2]),
    "tekken": [TEKKEN],
    **dict.fromkeys(("gpt-4o", "llama4"), [GPT4O]),
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
# These take a word that is a token without merging it, and put the begin token before a text unless the file says no.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken")
STRIPPED_IN_PHI3 = ("<unk>", "<s>", "<|endoftext|>")  # all others take the spaces behind them


def tokenizer_parts(file: GgufFile) -> TokenizerParts:
    """Make the tokenizer of a GGUF file.

    Raises
    ------
    CheckpointError
        If the file has no vocabulary, or one that dlf cannot read.
    """
    vocabulary = _Vocabulary(file)
    document = vocabulary.document()
    named = vocabulary.named()
    config = named | {"chat_template": _templates(file)}
    template = ChatTemplate.of(config, file.path)
    return TokenizerParts(
        file.path, json.dumps(document, ensure_ascii=False), document, False, ExtraTokens([], {}, named), template
    )


def _templates(file: GgufFile) -> Any:
    """Return the chat template, or all of them by name, as ``tokenizer_config.json`` has them."""
    key = "tokenizer.chat_template"
    default, names = file.metadata.get(key), file.metadata.get("tokenizer.chat_templates", [])
    found = [{"name": "default", "template": default}]
    found += [{"name": name, "template": file.metadata.get(f"{key}.{name}")} for name in names]
    return default if len(found) == 1 else [one for one in found if one["template"] is not None]


def _replace(pattern: str, content: str) -> Component:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


class _Vocabulary:
    """The tokens of a file, and what is said about them."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._meta = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in file.metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
        self.tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(self._strings("tokens"))]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if not 0 < len(self.ids) == len(self.tokens) <= MAX_VOCAB_SIZE:
            raise self._error(f"{len(self.tokens)} tokens of which {len(self.ids)} differ")
        if sum(map(len, self.tokens)) > MAX_CHARACTERS:
            raise self._error("tokens longer than those of any model together")
        self.types = self._numbers("token_type", 1)
        self.kind = self._meta.get("model")
        self.pre = self._meta.get("pre", "default")

    def document(self) -> Component:
        """Return the content of ``tokenizer.json``."""
        if self.kind == "gpt2":
            parts = self._byte_level()
        elif self.kind == "llama":
            parts = self._sentence_piece()
        elif self.kind == "t5":
            parts = self._unigram()
        else:
            raise self._error(f"the model {self.kind!r:.40}; dlf reads gpt2, llama and t5")
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(self._added())} | parts

    def named(self) -> dict[str, str]:
        """Return special tokens by the names of ``tokenizer_config.json``."""
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
        found = {f"{name}_token": self._special(key) for name, key in names.items()}
        return {name: self.tokens[number] for name, number in found.items() if number is not None}

    def _byte_level(self) -> Component:
        splits = SPLITS.get(self.pre) if isinstance(self.pre, str) else None
        if splits is None:
            raise self._error(f"the pre-tokenizer {self.pre!r:.40}; dlf reads {', '.join(SPLITS)}")
        merges = []
        for merge in self._strings("merges"):
            space = merge.find(" ", 1)
            left, right = merge[: max(space, 0)], merge[space + 1 :]
            if left in self.ids and right in self.ids and left + right in self.ids:
                merges.append([left, right])
        model = self._bpe(merges) | {"ignore_merges": self.pre in WHOLE_WORDS}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        steps = [
            {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False} for one in splits
        ]
        return {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
            "post_processor": self._around(begin=self.pre in WHOLE_WORDS),
            "decoder": byte_level,
            "model": model,
        }

    def _sentence_piece(self) -> Component:
        """BPE that merges the pair whose token has the highest score, and falls back to bytes."""
        prefix = self._flag("add_space_prefix", True)
        steps = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        if prefix:
            steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "post_processor": self._around(begin=True),
            "decoder": self._decoder(prefix),
            "model": self._bpe(self._merges_by_score()) | {"byte_fallback": True, "fuse_unk": True},
        }

    def _unigram(self) -> Component:
        """The most probable tokens of a text; characters without one are unknown, whatever bytes the vocabulary has."""
        merges = self._flag("remove_extra_whitespaces", False)
        prefix = merges or self._flag("add_space_prefix", True)
        steps = [_replace(" +", " "), _replace(r"\A ", ""), _replace(r" \z", "")] if merges else []
        if prefix:  # before the first word; a text of spaces alone has none
            steps.append({"type": "Prepend", "prepend": SPACE} if merges else _replace(r"\A(?= *[^ ])", SPACE))
        scheme = "always" if prefix else "never"
        unknown = self._special("unknown")
        scores = [float(score) for score in self._numbers("scores", 0.0)]
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*steps, _replace(" ", SPACE)]},
            "pre_tokenizer": None,
            "post_processor": self._around(begin=False, end=True),
            "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True},
            "model": {
                "type": "Unigram",
                "unk_id": unknown,
                "vocab": [list(one) for one in zip(self.tokens, scores, strict=True)],
                "byte_fallback": False,
            },
        }

    def _bpe(self, merges: list[list[str]]) -> Component:
        unknown = self._special("unknown")
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": self.tokens[unknown] if unknown is not None and self.kind == "llama" else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": self.ids,
            "merges": merges,
        }

    def _merges_by_score(self) -> list[list[str]]:
        """Return every pair of tokens that makes a third one, best scores first."""
        scores = self._numbers("scores", 0.0)
        special = (UNKNOWN, CONTROL, USER_DEFINED, BYTE)
        made = [
            (-float(scores[number]), number)
            for number, token in enumerate(self.tokens)
            if self.types[number] not in special and 1 < len(token) <= MAX_PIECE
        ]
        merges, ids = [], self.ids
        for _, number in sorted(made):
            token = self.tokens[number]
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in ids and right in ids:
                    merges.append([left, right])
        return merges

    def _decoder(self, prefix: bool) -> Component:
        steps: list[Component] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {"type": "Sequence", "decoders": steps}

    def _around(self, begin: bool, end: bool = False) -> Component | None:
        """Return the tokens that are put before and behind a text."""
        first = self._special("bos") if self._flag("add_bos_token", begin) else None
        last = self._special("eos") if self._flag("add_eos_token", end) else None
        used = [number for number in (first, last) if number is not None]
        if not used:
            return None

        def special(number: int | None) -> list[Component]:
            return [] if number is None else [{"SpecialToken": {"id": self.tokens[number], "type_id": 0}}]

        single = [*special(first), {"Sequence": {"id": "A", "type_id": 0}}, *special(last)]
        pair = [*single, *special(first), {"Sequence": {"id": "B", "type_id": 1}}, *special(last)]
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {
                self.tokens[one]: {"id": self.tokens[one], "ids": [one], "tokens": [self.tokens[one]]} for one in used
            },
        }

    def _added(self) -> Iterator[Component]:
        """Yield the tokens that are found in a text before it is split."""
        strips = self.kind == "llama" and "phi" in str(self._file.metadata.get("general.architecture"))
        for number, token in enumerate(self.tokens):
            kind = self.types[number]
            if kind in (UNKNOWN, CONTROL, USER_DEFINED):
                yield {
                    "id": number,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": strips and token not in STRIPPED_IN_PHI3,
                    "normalized": False,
                    "special": kind != USER_DEFINED,
                }

    def _special(self, key: str) -> int | None:
        """Return the id that the metadata give a special token; one out of range is none, as in llama.cpp."""
        defaults = {"bos": 1, "eos": 2, "unknown": 0} if self.kind == "llama" else {}
        number = self._meta.get(f"{key}_token_id", defaults.get(key))
        return number if type(number) is int and 0 <= number < len(self.tokens) else None

    def _flag(self, key: str, default: bool) -> bool:
        return bool(self._meta.get(key, default))

    def _strings(self, key: str) -> list[str]:
        found = self._meta.get(key)
        if not isinstance(found, list):
            raise self._error(f"no list of tokenizer.ggml.{key}")
        return found

    def _numbers(self, key: str, default: float) -> Sequence[float]:
        """Return a number for each token."""
        found = self._meta.get(key)
        if found is None:
            return [default] * len(self.tokens)
        if not hasattr(found, "tolist") or len(found) < len(self.tokens):
            raise self._error(f"no tokenizer.ggml.{key} for each token")
        numbers: list[float] = found[: len(self.tokens)].tolist()
        return numbers

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: the vocabulary has {what}; use another conversion of the model")
