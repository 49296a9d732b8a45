"""Records what llama.cpp answers: ``python tests/real/record.py``; llama-cpp-python takes minutes to build."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

sys.path.insert(0, str(Path(__file__).parents[1]))
from real.models import MODELS, fetch
from real.questions import LENGTH, MULTILINGUAL, PROMPTS, QUESTIONS, TEXT, WINDOW

REFERENCE = Path(__file__).with_name("reference.json")


def log_probability(model: llama_cpp.Llama, ids: list[int]) -> float:
    """Sum of the log-probabilities of all tokens but the first."""
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
    most = logits.max(axis=1)
    normal = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
    return float((logits[np.arange(len(ids) - 1), ids[1:]] - normal).sum())


def greedy(model: llama_cpp.Llama, ids: list[int]) -> list[int]:
    """Most probable tokens after a prompt, up to one that ends the text."""
    model.reset()
    model.eval(ids)
    found: list[int] = []
    while len(found) < LENGTH:
        token = int(np.argmax(model.scores[model.n_tokens - 1]))
        if llama_cpp.llama_vocab_is_eog(model._model.vocab, token):
            break
        found.append(token)
        model.eval([token])
    return found


def record(file: Path) -> dict[str, Any]:
    """Ask one model everything."""
    model = llama_cpp.Llama(str(file), n_ctx=1024, n_batch=512, n_threads=1, logits_all=True, verbose=False)

    def encode(text: str, special: bool = False, bos: bool = True) -> list[int]:
        found: list[int] = model.tokenize(text.encode(), add_bos=bos, special=special)
        return found

    ids = encode(TEXT.read_text("utf-8"))
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    found: dict[str, Any] = {
        "multilingual": encode(MULTILINGUAL),
        "text": ids,
        "log_probability": sum(log_probability(model, one) for one in windows if len(one) > 1),
        "greedy": {prompt: greedy(model, encode(prompt)) for prompt in PROMPTS},
    }
    template = model.metadata.get("tokenizer.chat_template")
    if template:
        names = [model.detokenize([token], special=True).decode() for token in (model.token_eos(), model.token_bos())]
        form = Jinja2ChatFormatter(template, *names)
        texts = {one: form(messages=[{"role": "user", "content": one}]).prompt for one in QUESTIONS}
        found["chat"] = {
            one: {"prompt": text, "tokens": greedy(model, encode(text, special=True, bos=False))}
            for one, text in texts.items()
        }
    return found


if __name__ == "__main__":
    answers = {"llama-cpp-python": llama_cpp.__version__}
    for name in MODELS:
        path = fetch(name)
        assert path is not None, f"{name} cannot be downloaded"
        answers[name] = record(path)
        print(name, "done", flush=True)
    REFERENCE.write_text(json.dumps(answers, indent=None, ensure_ascii=False) + "\n", "utf-8")
